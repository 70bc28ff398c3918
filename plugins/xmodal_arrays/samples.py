"""Statistics of training samples, and data sets that apply them, in memory or row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import Moments, RawForm
from xmodal.data.arrays import Indices, Rows
from xmodal.data.lengths import wrong_padding
from xmodal.errors import DataError
from xmodal.interfaces import Pair
from xmodal_arrays.labels import chunks
from xmodal_arrays.layout import Layout

MEMORY = 1 << 31
"""Samples and labels up to this size in bytes (as float32) are kept in memory."""


def scan(
    rows: Rows,
    layout: Layout,
    name: str,
    train: Indices,
    allow_nan: bool = False,
    padded: int | None = None,
) -> Moments:
    """Read all of ``rows`` once: check that values are finite, and collect training statistics.

    ``padded``: the axis of a raw sample that may end with NaN. Raises DataError with the array, the
    number of bad rows and the first of them.
    """
    moments = Moments(layout.shape[0])
    training = np.zeros(rows.shape[0], dtype=bool)
    training[train] = True
    wrong: list[int] = []
    for at, raw_N in chunks(rows):
        x_N = layout.apply(raw_N).astype(np.float64)
        may_lack = allow_nan or padded is not None
        bad = (np.isinf(x_N) if may_lack else ~np.isfinite(x_N)).reshape(len(x_N), -1).any(axis=1)
        if padded is not None and raw_N.dtype.kind == "f":
            bad |= wrong_padding(raw_N, padded)
        if bad.any():
            wrong += (at.start + np.flatnonzero(bad)).tolist()
        elif not wrong:
            try:
                moments.add(x_N[training[at]])
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
    if wrong:
        raise DataError(
            f"{name} has NaN or infinite values in {len(wrong)} rows; first: row {wrong[0]}"
        )
    if rows.dtype.kind in "iu":
        _require_exact(moments, name)
    return moments


def _require_exact(moments: Moments, name: str) -> None:
    """Raise DataError for whole numbers whose differences are lost in float64."""
    lost_C = moments.coarse_C
    if lost_C.any():
        c = int(lost_C.argmax())
        raise DataError(
            f"{name} holds whole numbers up to {moments.largest_C[c]:.3g} (channel {c}), whose "
            "differences float64 cannot hold; leave them out if they are identifiers, or subtract "
            "the smallest"
        )


@dataclass(frozen=True, eq=False)
class FileSamples(Dataset[Pair]):
    """Selected rows of samples and labels, read on demand, prepared as ``form`` says."""

    x: Rows
    y: Rows
    index: Indices
    y_layout: Layout | None
    form: RawForm
    x_name: str
    y_name: str

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> Pair:
        x_N, y_N = self.take(self.index[item : item + 1] if item >= 0 else self.index[[item]])
        return x_N[0], y_N[0]

    def take(self, index: Indices) -> Pair:
        """Samples ``[n, *shape]`` float32 and labels (numbers: float64) at rows ``index``."""
        raw_N = np.ascontiguousarray(self.x.read(index), dtype=np.float64)
        x_N = self.form.apply(torch.from_numpy(raw_N))
        self.form.require_float32(x_N, self.x_name, index)
        y_N = self.y.read(index)
        if self.y_layout is not None:
            y_N = self.y_layout.apply(y_N)
        if self.y_layout is None and y_N.dtype.kind != "f":
            return x_N, torch.from_numpy(y_N)
        y = torch.from_numpy(np.ascontiguousarray(y_N, dtype=np.float64))
        y = self.form.standardise_labels(y)
        self.form.require_float32(y.float(), self.y_name, index)
        return x_N, y

    def fitted(self) -> Dataset[Pair]:
        """A tensor data set if it fits into memory, otherwise this data set."""
        sizes = [int(np.prod(rows.shape[1:], dtype=np.int64)) for rows in (self.x, self.y)]
        if 4 * sum(sizes) * len(self) > MEMORY or len(self) == 0:
            return self
        step = max(1, (1 << 24) // max(1, sum(sizes)))
        pieces = [self.take(self.index[i : i + step]) for i in range(0, len(self), step)]
        x_N, y_N = (torch.cat(column) for column in zip(*pieces, strict=True))
        return cast("Dataset[Pair]", TensorDataset(x_N, y_N))


class Affine(nn.Module):
    """Maps standardised predictions to the unit of the labels, for losses that need that unit."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    @classmethod
    def of(cls, mean: Tensor, deviation: Tensor) -> Affine:
        """The inverse of standardising, in float32."""
        return cls(mean.float(), deviation.float())

    def forward(self, prediction: Tensor) -> Tensor:
        """Standardised predictions ``[B, K, *shape]`` to the same in physical units."""
        return prediction * self.deviation + self.mean
