"""Files of named arrays, read in one way for training and for prediction: ``.npz``, ``.npy``,
HDF5, MATLAB's ``.mat``, and folders.

Headers are read first, values on demand, a few samples at a time. In a folder every ``name.npy`` is
an array, and so is every folder ``name`` that holds one ``.npy`` a sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xmodal import text
from xmodal.data.hdf5 import hdf5
from xmodal.data.matlab import matlab
from xmodal.data.numpy_files import Header, npy, npz
from xmodal.data.rows import (
    Array,
    ArrayRows,
    FlatRows,
    Indices,
    NamedArray,
    Rows,
    StackedRows,
    TextRows,
    described,
    existing,
    reading,
    refuse_large,
    refuse_type,
    refused,
)
from xmodal.errors import DataError, did_you_mean

__all__ = [
    "LABEL_KEYS",
    "SAMPLE_KEYS",
    "SUFFIXES",
    "Array",
    "ArrayRows",
    "Container",
    "FolderRows",
    "Indices",
    "Rows",
    "described",
    "existing",
    "first_key",
    "open_container",
    "row_labels",
]

SUFFIXES = (".npz", ".npy", ".h5", ".hdf5", ".mat")
SAMPLE_KEYS = ("x", "data", "inputs", "features", "samples")
LABEL_KEYS = ("y", "labels", "label", "targets", "target")
"""What samples and labels are called if nobody says it, in the order in which they are tried."""
Axis = Literal["first", "last"]


@dataclass(frozen=True)
class Container:
    """Named arrays of one file or one folder."""

    path: Path
    entries: Mapping[str, NamedArray]

    def inventory(self) -> str:
        """All arrays, with shapes and types."""
        shown = [
            f"'{text.shown(key, 32)}' {entry.says()}" if number < text.MOST_NAMES else key
            for number, (key, entry) in enumerate(self.entries.items())
        ]
        return text.shortlist(shown) or "nothing"

    def get(self, key: str, setting: str) -> Rows:
        """The array ``key``, which ``setting`` names.

        Raises DataError: with the nearest key and all shapes if there is none, and for values that
        are neither numbers nor text.
        """
        if key not in self.entries:
            raise DataError(
                f"{self.path}: no array '{text.shown(key)}'{did_you_mean(key, self.entries)}; "
                f"it has {self.inventory()} (set {setting})"
            )
        rows, name = self.entries[key].open(), self.name(key)
        if not rows.shape or rows.shape[0] == 0:
            raise DataError(f"{name} has no samples, shape {rows.shape}")
        return TextRows(rows, name) if rows.dtype.kind == "S" else rows

    def scalar(self, key: str) -> Any:
        """The value of the array ``key``, which has no axes. Raises DataError."""
        rows = self.entries[key].open() if key in self.entries else None
        if rows is None or rows.shape:
            raise DataError(
                f"{self.path}: no single value '{text.shown(key)}'; it has {self.inventory()}"
            )
        return rows.read(()).item()  # type: ignore[arg-type]  # NumPy's index of no axes

    def stacked(self, keys: Sequence[str], setting: str) -> Rows:
        """Several arrays of one shape side by side, as channels. Raises DataError."""
        parts = tuple(self.get(key, setting) for key in keys)
        if len(parts) == 1:
            return parts[0]
        for key, part in zip(keys, parts, strict=True):
            if part.shape != parts[0].shape or part.dtype.kind not in "fiub":
                shown = described(part.shape, part.dtype)
                raise DataError(
                    f"{self.name(key)} is {shown}; '{keys[0]}' is {parts[0].shape}: channels are "
                    "numbers of one shape"
                )
        return StackedRows(parts)

    def name(self, *keys: str) -> str:
        """What messages call an array: its file and its key."""
        shown = text.shortlist(f"'{text.shown(key)}'" for key in keys)
        file = self.path
        if self.path.is_dir() and len(keys) == 1:
            file = next(iter(self.entries[keys[0]].files()), file)
        return f"{file}: {shown}"

    def files(self, *keys: str) -> tuple[Path, ...]:
        """All files that these arrays draw on."""
        return tuple(dict.fromkeys(file for key in keys for file in self.entries[key].files()))


def open_container(path: Path, axis: Axis = "first") -> Container:
    """Read the headers of a file or of a folder of ``.npy`` files.

    ``axis``: which axis of an array counts its samples. Raises DataError.
    """
    path, last = existing(path), axis == "last"
    suffix = path.suffix.lower()
    if path.is_dir():
        entries = _folder(path)
    elif suffix in (".npz", ".npy"):
        entries = npz(path) if suffix == ".npz" else {path.stem: npy(path, path.stem)}
    else:
        return Container(path, matlab(path, last) if suffix == ".mat" else hdf5(path, last))
    return Container(path, {key: _last(path, e) for key, e in entries.items()} if last else entries)


def _last(path: Path, entry: NamedArray) -> NamedArray:
    """An array whose last axis counts samples: NumPy's files are then read as a whole."""

    def rows() -> Rows:
        found = entry.open()
        refuse_large(str(path), prod(found.shape) * found.dtype.itemsize)
        values = found.read(slice(None)) if found.shape else np.zeros(())
        return ArrayRows(np.moveaxis(values, -1, 0) if values.ndim else values)

    return NamedArray(lambda: f"{entry.says()}, samples last", rows, entry.files)


def first_key(container: Container, names: Sequence[str]) -> str | None:
    """The first of ``names`` that the container has, in upper or lower case; None if none."""
    lower = {key.lower(): key for key in reversed(list(container.entries))}
    return next((lower[name] for name in names if name in lower), None)


def row_labels(y: Rows, count: int) -> Rows:
    """Labels of ``count`` samples; a row ``(1, n)`` and axes of size 1 after ``(n, 1)`` go."""
    if y.shape == (1, count) and count > 1:
        return ArrayRows(y.read(slice(None))[0])
    if len(y.shape) > 2 and prod(y.shape[1:]) == 1:
        return FlatRows(y)
    return y


def _folder(path: Path) -> dict[str, NamedArray]:
    entries: dict[str, NamedArray] = {}
    for file in sorted(path.iterdir()):
        if file.is_dir() and any(file.glob("*.npy")):
            entries[file.name] = _samples(file)
        elif file.suffix == ".npy":
            try:
                entries[file.stem] = npy(existing(file), file.stem)
            except DataError as error:
                # A damaged file matters only if it is needed.
                entries[file.stem] = refused("damaged", str(error), (file,))
    return entries


def _samples(folder: Path) -> NamedArray:
    files = tuple(sorted(folder.glob("*.npy"), key=_natural))
    return NamedArray.of(f"{len(files)} files, one a sample", lambda: _one_each(files), files)


def _natural(file: Path) -> list[tuple[int, int | str]]:
    """Orders ``s2`` before ``s10``."""
    parts = re.split(r"(\d+)", file.stem)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _one_each(files: Sequence[Path]) -> Rows:
    headers = []
    for file in files:
        with reading(existing(file), ".npy"), file.open("rb") as stream:
            headers.append(Header.read(stream))
    dtype = np.result_type(*(head.dtype for head in headers))
    shapes = {head.shape for head in headers}
    for file, head in zip(files, headers, strict=True):
        refuse_type(str(file), head.dtype)
        if len(head.shape) != len(headers[0].shape):
            raise DataError(f"{file} has {len(head.shape)} axes; {files[0]} {headers[0].shape}")
    if len(shapes) == 1:
        return FolderRows(tuple(files), (len(files), *shapes.pop()), dtype)
    return FolderRows(tuple(files), (len(files),), np.dtype(object))


@dataclass
class FolderRows:
    """Rows that have a file each; an object array of samples if their shapes differ."""

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, index: slice | Indices) -> Array:
        """The samples at ``index``. Raises DataError for a damaged file."""
        places = np.arange(len(self.files))[index]
        result = np.empty((len(places), *self.shape[1:]), self.dtype)
        for row, place in enumerate(places):
            file = self.files[place]
            result[row] = npy(existing(file), file.stem).open().read(slice(None))
        return result
