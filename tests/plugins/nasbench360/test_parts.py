"""NinaPro, Satellite and DeepSEA: small files as published, against loaders in plain NumPy."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.facts import BackboneFacts, Facts
from xmodal.interfaces import Context, Task
from xmodal_nasbench360 import parts
from xmodal_nasbench360.deepsea import DeepSea
from xmodal_nasbench360.ninapro import NinaPro
from xmodal_nasbench360.satellite import Satellite

PARTS = ("train", "validation", "test")


def task(kind: Any, path: Path | None, cache: Path, **settings: Any) -> Any:
    settings = {"path": path, "partial": path is not None, **settings}
    return kind(kind.Config(**settings), SimpleNamespace(store=Store(cache)))


def everything(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    assert x[0].dtype == torch.float32
    stacked = torch.stack(y)
    assert torch.equal(loader.labels(dataset), stacked)
    assert (loader.tensors(dataset) is None) == (parts.MEMORY == 0)
    # Workers get a copy.
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1][0], x[1])
    return torch.stack(x).numpy(), stacked.numpy()


def check_facts(kind: type[Task], one: Any, loaded: Any) -> None:
    facts = kind.describe(one.config, one.store)
    assert facts.samples == {part: loader.count(getattr(loaded, part)) for part in PARTS}
    assert loaded.train[0][0].shape == facts.shape
    assert "not all" in " ".join(loaded.notes)


# --- ninapro --------------------------------------------------------------------------------------


def ninapro_files(folder: Path, **changes: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 9), ("val", 4), ("test", 5)):
        arrays[f"ninapro_{part}"] = rng.normal(size=(count, 52, 16)) * 1e-4
        arrays[f"label_{part}"] = rng.integers(0, 18, count).astype(np.int8)
    arrays |= changes
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays


@pytest.mark.parametrize("memory", [0, parts.MEMORY])
def test_ninapro(tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MEMORY", memory)
    arrays = ninapro_files(tmp_path)
    one = task(NinaPro, tmp_path, tmp_path / "cache")
    loaded = one.load(0)
    for part, short in zip(PARTS, ("train", "val", "test"), strict=True):
        x, y = everything(getattr(loaded, part))
        wanted = np.transpose(arrays[f"ninapro_{short}"], (0, 2, 1))[:, None]
        np.testing.assert_array_equal(x, wanted.astype(np.float32))
        np.testing.assert_array_equal(y, arrays[f"label_{short}"])
    check_facts(NinaPro, one, loaded)
    assert one.config.loss.dump() == {"use": "focal", "alpha": 1.0, "gamma": 0.0}


def test_the_loss_of_ninapro_is_the_cross_entropy(tmp_path: Path) -> None:
    one = task(NinaPro, None, tmp_path)
    facts = Facts(NinaPro.facts, BackboneFacts("stub", "any", 4, 4))
    loss: Any = one.config.loss.build(Context.outside(one.store, facts=facts))
    logits, y = torch.randn(7, 18), torch.arange(7)
    wanted = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(loss(logits, y), wanted)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"label_val": np.array([0, 1, 2, 18])}, r"label_val\.npy: class 18, not 0 \.\. 17"),
        ({"label_val": np.zeros(3, int)}, r"label_val\.npy: expected 4 classes, got .*\(3,\)"),
        ({"ninapro_test": np.zeros((5, 16, 52))}, r"ninapro_test\.npy: float64 \(5, 16, 52\)"),
        ({"ninapro_test": np.full((5, 52, 16), np.nan)}, r"ninapro_test\.npy: has NaN"),
    ],
)
def test_ninapro_refuses(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    ninapro_files(tmp_path, **changes)
    with pytest.raises(DataError, match=why):
        task(NinaPro, tmp_path, tmp_path / "cache").load(0)


def test_a_file_is_missing(tmp_path: Path) -> None:
    ninapro_files(tmp_path)
    with pytest.raises(DataError, match="9 samples to train, 2,638 are published"):
        task(NinaPro, tmp_path, tmp_path / "cache", partial=False).load(0)
    (tmp_path / "label_val.npy").unlink()
    with pytest.raises(DataError, match=r"holds no label_val\.npy"):
        task(NinaPro, tmp_path, tmp_path / "cache").load(0)
    with pytest.raises(DataError, match="xmodal data fetch ninapro"):
        task(NinaPro, None, tmp_path / "cache").load(0)


# --- satellite ------------------------------------------------------------------------------------


def satellite_files(folder: Path, **changes: Any) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60), ("test", 11)):
        data = rng.normal(size=(count, 46)) * 300
        data[3] = 7.0
        content = {"data": data, "label": rng.integers(1, 25, count), **changes}
        np.save(folder / f"satellite_{part}.npy", np.array(content), allow_pickle=True)
        arrays[part] = content
    return arrays


@pytest.mark.parametrize("memory", [0, parts.MEMORY])
@pytest.mark.parametrize("normalise", ["none", "series"])
def test_satellite(
    tmp_path: Path, normalise: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MEMORY", memory)
    arrays = satellite_files(tmp_path)
    settings = {"validation": 7, "normalise": normalise}
    one = task(Satellite, tmp_path, tmp_path / "cache", **settings)
    loaded = one.load(0)
    rows = {"train": slice(0, 53), "validation": slice(53, 60), "test": slice(0, 11)}
    for part, index in rows.items():
        x, y = everything(getattr(loaded, part))
        content = arrays["test" if part == "test" else "train"]
        wanted = content["data"][index]
        if normalise == "series":
            deviation = wanted.std(axis=1, keepdims=True)
            deviation[deviation == 0] = 1
            wanted = (wanted - wanted.mean(axis=1, keepdims=True)) / deviation
        np.testing.assert_allclose(x[:, 0], wanted, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(y, content["label"][index] - 1)
        if normalise == "none":
            np.testing.assert_array_equal(x[:, 0], wanted.astype(np.float32))
    check_facts(Satellite, one, loaded)


def test_satellite_refuses(tmp_path: Path) -> None:
    for changes, why in (
        ({"label": np.zeros(60, int)}, r"satellite_train\.npy: class 0, not 1 \.\. 24"),
        ({"data": np.zeros((60, 45))}, r"satellite_train\.npy: data float64 \(60, 45\)"),
        ({"data": np.full((60, 46), np.inf), "label": np.ones(60, int)}, "has NaN, infinite"),
    ):
        satellite_files(tmp_path, **changes)
        with pytest.raises(DataError, match=why):
            task(Satellite, tmp_path, tmp_path / "cache", validation=7).load(0)
    satellite_files(tmp_path)
    with pytest.raises(DataError, match="validation takes 100,000 of 60 series"):
        task(Satellite, tmp_path, tmp_path / "cache").load(0)
    np.save(tmp_path / "satellite_train.npy", np.zeros((60, 46)))
    with pytest.raises(DataError, match="expected a dictionary with 'data' and 'label'"):
        task(Satellite, tmp_path, tmp_path / "cache", validation=7).load(0)


# --- deepsea --------------------------------------------------------------------------------------


def deepsea_file(
    path: Path, dtype: Any = np.uint8, save: Any = np.savez, **changes: Any
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 12), ("val", 3), ("test", 8)):
        x = np.eye(4)[rng.integers(0, 4, (count, 1000))]
        x[1, 10:20] = 0  # unknown bases
        arrays[f"x_{part}"] = x.astype(dtype)
        arrays[f"y_{part}"] = (rng.random((count, 36)) < 0.3).astype(dtype)
    arrays |= changes
    save(path, **arrays)
    return arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
def test_deepsea(tmp_path: Path, dtype: Any, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MEMORY", 0 if dtype is bool else parts.MEMORY)
    arrays = deepsea_file(tmp_path / "deepsea_filtered.npz", dtype, save)
    one = task(DeepSea, tmp_path / "deepsea_filtered.npz", tmp_path / "cache")
    loaded = one.load(0)
    for part, short in zip(PARTS, ("train", "val", "test"), strict=True):
        x, y = everything(getattr(loaded, part))
        np.testing.assert_array_equal(x, arrays[f"x_{short}"].transpose(0, 2, 1))
        np.testing.assert_array_equal(y, arrays[f"y_{short}"])
    check_facts(DeepSea, one, loaded)
    built = next((tmp_path / "cache" / "built").glob("deepsea-*"))
    assert np.load(built / "test_x.npy").nbytes == 8 * 1000
    assert one.config.loss.dump() == {"use": "bce", "pos_weight": 4.0}


def test_the_score_of_deepsea(tmp_path: Path) -> None:
    """1 - the mean AUROC over the labels that are both 0 and 1, as np.nanmean over scikit-learn."""
    one = task(DeepSea, None, tmp_path)
    facts = Facts(DeepSea.facts, BackboneFacts("stub", "any", 4, 4))
    metric: Any = one.config.metric.build(Context.outside(one.store, facts=facts))
    rng = np.random.default_rng(0)
    y, logits = (rng.random((40, 36)) < 0.3).astype(np.float32), rng.normal(size=(40, 36))
    y[:, 3], y[:, 9] = 0, 1
    areas = [roc_auc_score(y[:, k], logits[:, k]) for k in range(36) if k not in (3, 9)]
    metric.update(torch.tensor(logits), torch.tensor(y))
    assert metric.compute() == pytest.approx(1 - np.mean(areas))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"x_val": np.ones((3, 1000, 4), np.uint8)}, "x_val from row 0 on is not one-hot"),
        ({"x_val": np.full((3, 1000, 4), 0.25)}, "x_val from row 0 on is not one-hot"),
        ({"y_val": np.full((3, 36), 2)}, "y_val has values other than 0 and 1"),
        ({"y_val": np.zeros((3, 35))}, r"y_val \(3, 35\), expected"),
    ],
)
def test_deepsea_refuses(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    deepsea_file(tmp_path / "deepsea_filtered.npz", **changes)
    with pytest.raises(DataError, match=why):
        task(DeepSea, tmp_path, tmp_path / "cache").load(0)
