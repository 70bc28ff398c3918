"""Arrays on disk that are read a sample at a time: how ready data sets are written and read.

``ArrayWriter`` writes an ``.npy`` file from front to back, so preparing a data set takes the memory
of a few samples. ``Mapped`` is a data set over such files; it reads a sample when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.errors import DataError
from xmodal.files import CACHE
from xmodal.text import size

Array = NDArray[Any]


class ArrayWriter:
    """Writes an array ``[n, *shape]`` to an ``.npy`` file, some rows at a time; a context manager.

    ``count``: how many rows there must be in the end; None: as many as come. Nothing is converted:
    rows must have the shape and ``dtype`` that were announced, except that numbers of another type
    are taken if none changes its value. Raises DataError.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: Any, count: int | None = None
    ) -> None:
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)
        self.count, self.written = count, 0
        self._file: IO[bytes] = path.open("wb")
        self._start = self._header()

    def _header(self) -> int:
        """Write the header for the rows so far; it keeps its length, which leaves room for n."""
        self._file.seek(0)
        about = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.written, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self._file, about)
        return self._file.tell()

    def add(self, rows: Any) -> None:
        """Append rows ``[k, *shape]``."""
        given = np.asarray(rows)
        if given.shape[1:] != self.shape or given.ndim != len(self.shape) + 1:
            raise DataError(
                f"{self.path.name}: rows of shape {given.shape[1:]}, expected {self.shape}"
            )
        kept = np.ascontiguousarray(given, self.dtype)
        if given.dtype != self.dtype and not np.array_equal(
            kept, given, equal_nan=given.dtype.kind == "f"
        ):
            raise DataError(
                f"{self.path.name}: values of type {given.dtype} do not fit into {self.dtype}"
            )
        self._file.write(kept.data)
        self.written += len(kept)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        with self._file:
            if kind is not None:
                return
            if self.count not in (None, self.written):
                raise DataError(f"{self.path.name}: {self.written} rows, expected {self.count}")
            # The length of the header does not depend on n, so the rows stay where they are.
            assert self._header() == self._start


def open_mapped(path: Path) -> Array:
    """The array in an ``.npy`` file, mapped into memory, read-only. Raises DataError."""
    try:
        mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not an array that can be read ({error})\n"
            f"way out: make the data set in {path.parent} again"
        ) from error
    return mapped


class MappedArray:
    """An ``.npy`` file that is opened where it is read: a copy for a worker holds only its path.

    A worker that opens it when it is not the same file any more, because the data set was made
    again meanwhile, raises DataError: no run reads a part of each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _which(path)
        self._array: Array | None = open_mapped(path)

    @property
    def array(self) -> Array:
        """The mapped array."""
        if self._array is None:
            array = open_mapped(self.path)
            if _which(self.path) != self._file:
                raise DataError(f"{self.path} was replaced while it is in use; start again")
            self._array = array
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_array": None}  # a pickled map would be the whole array


def _which(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from one that takes its place; None if it cannot be told."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def mean_and_deviation(path: Path, rows: Iterable[int]) -> tuple[float, float]:
    """Mean and standard deviation of all numbers of some samples, which are read one by one."""
    x = open_mapped(path)
    total = square = 0.0
    count = 0
    for row in rows:
        numbers = np.asarray(x[row], dtype=np.float64)
        total, square = total + numbers.sum(), square + np.square(numbers).sum()
        count += numbers.size
    return total / count, np.sqrt(max(square / count - (total / count) ** 2, 0.0))


class Mapped(Dataset[tuple[Tensor, Tensor]]):
    """Samples and labels in two mapped arrays of the same length.

    ``rows``: which of them, in this order (None: all). ``prepare`` turns a sample as it stands in
    the file into the model's, float32; it must be a function of the sample alone. Labels: whole
    numbers in a one-dimensional array are classes, int64; all others become float32.
    ``ignore``, an array of the labels' shape, says where a label is unknown: there it is NaN.
    """

    def __init__(
        self,
        x: Path,
        y: Path,
        rows: Any = None,
        prepare: Callable[[Array], Tensor] | None = None,
        ignore: Path | None = None,
    ) -> None:
        self.x, self.y = MappedArray(x), MappedArray(y)
        self.ignore = None if ignore is None else MappedArray(ignore)
        self.prepare = prepare
        total = len(self.x.array)
        for other in (self.y, self.ignore):
            if other is not None and len(other.array) != total:
                raise DataError(f"{other.path}: {len(other.array)} rows; {x.name} has {total}")
        self.rows = np.arange(total) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(self.rows) and not 0 <= self.rows.min() <= self.rows.max() < total:
            raise DataError(f"{x}: has {total} rows; row {self.rows.max()} was asked for")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        raw = np.array(self.x.array[row])  # a copy: maps cannot be written to
        x = torch.from_numpy(raw).float() if self.prepare is None else self.prepare(raw)
        return x, self._labels(np.asarray([row]))[0]

    def labels(self, index_N: Tensor) -> Tensor:
        """The labels of some samples; reads no sample."""
        return self._labels(self.rows[index_N.numpy()])

    def _labels(self, rows: Array) -> Tensor:
        y = self.y.array[rows]
        if y.ndim == 1 and y.dtype.kind in "iu":
            return torch.from_numpy(y.astype(np.int64))
        labels = torch.from_numpy(y.astype(np.float32))
        if self.ignore is not None:
            labels[torch.from_numpy(self.ignore.array[rows].astype(bool))] = torch.nan
        return labels


def check_room(folder: Path, needed: int) -> None:
    """Raise DataError if the disk of ``folder`` has fewer than ``needed`` bytes left."""
    import shutil

    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder} has {size(free)} of free disk, {size(needed)} are needed\n"
            f"way out: free some, or set {CACHE} to a folder on a larger disk"
        )
