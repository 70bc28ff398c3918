"""NumPy's files: ``.npy``, which is mapped into memory, and ``.npz``.

An array that an ``.npz`` holds as it is (``numpy.savez``) is mapped, too. A packed one is unpacked
while it is read from front to back, and held in memory when its rows are asked for in any order.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from xmodal import text
from xmodal.data.rows import (
    Array,
    ArrayRows,
    Indices,
    NamedArray,
    Rows,
    checked_size,
    described,
    reading,
    refuse_bomb,
    refuse_large,
    refuse_type,
    refused,
)
from xmodal.errors import DataError

_MAGIC = b"\x93NUMPY"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Header:
    """What the header of an ``.npy`` says, and how many bytes it takes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    length: int

    @classmethod
    def read(cls, stream: IO[bytes]) -> Header:
        """Read the header at the beginning of a stream. Raises what NumPy raises."""
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"unknown version {version} of the format")
        one = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        return cls(shape, fortran, dtype, stream.tell())


@dataclass
class MappedRows:
    """Rows of an array that stands in a file as it is, from byte ``start`` on.

    ``crc``: the checksum that the file claims for ``crc_span`` bytes; it is checked once.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int
    crc: int | None = None
    crc_span: tuple[int, int] = (0, 0)
    _array: Array | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled map would be a copy of the whole array.
        return {**self.__dict__, "_array": None}

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``, copied. Raises DataError for a damaged file."""
        with reading(f"{self.file}: {self.name}"):
            if self._array is None:
                self._check()
                where = self.file, self.dtype, "r", self.start, self.shape
                self._array = np.memmap(*where, order="F" if self.fortran else "C")  # type: ignore[call-overload]
            return np.array(self._array[index])

    def _check(self) -> None:
        if self.crc is None:
            return
        found, (at, left) = 0, self.crc_span
        with self.file.open("rb") as stream:
            stream.seek(at)
            while left and (piece := stream.read(min(left, _PIECE))):
                found, left = zlib.crc32(piece, found), left - len(piece)
        if found != self.crc:
            raise DataError(f"{self.file}: {self.name} is damaged: its checksum (CRC) is wrong")
        self.crc = None


@dataclass
class PackedRows:
    """Rows of a packed array of an ``.npz``."""

    file: Path
    member: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    stored: int
    _array: Array | None = field(default=None, repr=False)
    _stream: IO[bytes] | None = field(default=None, repr=False)
    _at: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None, "_stream": None}

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``; slices in ascending order need no memory but their own.

        Raises DataError for a damaged file.
        """
        with reading(f"{self.file}: {self.name}"):
            size = prod(self.shape) * self.dtype.itemsize
            refuse_bomb(f"{self.file}: {self.name}", size, self.stored)
            in_order = not self.fortran or len(self.shape) == 1
            if self._array is None and isinstance(index, slice) and in_order:
                start, stop, step = index.indices(self.shape[0])
                if step == 1:
                    return self._next(start, max(start, stop))
            if self._array is None:
                refuse_large(f"{self.file}: {self.name}", size)
                self._open()
                flat = self._take(prod(self.shape))
                self._array = flat.reshape(self.shape, order="F" if self.fortran else "C")
                self._close()
            return np.array(self._array[index])

    def _next(self, start: int, stop: int) -> Array:
        """Rows of a C-ordered array; goes back to the front only if it must."""
        if self._stream is None or start < self._at:
            self._open()
        width = prod(self.shape[1:])
        while self._at < start:
            step = min(start - self._at, max(1, _PIECE // max(1, width * self.dtype.itemsize)))
            self._take(step * width)
            self._at += step
        rows = self._take((stop - start) * width).reshape(stop - start, *self.shape[1:])
        self._at = stop
        if stop == self.shape[0]:
            self._close()
        return rows

    def _open(self) -> None:
        with zipfile.ZipFile(self.file) as pack:
            self._stream = pack.open(self.member)  # keeps the file open until it is closed itself
        self._at = 0
        Header.read(self._stream)

    def _close(self) -> None:
        # Only at the end of the stream zipfile compares the checksum.
        if self._stream is not None and self._stream.read(1):
            raise DataError(f"{self.file}: {self.name} holds more than its header says")
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _take(self, count: int) -> Array:
        assert self._stream is not None
        result = np.empty(count, self.dtype)
        bytes_N = result.view(np.uint8)
        at = 0
        while at < len(bytes_N):
            piece = self._stream.read(min(_PIECE, len(bytes_N) - at))
            if not piece:
                raise DataError(
                    f"{self.file}: {self.name} ends too early; the file is damaged or cut off"
                )
            bytes_N[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return result


def npy(path: Path, key: str) -> NamedArray:
    """The array of an ``.npy`` file. Raises DataError if it has no header."""
    name = f"'{text.shown(key)}'"
    where = f"{path}: {name}"
    with reading(path, ".npy"), path.open("rb") as stream:
        head, size = Header.read(stream), path.stat().st_size

    def rows() -> Rows:
        refuse_type(where, head.dtype)
        checked_size(where, head.shape, head.dtype, size - head.length)
        if 0 in head.shape:
            return ArrayRows(np.empty(head.shape, head.dtype))
        return MappedRows(path, name, head.shape, head.dtype, head.fortran, head.length)

    return NamedArray.of(described(head.shape, head.dtype), rows, (path,))


def npz(path: Path) -> dict[str, NamedArray]:
    """The arrays of an ``.npz`` file; other files in it are left out. Raises DataError."""
    with reading(path, ".npz"), zipfile.ZipFile(path) as pack:
        members = {}
        for info in pack.infolist():
            with reading(f"{path}: '{text.shown(info.filename)}'"), pack.open(info) as stream:
                if stream.read(len(_MAGIC)) == _MAGIC:
                    members[info] = info.filename.removesuffix(".npy")
        count = Counter(members.values())
        entries = {}
        for info, key in members.items():
            entries[key] = _member(path, pack, info, key)
            if count[key] > 1:
                message = f"{path}: there are {count[key]} arrays '{text.shown(key)}' in it"
                entries[key] = refused("more than once", message)
    return entries


def _member(path: Path, pack: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> NamedArray:
    name = f"'{text.shown(key)}'"
    where = f"{path}: {name}"
    with reading(where), pack.open(info) as stream:
        head = Header.read(stream)

    def rows() -> Rows:
        refuse_type(where, head.dtype)
        checked_size(where, head.shape, head.dtype, info.file_size - head.length)
        if 0 in head.shape:
            return ArrayRows(np.empty(head.shape, head.dtype))
        if info.compress_type == zipfile.ZIP_STORED:
            start = _start(path, info)
            span = start, info.file_size
            at = start + head.length
            return MappedRows(path, name, head.shape, head.dtype, head.fortran, at, info.CRC, span)
        stored = info.compress_size
        return PackedRows(path, info.filename, name, head.shape, head.dtype, head.fortran, stored)

    return NamedArray.of(described(head.shape, head.dtype), rows, (path,))


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin (section 4.3.7 of the ZIP specification)."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", stream.read(4))
    return int(info.header_offset + 30 + name + extra)
