"""Units do not matter: what a model reads and its scores stay the same for a * x + b, c * y + d."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import xmodal
from xmodal.errors import DataError
from xmodal_arrays.task import Arrays

Values = NDArray[Any]
DRAW = np.random.default_rng(0)
SHAPES = {"row": (3,), "sequence": (2, 20), "grid": (2, 16, 16)}
SCALES = {
    "f8": (1e-200, 1e-13, 1e-5, 7.0, 1e13, 1e200),
    "f4": (1e-30, 1e-13, 7.0, 1e30),
    "f2": (0.5, 3.0),
}
OFFSETS = {"f8": (0.0, 1.0, -1e3, 1e8), "f4": (0.0, 1.0, -1e2), "f2": (0.0, 1.0)}
LEARN = ("training.epochs=3", "training.max_steps=null", "training.batch.size=16", "device=cpu")


def trained_on(folder: Path, x: Values, y: Values, form: str, **task: Any) -> tuple[Any, Any]:
    """The tensors of the training split."""
    np.savez(folder / "d.npz", x=x, y=y)
    settings = {"path": folder / "d.npz", "form": form, "channels": "first", **task}
    return Arrays(Arrays.Config(**settings), None).load(0).train.tensors  # type: ignore


def per_channel(values: Values, scale: float) -> Values:
    """Another unit for every channel: scale, its inverse, scale, ..."""
    side = [1, values.shape[1], *[1] * (values.ndim - 2)]
    return values * np.power(scale, (-1.0) ** np.arange(values.shape[1])).reshape(side)


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("dtype", SCALES)
def test_inputs(tmp_path: Path, form: str, dtype: str) -> None:
    """Within max(1e-6, 4 eps |offset| / spread), eps that of the file's own numbers."""
    x = DRAW.normal(size=(40, *SHAPES[form])).astype(dtype).astype("f8")
    y = np.arange(40) % 2
    usual = trained_on(tmp_path, x, y, form)[0]
    flat = usual.movedim(1, 0).flatten(1)
    np.testing.assert_allclose(flat.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(flat.std(1, correction=0), 1, atol=1e-6)
    for scale in SCALES[dtype]:
        for offset in OFFSETS[dtype]:
            moved = (x + offset) * scale
            found = trained_on(tmp_path, moved.astype(dtype), y, form)[0]
            most = max(1e-6, 4 * float(np.finfo(dtype).eps) * (abs(offset) + 4))
            assert float((found - usual).abs().max()) <= most, (scale, offset)
    if dtype == "f8":
        found = trained_on(tmp_path, per_channel(x, 1e-100), y, form)[0]
        assert float((found - usual).abs().max()) <= 1e-6


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 20), (2, 20)])
def test_labels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """One number, several, one field, two: each output by itself; restored to the last digits."""
    x, y = DRAW.normal(size=(40, 2, 20)), DRAW.normal(size=(40, *shape)) + 0.5
    kind: dict[str, Any] = {"kind": "dense" if len(shape) > 1 else "regression"}
    usual = trained_on(tmp_path, x, y, "sequence", **kind)[1]
    for scale in SCALES["f8"]:
        for offset in (0.0, 1e3, 1e8):
            moved = per_channel(y + offset, scale)
            found = trained_on(tmp_path, x, moved, "sequence", **kind)[1]
            assert float((found - usual).abs().max()) <= max(1e-6, 4 * 2.3e-16 * (offset + 4))
            settings = {"path": tmp_path / "d.npz", "form": "sequence", "channels": "first"}
            data = Arrays(Arrays.Config(**settings, **kind), None).load(0)  # type: ignore
            restored = data.in_unit(data.test.tensors[1]).numpy()  # type: ignore[attr-defined]
            assert restored.dtype == np.float64
            gap = np.abs(restored[:, None] - moved[None]) / np.abs(moved).max(
                (0, *range(2, moved.ndim)), keepdims=True
            )
            assert gap.reshape(*gap.shape[:2], -1).max(2).min(1).max() < 1e-6


@pytest.mark.parametrize("name", ["mse", "l1", "relative-l2", "nrmse", "rmse"])
def test_losses_in_the_unit_of_the_user(tmp_path: Path, name: str) -> None:
    """A loss of standardised labels is that of the labels, up to its power of the unit."""
    y = DRAW.normal(size=(40, 1, 20)) + 2
    for scale in (1.0, 1e-9, 1e9):
        np.savez(tmp_path / "d.npz", x=DRAW.normal(size=(40, 2, 20)), y=y * scale)
        settings = {"path": tmp_path / "d.npz", "kind": "dense", "form": "sequence"}
        data = Arrays(Arrays.Config(**settings, loss=name), None).load(0)  # type: ignore
        loss = data_loss(name)
        assert data.raw is not None
        assert data.raw.label_mean is not None
        assert data.raw.label_scale is not None
        z = data.train.tensors[1]  # type: ignore[attr-defined]
        prediction = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        loss.unit(data.raw.label_mean, data.raw.label_scale)
        p, true = (data.in_unit(t).numpy()[:, 0] for t in (prediction, z))
        error, size = ((p - true) ** 2).mean(1), (true**2).mean(1)
        relative = np.sqrt(error / size)
        by_hand = {"mse": error, "l1": np.abs(p - true).mean(1), "rmse": np.sqrt(error)}
        unit = float(data.raw.label_scale) ** (loss.degree or 0)
        found = loss(prediction, z).numpy() * unit
        np.testing.assert_allclose(found, by_hand.get(name, relative), rtol=1e-5)


def data_loss(name: str) -> Any:
    """The loss of that name."""
    config = Arrays.Config(path=Path("d.npz"), loss=name)
    return config.loss.component(config.loss.config, None)


def test_what_float32_cannot_hold_is_refused_where_nothing_is_standardised(tmp_path: Path) -> None:
    x, y = DRAW.normal(size=(40, 2, 20)), np.arange(40) % 2
    for moved in (x * 1e-60, x * 1e60, 1.7e9 + 20 * x):
        with pytest.raises(DataError, match=r"tell apart.*normalize: auto"):
            trained_on(tmp_path, moved, y, "sequence", normalize="none")
    for moved in (x * 1e-60 + 3e-60, 1.7e9 + 20 * x):
        with pytest.raises(DataError, match="the loss reads labels as they are"):
            trained_on(tmp_path, x, moved, "sequence", kind="dense", loss="bce")


def test_values_too_far_from_training_are_refused_with_their_row(tmp_path: Path) -> None:
    x, y = DRAW.normal(size=(40, 3)), DRAW.normal(size=40)
    for name, values in {"x": x, "y": y}.items():
        far = values.copy()
        far[37] = 1e200  # validates or tests: a training sample would set the scale
        given = {"x": x, "y": y, name: far}
        parts = {"x_train": x[:30], "y_train": y[:30], "x_test": given["x"][30:]}
        np.savez(tmp_path / "d.npz", **parts, y_test=given["y"][30:])
        task = Arrays(Arrays.Config(path=tmp_path / "d.npz", kind="regression"), None)  # type: ignore
        with pytest.raises(DataError, match=rf"{name}_test.*row 7 has a value that is too large"):
            task.load(0)


def run(folder: Path, x: Values, y: Values, *more: str) -> Any:
    np.savez(folder / "d.npz", x=x, y=y)
    settings = [f"task.path={folder / 'd.npz'}", "training.optimizer.lr=3e-3", *LEARN, *more]
    return xmodal.run(
        "methods/nft", "arrays/row", overrides=settings, scale="smoke", root=folder, report=False
    )


def test_runs_in_other_units_score_the_same(tmp_path: Path) -> None:
    """Also the score of a loaded model, the kept predictions, and losses where they can be told."""
    x = DRAW.normal(size=(60, 4))
    y = x[:, :1] + 0.5 * x[:, 1:2]
    usual = run(tmp_path, x, y, "task.kind=regression")
    wanted = usual.result["test"]
    assert wanted["metric"] ** 2 == pytest.approx(wanted["loss"], rel=1e-6)
    for scale, shift in ((1e-200, 0.0), (1e9, 1e3), (1e200, 1.0)):
        moved_x, moved_y = per_channel(x, scale), (y + shift) * scale
        done = run(tmp_path, moved_x, moved_y, "task.kind=regression")
        found = done.result["test"]
        assert found["metric"] / scale == pytest.approx(wanted["metric"], rel=1e-6)
        squared = wanted["loss"] * scale if scale == 1e9 else None
        assert found["loss"] == (squared and pytest.approx(squared * scale, rel=1e-6))
        kept = load_file(done.run.path / "predictions.safetensors")
        error = (kept["prediction"] - kept["label"]).numpy() / scale
        assert np.sqrt((error**2).mean()) == pytest.approx(wanted["metric"], rel=1e-6)
        model = xmodal.load(done.run.path)
        assert model.score(moved_x, moved_y) / scale == pytest.approx(
            xmodal.load(usual.run.path).score(x, y), rel=1e-6
        )


def test_a_large_mean_costs_no_digits_of_predictions(tmp_path: Path) -> None:
    x = DRAW.normal(size=(60, 4))
    done = run(tmp_path, x, 1.7e9 + 300 * x[:, 0], "task.kind=regression")
    found = xmodal.load(done.run.path).predict(x)
    assert found.dtype == np.float64
    assert len(np.unique(found)) == 60


def test_two_outputs_of_far_units_are_both_learned(tmp_path: Path) -> None:
    x = DRAW.normal(size=(60, 4))
    y = np.stack([x[:, 0] + x[:, 1], x[:, 2] - x[:, 3]], axis=1)
    even, odd = (run(tmp_path, x, y * unit) for unit in ([1.0, 1.0], [1e3, 1e-3]))
    assert odd.result["metric"] == "r2-error"
    assert odd.result["test"]["metric"] == pytest.approx(even.result["test"]["metric"], rel=1e-6)


def test_a_label_of_zero_has_no_relative_error(tmp_path: Path) -> None:
    """0 comes back as 0, not as 1e-9, by which an error would be divided."""
    x = DRAW.normal(size=(60, 4))
    y = 0.3 + x[:, 0]
    y[::3] = 0
    done = run(tmp_path, x, y, "task.loss=relative-l2", "task.metric=relative-l2")
    kept = load_file(done.run.path / "predictions.safetensors")
    label, error = kept["label"].numpy(), (kept["prediction"] - kept["label"]).numpy()
    known = label != 0
    assert 0 < (~known).sum() < 9
    np.testing.assert_array_equal(known, np.abs(label) > 1e-6)
    wanted = np.abs(error[known] / label[known]).mean()
    assert done.result["test"]["metric"] == pytest.approx(wanted, rel=1e-6)


def test_small_labels_keep_their_digits_among_large_ones(tmp_path: Path) -> None:
    """In float32, standardised labels of 1e-6 and 1e-5 beside some of 1e3 are the same number."""
    y = 10.0 ** DRAW.uniform(-6, 3, 60)
    x = np.log10(y)[:, None] + DRAW.normal(size=(60, 4)) / 10
    done = run(tmp_path, x, y, "task.metric=relative-l2")
    kept = load_file(done.run.path / "predictions.safetensors")
    label, found = kept["label"].numpy().ravel(), kept["prediction"].numpy().ravel()
    true = y[np.abs(np.log10(label[:, None] / y)).argmin(axis=1)]
    np.testing.assert_allclose(label, true, rtol=1e-7)
    assert done.result["test"]["metric"] == pytest.approx((np.abs(found - true) / true).mean())
    assert xmodal.load(done.run.path).labels(y).numpy().ravel() == pytest.approx(y, rel=1e-7)
