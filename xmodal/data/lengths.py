"""Samples of unequal lengths, brought to one length by a named rule.

``pad`` fills up with NaN at the end, up to the longest training sample; ``crop`` keeps the
beginning, as much as the shortest has; ``window`` cuts each into windows, which are samples of
their own (W windows of R recordings). NaN stands for "no value" until samples are standardised,
and becomes 0 then: the mean of its channel. So padding does not depend on units, and statistics do
not depend on padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xmodal.data.rows import Array, Indices, Rows
from xmodal.errors import DataError

Rule = Literal["pad", "crop", "window"]
_CHUNK = 64
"""So many samples are in memory while they are measured."""


def is_unequal(rows: Rows) -> bool:
    """Whether every sample is an array with a length of its own."""
    return rows.dtype.kind == "O"


@dataclass(frozen=True)
class Lengths:
    """The shapes of samples of unequal lengths: all alike but for the size of ``axis``."""

    shape: tuple[int, ...]
    axis: int
    shortest: int
    longest: int

    def of(self, length: int) -> tuple[int, ...]:
        """The shape of a sample of this length."""
        return (*self.shape[: self.axis], length, *self.shape[self.axis + 1 :])


def measure(parts: Sequence[tuple[Rows, str]], known: int | None = None) -> Lengths:
    """The lengths of all samples of all ``parts`` (rows and their name), along one axis.

    ``known``: the axis along which they may differ; by default that along which they do, or the
    last. Raises DataError.
    """
    shapes: list[tuple[int, ...]] = []
    for rows, name in parts:
        if not is_unequal(rows):
            shapes.append(rows.shape[1:])
            continue
        for start in range(0, rows.shape[0], _CHUNK):
            items = rows.read(slice(start, start + _CHUNK))
            for row, item in enumerate(items, start):
                value = np.asarray(item)
                if value.dtype.kind not in "fiub" or value.size == 0:
                    what = "is empty" if value.size == 0 else f"holds {value.dtype}, not numbers"
                    raise DataError(f"{name} row {row} {what}")
                shapes.append(value.shape)
    name = parts[0][1]
    axes = {len(shape) for shape in shapes}
    if len(axes) > 1:
        raise DataError(f"{name} has samples of {min(axes)} and of {max(axes)} axes")
    sizes = np.array(shapes)
    unequal = np.flatnonzero((sizes != sizes[0]).any(axis=0))
    if known is None or known >= sizes.shape[1]:
        known = int(unequal[0]) if len(unequal) else sizes.shape[1] - 1
    wrong = unequal[unequal != known]
    if len(wrong):
        row = int((sizes[:, wrong] != sizes[0, wrong]).any(axis=1).argmax())
        raise DataError(
            f"{name} has samples that differ in more than axis {known}: row 0 is {shapes[0]}, row "
            f"{row} {shapes[row]}"
        )
    lengths = sizes[:, known]
    return Lengths(shapes[0], known, int(lengths.min()), int(lengths.max()))


@dataclass(frozen=True)
class EvenRows:
    """Samples of unequal lengths as an array: filled up with NaN, or cut, at the end."""

    rows: Rows
    name: str
    sample: tuple[int, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""
        return (self.rows.shape[0], *self.sample)

    @property
    def dtype(self) -> np.dtype[Any]:
        """A type that has NaN."""
        own = self.rows.dtype
        return own if own.kind == "f" else np.dtype(np.float64)

    def read(self, index: slice | Indices) -> Array:
        """The samples at ``index``. Raises DataError with a row that is not finite."""
        places = np.arange(self.rows.shape[0])[index]
        items, unequal = self.rows.read(index), is_unequal(self.rows)
        result = np.full((len(items), *self.sample), np.nan, self.dtype)
        for row, item in enumerate(items):
            value = np.asarray(item)
            if unequal and value.dtype.kind == "f" and not np.isfinite(value).all():
                raise DataError(f"{self.name} has NaN or infinite values; first: row {places[row]}")
            even = fitted(value[None], self.sample[self.axis], self.axis)[0]
            if even.shape != self.sample:
                raise DataError(
                    f"{self.name} row {places[row]} has shape {value.shape}; expected "
                    f"{self.sample}, of any length along axis {self.axis}"
                )
            result[row] = even
        return result


def lengths_of(rows: Rows, axis: int) -> Indices:
    """The size of ``axis`` of every sample, ``[n]``."""
    if not is_unequal(rows):
        return np.full(rows.shape[0], rows.shape[1 + axis], dtype=np.int64)
    found: list[int] = []
    for start in range(0, rows.shape[0], _CHUNK):
        items = rows.read(slice(start, start + _CHUNK))
        found += [np.asarray(item).shape[axis] for item in items]
    return np.array(found, dtype=np.int64)


def windows_of(length_R: Indices, size: int, stride: int) -> tuple[Indices, Indices]:
    """Windows of ``size`` values, every ``stride`` values: their recording and where they begin.

    What is left at the end of a recording is in no window; a shorter recording has none.
    """
    count_R = np.maximum(0, (length_R - size) // stride + 1)
    record_W = np.repeat(np.arange(len(length_R)), count_R)
    first_W = np.repeat(np.cumsum(count_R) - count_R, count_R)
    return record_W, (np.arange(len(record_W)) - first_W) * stride


@dataclass(frozen=True)
class WindowRows:
    """Windows of recordings as samples of one shape, cut when they are read.

    record_W, start_W: the recording of each window, and its first value along ``axis``.
    """

    rows: Rows
    sample: tuple[int, ...]
    axis: int
    record_W: Indices
    start_W: Indices

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""
        return (len(self.record_W), *self.sample)

    @property
    def dtype(self) -> np.dtype[Any]:
        """A type that holds all values."""
        return np.dtype(np.float64) if is_unequal(self.rows) else self.rows.dtype

    def read(self, index: slice | Indices) -> Array:
        """The windows at ``index``; every recording among them is read once."""
        record_N, start_N = self.record_W[index], self.start_W[index]
        chosen, place_N = np.unique(record_N, return_inverse=True)
        items = self.rows.read(chosen) if len(chosen) else ()
        result = np.empty((len(record_N), *self.sample), self.dtype)
        along = (slice(None),) * self.axis
        for row, (place, start) in enumerate(zip(place_N, start_N, strict=True)):
            end = start + self.sample[self.axis]
            result[row] = np.asarray(items[place])[(*along, slice(start, end))]
        return result


def fitted(x_N: Array, length: int, axis: int) -> Array:
    """Samples cut to ``length`` values along ``axis`` of a sample, or filled up with NaN."""
    along = (slice(None),) * (axis + 1)
    x_N = x_N[(*along, slice(0, length))]
    missing = length - x_N.shape[axis + 1]
    if missing == 0:
        return x_N
    width = [(0, missing if place == axis + 1 else 0) for place in range(x_N.ndim)]
    wide = x_N if x_N.dtype.kind == "f" else x_N.astype(np.float64)
    return np.pad(wide, width, constant_values=np.nan)


def even(rows: Rows, name: str, sample: tuple[int, ...], axis: int) -> Rows:
    """``rows`` with samples of shape ``sample``: cut or filled up along ``axis``."""
    if not is_unequal(rows) and rows.shape[1:] == sample:
        return rows
    return EvenRows(rows, name, sample, axis)


def wrong_padding(x_N: Array, axis: int) -> NDArray[np.bool_]:
    """Which samples hold NaN anywhere but at the end of ``axis``, through all channels ``[n]``."""
    gaps: NDArray[np.bool_] = np.moveaxis(np.isnan(x_N), axis + 1, 1)
    gaps = gaps.reshape(len(x_N), x_N.shape[axis + 1], -1)
    some, whole = np.any(gaps, axis=2), np.all(gaps, axis=2)
    # Once a place is a gap, all places after it are.
    rises = (np.diff(some.astype(np.int8), axis=1) < 0).any(axis=1)
    wrong: NDArray[np.bool_] = (some != whole).any(axis=1) | rises | np.all(whole, axis=1)
    return wrong
