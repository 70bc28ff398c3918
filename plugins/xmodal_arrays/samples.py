"""Statistics of training samples, and data sets that apply them, in memory or row by row.

x gets its layout, is standardised and cast to float32; y gets its layout and keeps its unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from xmodal.errors import DataError
from xmodal.interfaces import Pair
from xmodal_arrays.containers import Array, Indices, Rows
from xmodal_arrays.labels import chunks
from xmodal_arrays.layout import Layout

MEMORY = 1 << 31
"""Samples and labels up to this size in bytes (as float32) are kept in memory."""


@dataclass(frozen=True)
class SampleScale:
    """Mean and deviation, broadcastable to ``[n, *shape]``."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def apply(self, x_N: Array) -> Array:
        """Standardise."""
        return (x_N - self.mean) / self.deviation


class Moments:
    """Mean and standard deviation per channel, chunk by chunk (Chan et al. 1979), ignoring NaN."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        size = layout.shape[0]
        self.count, self.mean, self.squares = np.zeros(size), np.zeros(size), np.zeros(size)
        self.binary = np.ones(size, dtype=bool)

    def add(self, x_N: Array) -> None:
        """Add samples ``[n, *shape]``."""
        axes = tuple(axis for axis in range(x_N.ndim) if axis != 1)
        known = ~np.isnan(x_N)
        count = known.sum(axis=axes)
        safe = np.maximum(count, 1)
        mean = np.where(known, x_N, 0).sum(axis=axes) / safe
        shape = (1, -1, *(1,) * (x_N.ndim - 2))
        squares = (np.where(known, x_N - mean.reshape(shape), 0) ** 2).sum(axis=axes)
        total = np.maximum(self.count + count, 1)
        gap = mean - self.mean
        self.mean = self.mean + gap * count / total
        self.squares = self.squares + squares + gap**2 * self.count * count / total
        self.count = self.count + count
        self.binary &= (~known | np.isin(x_N, (0, 1))).all(axis=axes)

    def scale(self, keep: NDArray[np.bool_] | None = None) -> SampleScale:
        """The scale; channels in ``keep`` are not changed, constant channels are only centred."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        flat = deviation <= 1e-12 * np.maximum(np.abs(self.mean), 1)
        deviation = np.where(flat, 1.0, deviation)
        mean = self.mean
        if keep is not None:
            mean, deviation = np.where(keep, 0.0, mean), np.where(keep, 1.0, deviation)
        shape = (-1, *(1,) * (len(self.layout.shape) - 1))
        return SampleScale(mean.reshape(shape), deviation.reshape(shape))


def scan(rows: Rows, layout: Layout, name: str, train: Indices, allow_nan: bool = False) -> Moments:
    """Read all of ``rows`` once: check that values are finite, and collect training statistics.

    Raises DataError with the array, the number of bad rows and the first of them.
    """
    moments = Moments(layout)
    training = np.zeros(rows.shape[0], dtype=bool)
    training[train] = True
    wrong: list[int] = []
    for at, raw_N in chunks(rows):
        x_N = layout.apply(raw_N).astype(np.float64)
        bad = np.isinf(x_N) if allow_nan else ~np.isfinite(x_N)
        if bad.any():
            wrong += (at.start + np.flatnonzero(bad.reshape(len(x_N), -1).any(axis=1))).tolist()
        elif not wrong:
            moments.add(x_N[training[at]])
    if wrong:
        raise DataError(
            f"{name} has NaN or infinite values in {len(wrong)} rows; first: row {wrong[0]}"
        )
    return moments


@dataclass(frozen=True, eq=False)
class FileSamples(Dataset[Pair]):
    """Selected rows of samples and labels, read on demand."""

    x: Rows
    y: Rows
    index: Indices
    x_layout: Layout
    y_layout: Layout | None
    scale: SampleScale | None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> Pair:
        x_N, y_N = self.take(self.index[item : item + 1] if item >= 0 else self.index[[item]])
        return x_N[0], y_N[0]

    def take(self, index: Indices) -> Pair:
        """Samples ``[n, *shape]`` float32 and labels at rows ``index``."""
        x_N = self.x_layout.apply(self.x.read(index)).astype(np.float64)
        if self.scale is not None:
            x_N = self.scale.apply(x_N)
        y_N = self.y.read(index)
        if self.y_layout is not None:
            y_N = np.ascontiguousarray(self.y_layout.apply(y_N), dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(x_N, dtype=np.float32)), torch.from_numpy(y_N)

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
    """Maps standardised predictions back to the unit of the labels."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    @classmethod
    def of(cls, scale: SampleScale) -> Affine:
        """The inverse of standardising with ``scale``."""
        mean, deviation = (torch.from_numpy(v).float() for v in (scale.mean, scale.deviation))
        return cls(mean, deviation)

    def forward(self, prediction: Tensor) -> Tensor:
        """Standardised predictions ``[B, K, *shape]`` to the same in physical units."""
        return prediction * self.deviation + self.mean
