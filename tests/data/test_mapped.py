"""Arrays that are written and read a few samples at a time."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from xmodal.data import loader
from xmodal.data.mapped import ArrayWriter, Mapped, check_room
from xmodal.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (7, 3, 4), dtype=np.uint8)
Y = np.arange(7, dtype=np.uint8)


def saved(folder: Path, **arrays: np.ndarray) -> dict[str, Path]:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: folder / f"{name}.npy" for name in arrays}


@pytest.mark.parametrize("pieces", [[7], [1, 0, 4, 2]])
def test_numpy_reads_what_was_written(tmp_path: Path, pieces: list[int]) -> None:
    path, start = tmp_path / "x.npy", 0
    with ArrayWriter(path, (3, 4), np.uint8, 7) as writer:
        for piece in pieces:
            writer.add(X[start : start + piece])
            start += piece
    read = np.load(path, allow_pickle=False)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, X)


def test_other_types_must_fit(tmp_path: Path) -> None:
    with ArrayWriter(tmp_path / "y.npy", (), np.int16) as writer:
        writer.add(np.array([1.0, 300.0]))
        with pytest.raises(DataError, match="float64 do not fit into int16"):
            writer.add(np.array([0.5]))
        with pytest.raises(DataError, match=r"rows of shape \(2,\), expected \(\)"):
            writer.add(np.zeros((1, 2)))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), [1, 300])


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="2 rows, expected 3"),
        ArrayWriter(tmp_path / "y.npy", (), np.int16, 3) as writer,
    ):
        writer.add(np.array([1, 2]))


def test_samples_and_classes(tmp_path: Path) -> None:
    data = Mapped(**saved(tmp_path, x=X, y=Y), rows=[5, 0, 3])
    assert len(data) == 3
    x, y = data[1]
    assert x.dtype == torch.float32
    assert x.tolist() == X[0].tolist()
    assert (y.dtype, y.item()) == (torch.int64, 0)
    assert loader.labels(data).tolist() == [5, 0, 3]
    with pytest.raises(IndexError):
        data[3]


def test_ignored_labels_are_nan(tmp_path: Path) -> None:
    mask, ignore = RNG.integers(0, 2, (2, 7, 1, 3, 4), dtype=np.uint8)
    files = saved(tmp_path, x=X, y=mask, ignore=ignore)
    y = torch.stack([y for _, y in Mapped(**files)])
    assert y.dtype == torch.float32
    expected = np.where(ignore == 1, np.nan, mask)
    np.testing.assert_array_equal(y.numpy(), expected.astype(np.float32))


def test_a_pickled_copy_holds_no_samples(tmp_path: Path) -> None:
    big = np.arange(4_000_000, dtype=np.float32).reshape(4, -1)
    data = Mapped(**saved(tmp_path, x=big, y=Y[:4]))
    content = pickle.dumps(data)
    assert len(content) < 10_000
    assert pickle.loads(content)[3][0].equal(data[3][0])


def test_labels_are_had_without_samples(tmp_path: Path) -> None:
    files = saved(tmp_path, x=X, y=Y)

    def refuse(raw: np.ndarray) -> torch.Tensor:
        raise AssertionError("a sample was read")

    data = Mapped(**files, rows=[6, 2, 4, 1], prepare=refuse)
    joined = ConcatDataset([Subset(data, [3, 0]), data])
    assert loader.labels(joined).tolist() == [1, 6, 6, 2, 4, 1]


def test_arrays_of_other_lengths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"y.npy: 6 rows; x.npy has 7"):
        Mapped(**saved(tmp_path, x=X, y=Y[:6]))
    with pytest.raises(DataError, match="has 7 rows; row 7 was asked for"):
        Mapped(**saved(tmp_path, x=X, y=Y), rows=[7])


def test_damaged_files_say_what_to_do(tmp_path: Path) -> None:
    files = saved(tmp_path, x=X, y=Y)
    files["x"].write_bytes(files["x"].read_bytes()[:-5])
    with pytest.raises(DataError, match=r"make the data set in .* again"):
        Mapped(**files)


def test_a_full_disk_is_noticed_before(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(DataError, match="are needed\nway out"):
        check_room(tmp_path, 10**18)
