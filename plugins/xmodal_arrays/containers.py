"""Named arrays in files: ``.npz``, folders of ``.npy``, HDF5.

Headers are read first, values on demand. Pickles are never read. ``.npy`` files are mapped into
memory, and HDF5 is read row by row.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xmodal.data.tables import SUFFIXES as TABLES
from xmodal.errors import DataError, did_you_mean
from xmodal.text import shortlist

Array = NDArray[Any]
Indices = NDArray[np.int64]
SUFFIXES = (".npz", ".npy", *TABLES, ".h5", ".hdf5")
PADDING = (
    "an array of Python objects (samples of different lengths?), which is never unpickled; "
    "pad every sample to one length and save the stacked array: "
    "np.stack([np.pad(a, (0, length - len(a))) for a in samples])"
)


class Rows(Protocol):
    """An array whose first axis counts samples, read a few rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The values' type."""

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``, in memory."""


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array in memory or memory-mapped."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The values' type."""
        return self.array.dtype

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``."""
        return np.asarray(self.array[index])


@dataclass
class NpzRows:
    """Rows of a member of an ``.npz``; a first read decompresses the whole member."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _array: Array | None = field(default=None, repr=False)

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``. Raises DataError for a damaged file."""
        if self._array is None:
            try:
                with np.load(self.file, allow_pickle=False) as pack:
                    self._array = pack[self.key]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.file}: '{self.key}' cannot be read: {error}") from error
        return np.asarray(self._array[index])


@dataclass
class H5Rows:
    """Rows of an HDF5 data set; every process opens the file for itself."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _data: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``, in that order."""
        import h5py

        if self._data is None:
            data = h5py.File(self.file, "r")[self.key]
            self._data = data.asstr() if h5py.check_string_dtype(self.dtype) else data
        if isinstance(index, slice):
            return np.asarray(self._data[index])
        # HDF5 accepts only increasing indices without repetition.
        rows, back = np.unique(index, return_inverse=True)
        return np.asarray(self._data[rows])[back]


@dataclass(frozen=True)
class Container:
    """Named arrays of one file, or of one folder of ``.npy`` files (``files`` says which)."""

    path: Path
    arrays: Mapping[str, Rows]
    files: Mapping[str, Path]

    def inventory(self) -> str:
        """All arrays, with shapes and types."""
        arrays = (f"'{key}' {rows.shape} {rows.dtype}" for key, rows in self.arrays.items())
        return shortlist(arrays) or "nothing"

    def get(self, key: str, setting: str) -> Rows:
        """The array ``key``. Raises DataError with the nearest key and all shapes."""
        if key not in self.arrays:
            if key in self.files:
                _npy(self.files[key])
            raise DataError(
                f"{self.path}: no array '{key}'{did_you_mean(key, self.arrays)}; "
                f"it has {self.inventory()} (set {setting}:)"
            )
        rows = self.arrays[key]
        if rows.dtype.kind == "O" and not _is_text(rows.dtype):
            raise DataError(f"{self.files[key]}: '{key}' is {PADDING}")
        if not rows.shape or rows.shape[0] == 0:
            raise DataError(f"{self.files[key]}: '{key}' has no samples, shape {rows.shape}")
        return rows


def _is_text(dtype: np.dtype[Any]) -> bool:
    import h5py

    return h5py.check_string_dtype(dtype) is not None


def existing(path: Path) -> Path:
    """``path`` with ``~`` expanded. Raises DataError with the nearest name if it does not exist."""
    path = path.expanduser()
    if path.exists():
        if path.is_file() and path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
        return path
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such file; there is no folder {path.parent}")
    names = sorted(p.name for p in path.parent.iterdir())
    raise DataError(f"{path}: no such file{did_you_mean(path.name, names)}")


def open_container(path: Path) -> Container:
    """Read the headers of an ``.npz`` or HDF5 file, or of a folder's ``.npy`` files."""
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        arrays: dict[str, Rows] = {}
        for key, file in files.items():
            # A damaged file matters only if it is needed; ``Container.get`` then opens it again.
            with suppress(DataError):
                arrays[key] = _npy(file)
        return Container(path, arrays, files)
    packed = _npz(path) if path.suffix.lower() == ".npz" else _hdf5(path)
    return Container(path, packed, dict.fromkeys(packed, path))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    return shape, dtype


def _npz(path: Path) -> dict[str, Rows]:
    arrays: dict[str, Rows] = {}
    try:
        with zipfile.ZipFile(path) as pack:
            for name in pack.namelist():
                with pack.open(name) as stream:
                    shape, dtype = _header(stream)
                key = name.removesuffix(".npy")
                arrays[key] = NpzRows(path, key, shape, dtype)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from error
    return arrays


def _npy(path: Path) -> Rows:
    existing(path)
    try:
        with path.open("rb") as stream:
            shape, dtype = _header(stream)
        if dtype.kind == "O" or 0 in shape:
            # Neither can be mapped; ``Container.get`` reports the error if the array is needed.
            return ArrayRows(np.empty(shape, dtype=dtype))
        return ArrayRows(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as .npy: {error}") from error


def _hdf5(path: Path) -> dict[str, Rows]:
    import h5py

    arrays: dict[str, Rows] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = H5Rows(path, name, tuple(item.shape), item.dtype)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as HDF5: {error}") from error
    return arrays
