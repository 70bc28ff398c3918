"""A task does not depend on the file that its arrays are in; samples of unequal lengths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from xmodal.data.preparation import RawForm
from xmodal.data.splits import split
from xmodal.errors import DataError
from xmodal_arrays.task import Arrays

from ...data.array_files import (
    LENGTHS,
    UNEQUAL,
    X,
    Y,
    cells,
    h5,
    mat5,
    mat73,
    matlab,
    matlab_cells,
    matlab_text,
    npy,
    npz,
    packed,
)

NAMES = np.array(["a", "b", "c"])[Y]


def load(path: Path, **settings: Any) -> Any:
    return Arrays(Arrays.Config(path=path, **settings), None).load(0)  # type: ignore[arg-type]


def mixed(path: Path, x: Any, y: Any) -> Path:
    with h5py.File(path / "d.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(5, 3, 2), compression="gzip", shuffle=True)
        file["y"] = y
    return path / "d.h5"


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (lambda d: npz(d, x=X.astype(">f8"), y=NAMES), {}),
        (lambda d: npz(d, x=X.astype(np.longdouble), y=NAMES.astype("S")), {}),
        (lambda d: packed(d, x=np.asfortranarray(X), y=NAMES[:, None]), {}),
        (lambda d: npy(d, X, NAMES), {}),
        (lambda d: npy(d, X, NAMES).parent, {}),
        (lambda d: npz(d, x=X[::-1][::-1], y=NAMES[None]), {}),
        (lambda d: mixed(d, X, NAMES.astype("S")), {}),
        (lambda d: npz(d, a=X[:, 0], b=X[:, 1], c=X[:, 2], y=NAMES), {"x": ("a", "b", "c")}),
        (lambda d: npz(d, x=np.moveaxis(X, 0, -1), y=NAMES), {"samples": "last"}),
        (lambda d: mat5(d, sig=X, cls=cells(list(NAMES))), {"x": "sig", "y": "cls"}),
        (lambda d: mat5(d, x=np.moveaxis(X, 0, -1), y=cells(list(NAMES)).T), {"samples": "last"}),
        (
            lambda d: mat73(
                d,
                lambda f: (
                    matlab(f, "x", X, "single"),
                    matlab_cells(f, "y", [(matlab_text(name), "char") for name in NAMES]),
                ),
            ),
            {},
        ),
    ],
)
def test_tensors_do_not_depend_on_the_file(
    tmp_path: Path, write: Callable[[Path], Path], settings: dict[str, Any]
) -> None:
    (tmp_path / "usual").mkdir()
    usual, found = load(npz(tmp_path / "usual", x=X, y=NAMES)), load(write(tmp_path), **settings)
    assert found.classes == usual.classes == ("a", "b", "c")
    for part in ("train", "validation", "test"):
        x, y = getattr(found, part).tensors
        assert torch.equal(x, getattr(usual, part).tensors[0])
        assert torch.equal(y, getattr(usual, part).tensors[1])


@pytest.mark.parametrize("unit", [(1.0, 0.0), (1e-9, 5.0)])
def test_padding_is_the_mean_of_its_channel(tmp_path: Path, unit: tuple[float, float]) -> None:
    """Statistics are those of the values that are there, in any unit."""
    samples = [sample * unit[0] + unit[1] * unit[0] for sample in UNEQUAL]
    path = mat5(tmp_path, x=cells([sample[None] for sample in samples]), y=Y)
    data = load(path, lengths="pad")
    rows = split(24, (0.7, 0.15, 0.15), 0, Y)[0]
    known = np.concatenate([samples[row] for row in rows])
    x = data.train.tensors[0].numpy()
    assert x.shape == (len(rows), 1, 7)
    for sample, row in zip(x[:, 0], rows, strict=True):
        right = (samples[row] - known.mean()) / known.std()
        np.testing.assert_allclose(sample[: LENGTHS[row]], right, rtol=1e-5, atol=1e-6)
        assert (sample[LENGTHS[row] :] == 0).all()
    assert any("samples of 3 to 7 values, filled up at the end to 7" in n for n in data.notes)
    # The same from an ordinary array that is padded with NaN.
    wide = np.full((24, 7), np.nan)
    for row, sample in enumerate(samples):
        wide[row, : len(sample)] = sample
    same = load(npz(tmp_path, x=wide, y=Y), lengths="pad")
    assert torch.equal(same.train.tensors[0], data.train.tensors[0])
    with pytest.raises(DataError, match=r"'x' has NaN or infinite values in .* row 0"):
        load(npz(tmp_path, x=wide, y=Y))


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"lengths": "crop"}, 3),
        ({"lengths": "crop", "length": 2}, 2),
        ({"lengths": "pad", "length": 5}, 5),
    ],
)
def test_lengths_are_settings(tmp_path: Path, settings: dict[str, Any], length: int) -> None:
    path = mat5(tmp_path, x=cells([np.stack([s, -s]) for s in UNEQUAL]), y=Y)
    data = load(path, normalize="none", **settings)
    rows = split(24, (0.7, 0.15, 0.15), 0, Y)[0]
    x = data.train.tensors[0]
    assert x.shape == (len(rows), 2, length)
    kept = min(length, LENGTHS[rows[0]])
    assert x[0, :, :kept].tolist() == [
        UNEQUAL[rows[0]][:kept].tolist(),
        (-UNEQUAL[rows[0]][:kept]).tolist(),
    ]


def test_files_of_samples_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for row, sample in enumerate(X):
        np.save(tmp_path / "x" / f"s{row}.npy", sample)
    np.save(tmp_path / "y.npy", NAMES)
    (tmp_path / "usual").mkdir()
    usual, found = load(npz(tmp_path / "usual", x=X, y=NAMES)), load(tmp_path)
    assert torch.equal(found.train.tensors[0], usual.train.tensors[0])
    order = "s0.npy, s1.npy, s2.npy, ..., s23.npy"
    assert any(f"a file for each sample, in the order {order}" in note for note in found.notes)


def test_labels_for_each_place_are_cut_too(tmp_path: Path) -> None:
    fields = cells([sample[None] ** 2 for sample in UNEQUAL])
    path = mat5(tmp_path, x=cells([sample[None] for sample in UNEQUAL]), y=fields)
    with pytest.raises(DataError, match=r"'y' has labels of unequal lengths; set lengths: crop"):
        load(path, lengths="pad")
    data = load(path, lengths="crop", normalize="none", kind="dense", loss="relative-l2")
    x, _ = data.train.tensors
    assert x.shape[1:] == (1, 3)


# --- windows of recordings ------------------------------------------------------------------------


def recordings(folder: Path, channels: int = 2) -> Path:
    """24 recordings of 3 to 7 values: value v of recording r is 100 r + v; channel 1 is its -1."""
    values = [100 * row + np.arange(1, n + 1.0) for row, n in enumerate(LENGTHS)]
    return mat5(folder, x=cells([np.stack([v, -v][:channels]) for v in values]), y=Y)


def test_recordings_are_cut_into_windows_and_stay_together(tmp_path: Path) -> None:
    data = load(recordings(tmp_path), lengths="window", length=3, stride=2, normalize="none")
    seen, total = [], 0
    for role in ("train", "validation", "test"):
        x, y = getattr(data, role).tensors
        groups = data.groups[role].tolist()
        assert len(x) == len(y) == len(groups)
        for window, label, group in zip(x, y, groups, strict=True):
            record, first = divmod(int(window[0, 0]), 100)
            assert record == group  # the number of the recording
            assert window.tolist() == [
                [100 * record + first + k for k in range(3)],
                [-100 * record - first - k for k in range(3)],
            ]
            assert (first - 1) % 2 == 0
            assert int(label) == Y[record]
        for record in set(groups):
            assert groups.count(record) == (LENGTHS[record] - 3) // 2 + 1
        seen.append(set(groups))
        total += len(x)
    assert sum(map(len, seen)) == len(set.union(*seen)) == 24
    note = f"24 recordings of 3 to 7 values, cut into {total} windows of 3, every 2"
    assert any(note in line for line in data.notes)


def test_windows_of_recordings_of_one_length_go_along_the_longer_axis(tmp_path: Path) -> None:
    x = np.arange(12 * 40 * 3).reshape(12, 40, 3).astype(np.float32)
    np.savez(tmp_path / "even.npz", x=x, y=np.arange(12) % 2)
    data = load(tmp_path / "even.npz", lengths="window", length=10, normalize="none")
    window = data.train.tensors[0][0]
    assert window.shape == (3, 10)
    assert (window[0, 1:] - window[0, :-1]).unique().tolist() == [3]


def test_windows_keep_the_groups_of_a_file_together_and_are_scored_by_recording(
    tmp_path: Path,
) -> None:
    person = np.arange(24) // 4
    values = [np.arange(n) + 10.0 * row for row, n in enumerate(LENGTHS)]
    path = mat5(tmp_path, x=cells([v[None] for v in values]), y=Y, person=person)
    data = load(path, lengths="window", length=3, group="person", split_seed=1)
    parts = [set(data.groups[role].tolist()) for role in ("train", "validation", "test")]
    assert len(set.union(*parts)) == 24
    people = [{record // 4 for record in part} for part in parts]
    assert sum(map(len, people)) == len(set.union(*people)) == 6


def test_the_usual_metric_of_windows_scores_recordings(tmp_path: Path) -> None:
    def metric(**settings: Any) -> str:
        config = Arrays.Config.model_validate(
            {"path": recordings(tmp_path), "lengths": "window", "length": 3, **settings}
        )
        return str(config.metric.name)

    assert metric() == "grouped-error-rate"
    assert metric(kind="regression") == "grouped-rmse"
    assert metric(metric="error-rate") == "error-rate"
    data = load(recordings(tmp_path), lengths="window", length=3, metric="error-rate")
    assert any("error-rate scores windows one by one" in note for note in data.notes)


def test_recordings_of_one_length_are_cut_too(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.arange(240.0).reshape(24, 10), y=Y)
    data = load(path, lengths="window", length=4, normalize="none")
    x = torch.cat([getattr(data, role).tensors[0] for role in ("train", "validation", "test")])
    assert x.shape == (48, 1, 4)
    starts = sorted(int(window[0, 0]) for window in x)
    assert starts == sorted([10 * r for r in range(24)] + [10 * r + 4 for r in range(24)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"samples of 3 to 7 values; say how to make them equal: lengths: pad .*window"),
        (
            {"lengths": "window", "length": 5},
            rf"{sum(n < 5 for n in LENGTHS)} recordings are shorter than a window \(length: 5\)",
        ),
    ],
)
def test_without_a_rule_and_too_short(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(recordings(tmp_path), **settings)


def test_settings_of_windows_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lengths: window needs length"):
        load(recordings(tmp_path), lengths="window")
    with pytest.raises(ValueError, match="stride goes with lengths: window"):
        load(recordings(tmp_path), lengths="pad", stride=2)


def test_places_of_windows_keep_their_labels(tmp_path: Path) -> None:
    samples = [100.0 * row + np.arange(n) for row, n in enumerate(LENGTHS)]
    path = mat5(
        tmp_path, x=cells([s[None] for s in samples]), y=cells([2 * s[None] for s in samples])
    )
    data = load(
        path, lengths="window", length=3, normalize="none", normalize_labels=False, kind="dense"
    )
    x, y = data.train.tensors
    torch.testing.assert_close(y.double(), 2 * x.double())


@pytest.mark.parametrize(
    ("write", "settings", "message"),
    [
        (lambda d: npz(d, x=X, y=Y[:9]), {}, r"'x' has 24 samples, but .* 'y' has 9"),
        (
            lambda d: npz(d, x=np.moveaxis(X, 0, -1), y=Y),
            {},
            r"'x' has 3 samples, but .*; if the last axis counts samples, set samples: last",
        ),
        (lambda d: npz(d, a=X, b=X[:, :2], y=Y), {"x": ("a", "b")}, r"'b' is \(24, 2, 10\) float"),
        (lambda d: npz(d, a=X, y=Y), {"x": ("a", "q")}, r"no array 'q'"),
        (lambda d: npz(d, x=X[:, :0], y=Y), {}, r"'x' has shape \(24, 0, 10\): its samples are em"),
        (
            lambda d: npz(d, x=2**60 + np.arange(96).reshape(24, 4), y=Y),
            {"form": "row"},
            r"'x' holds whole numbers up to 1\.15e\+18 \(channel 0\), whose differences float64",
        ),
        (
            lambda d: npz(d, x=np.uint64(2**64 - 200) + np.arange(96, dtype="u8").reshape(24, 4),
                          y=Y),
            {"form": "row"},
            r"'x' holds whole numbers up to 1\.84e\+19",
        ),
        (
            lambda d: h5(d, lambda f: (f.create_dataset("x", data=np.array(UNEQUAL, object),
                dtype=h5py.vlen_dtype("f4")), f.__setitem__("y", Y))),
            {"lengths": "crop", "length": 4},
            r"the shortest sample has 3 values, fewer than length: 4; set lengths: pad",
        ),
    ],
)  # fmt: skip
def test_complaints(
    tmp_path: Path, write: Callable[[Path], Path], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path), **settings)


def test_large_whole_numbers_that_float64_tells_apart_are_read(tmp_path: Path) -> None:
    """Nanoseconds since 1970, one second apart."""
    times = 1_700_000_000_000_000_000 + np.arange(96).reshape(24, 4) * 1_000_000_000
    x = load(npz(tmp_path, x=times, y=Y), form="row").train.tensors[0].double()
    seconds = load(npz(tmp_path, x=np.arange(96.0).reshape(24, 4), y=Y), form="row")
    torch.testing.assert_close(x, seconds.train.tensors[0].double(), atol=1e-6, rtol=0)


def test_the_form_of_samples_outlives_the_data(tmp_path: Path) -> None:
    path = mat5(tmp_path, sig=cells([s[None] for s in UNEQUAL]), cls=Y)
    raw = load(path, x="sig", y="cls", lengths="pad").raw
    kept = RawForm.of(raw.state())
    assert (kept.x_keys, kept.y_keys, kept.padded, kept.shape) == (("sig",), ("cls",), 0, (7,))
