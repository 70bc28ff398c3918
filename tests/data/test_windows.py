"""Windows of records against sliding windows of NumPy and the published loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal.data import loader
from xmodal.data.windows import Records, cut
from xmodal.errors import DataError

RNG = np.random.default_rng(0)
LENGTHS = (30, 9, 10, 11, 57, 40)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("strides", [(1, 1, 1, 1, 1, 1), (7, 3, 5, 1, 10, 15)])
def test_where_windows_begin(last: bool, strides: tuple[int, ...]) -> None:
    record, start, count = cut(LENGTHS, 10, strides, last=last)
    wanted = []
    for number, (length, stride) in enumerate(zip(LENGTHS, strides, strict=True)):
        first = sum(LENGTHS[:number])
        end = length - 10 + (1 if last else 0)
        wanted += [(number, first + at) for at in range(0, end, stride)]
    assert list(zip(record.tolist(), start.tolist(), strict=True)) == wanted
    assert count.tolist() == [sum(n == r for r, _ in wanted) for n in range(len(LENGTHS))]


def test_records_are_standardised_one_by_one(tmp_path: Path) -> None:
    records = [RNG.integers(-900, 900, n).astype(np.int16) for n in LENGTHS]
    records[2][:] = 5  # constant
    Records.write(tmp_path, records, [3, 1, 0, 2, 1, 3], np.int16)
    found = Records.open(tmp_path).windows(np.array([4, 2, 0]), 10, 4)
    wanted = []
    for number in (4, 2, 0):
        values = records[number].astype(np.float64)
        z = (values - values.mean()) / (values.std() or 1)
        pieces = np.lib.stride_tricks.sliding_window_view(z, 10)[::4]
        wanted += [(number, piece.astype(np.float32)) for piece in pieces]
    assert len(found) == len(wanted)
    assert found.groups.tolist() == [number for number, _ in wanted]
    for (x, y), (number, piece) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x.numpy(), piece[None])
        assert x.dtype == torch.float32
        assert y == [3, 1, 0, 2, 1, 3][number]
    assert loader.labels(found).tolist() == [y.item() for _, y in found]


def test_channels(tmp_path: Path) -> None:
    record = RNG.integers(-100, 100, (20, 3)).astype(np.int8)
    Records.write(tmp_path, [record], [1], np.int8)
    mean, scale = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    for grid in (False, True):
        found = Records.open(tmp_path).windows(
            np.array([0]), 8, 6, mean=mean, scale=scale, grid=grid
        )
        x, y = found[2]
        wanted = ((record[12:20] - mean) / scale).T.astype(np.float32)
        np.testing.assert_array_equal(x.numpy(), wanted[None] if grid else wanted)
        assert (len(found), y) == (3, 1)


def test_what_is_no_record(tmp_path: Path) -> None:
    for wrong, why in (
        (np.array([1.0, np.nan]), "record 1 has NaN"),
        (np.array([]), "record 1 is float64"),
        (np.array(["a"]), "record 1 is <U1"),
        (np.array([0.5]), "do not fit into int16"),
    ):
        with pytest.raises(DataError, match=why):
            Records.write(tmp_path, [np.zeros(3, np.int16), wrong], [0, 0], np.int16)
    with pytest.raises(DataError, match="there are no records"):
        Records.write(tmp_path, [], [], np.int16)
