"""PDEBench's published HDF5 files, of which only the time slices that a task uses are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmodal.errors import DataError
from xmodal.text import shortlist

Floats = npt.NDArray[np.float32]

PIECE = 2**26
"""Bytes that are read at once, about; memory does not grow with the file."""


@dataclass(frozen=True)
class Field:
    """One channel of a sample: an array of the file, at one time, and one of its channels.

    ``time``: index on the axis after the samples; None if the array has no such axis. ``channel``:
    index on the last axis; None if the array has no channels.
    """

    array: str
    time: int | None = None
    channel: int | None = None


@dataclass(frozen=True)
class FileLayout:
    """How a published file holds its samples.

    ``shapes``: the shape of one sample of each array. ``grouped``: every sample is a group
    ('0000', '0001', ...; in the order of their numbers) that holds the arrays; otherwise the arrays
    have an axis of samples in front. ``x`` and ``y``: the channels of inputs and labels.
    """

    shapes: dict[str, tuple[int, ...]]
    x: tuple[Field, ...]
    y: tuple[Field, ...]
    grouped: bool = False

    def grid(self, field: Field) -> tuple[int, ...]:
        """The shape of the points of a channel."""
        shape = self.shapes[field.array]
        last = len(shape) if field.channel is None else -1
        return shape[0 if field.time is None else 1 : last]

    @contextmanager
    def open(self, path: Path) -> Iterator[PublishedFile]:
        """Open a file and check its arrays. Raises DataError."""
        import h5py

        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{path}: not an HDF5 file that can be read ({error})") from None
        with file:
            yield PublishedFile(path, file, self)


class PublishedFile:
    """An open file. ``samples`` is how many it holds."""

    def __init__(self, path: Path, file: Any, layout: FileLayout) -> None:
        self.path, self.layout = path, layout
        if layout.grouped:
            names = [name for name in file if not name.startswith(".")]
            if wrong := [name for name in names if not name.isdecimal()]:
                raise DataError(
                    f"{path}: expected one group for each sample, named by its number (0000, 0001, "
                    f"...); it has {shortlist(wrong)}"
                )
            self.groups = sorted(names, key=int)
            self.samples = len(self.groups)
            self._file = file
            if self.groups:
                self._checked(file, f"{self.groups[0]}/", ())
        else:
            counts = {len(array) for array in self._checked(file, "", (None,)).values()}
            if len(counts) > 1:
                raise DataError(f"{path}: its arrays have {shortlist(map(str, counts))} samples")
            (self.samples,) = counts
            self._arrays = self._checked(file, "", (None,))
        if not self.samples:
            raise DataError(f"{path}: holds no samples")

    def _checked(self, file: Any, prefix: str, first: tuple[None, ...]) -> dict[str, Any]:
        found = {}
        for name, shape in self.layout.shapes.items():
            array = file.get(f"{prefix}{name}")
            wanted = ", ".join(["samples"] * len(first) + [str(side) for side in shape])
            if not hasattr(array, "shape"):
                raise DataError(
                    f"{self.path}: no array '{prefix}{name}' [{wanted}]; it has {shortlist(file)}"
                )
            if array.shape[len(first) :] != shape or array.ndim != len(first) + len(shape):
                raise DataError(
                    f"{self.path}: '{prefix}{name}' has shape {list(array.shape)}, expected "
                    f"[{wanted}]"
                )
            if array.dtype.kind != "f":
                raise DataError(f"{self.path}: '{prefix}{name}' holds {array.dtype}, not numbers")
            found[name] = array
        return found

    def pieces(self) -> Iterator[tuple[Floats, Floats]]:
        """Inputs ``[n, C, *grid]`` and labels, some samples at a time. Raises DataError."""
        layout = self.layout
        size = 4 * sum(prod(layout.grid(field)) for field in (*layout.x, *layout.y))
        step = max(1, PIECE // size)
        for start in range(0, self.samples, step):
            stop = min(start + step, self.samples)
            yield self._read(layout.x, start, stop), self._read(layout.y, start, stop)

    def _read(self, fields: Sequence[Field], start: int, stop: int) -> Floats:
        values = np.empty((stop - start, len(fields), *self.layout.grid(fields[0])), np.float32)
        try:
            if self.layout.grouped:
                for row, group in enumerate(self.groups[start:stop]):
                    arrays = self._checked(self._file, f"{group}/", ())
                    for channel, field in enumerate(fields):
                        values[row, channel] = arrays[field.array][_slab(field)]
            else:
                for channel, field in enumerate(fields):
                    slab = (slice(start, stop), *_slab(field))
                    values[:, channel] = self._arrays[field.array][slab]
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read to its end ({error})") from None
        wrong = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if wrong.any():
            raise DataError(
                f"{self.path}: sample {start + int(wrong.argmax())} has NaN or infinite values"
            )
        return values


def _slab(field: Field) -> tuple[Any, ...]:
    """The part of one sample's array that a channel is."""
    time = () if field.time is None else (field.time,)
    return time if field.channel is None else (*time, ..., field.channel)
