"""Reads untrusted numpy pickles without running their code.

A pickle can name any function and have it called. These readers allow only the functions that
rebuild numpy arrays, and refuse every other name with a DataError before looking it up.

``mapped`` readers leave the values of large arrays in the file, which is mapped into memory: they
need no memory for them, whatever the size of the file.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

import numpy as np
from numpy.lib import format as npy

from xmodal.errors import DataError

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_MAPPED = 1 << 14
"""Strings of at least this many bytes are not copied out of a file that is mapped."""


class _Refused(pickle.UnpicklingError):
    """The file asks for more than numbers and containers."""


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 stores bytes in old pickle protocols; refuses every other codec."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    # These functions are private in numpy; a pickle names the module they were in when written.
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    numeric = np._core.numeric  # type: ignore[attr-defined]
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for module in _MULTIARRAY:
        table[module, "_reconstruct"] = multiarray._reconstruct
        table[module, "scalar"] = multiarray.scalar
    for module in _NUMERIC:
        table[module, "_frombuffer"] = numeric._frombuffer
    return table


class _NumpyOnly(pickle.Unpickler):
    """Rebuilds only numpy arrays and Python's own containers."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up an allowed name. Raises UnpicklingError for any other."""
        try:
            return _allowed()[module, name]
        except KeyError:
            raise _Refused(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse references to outside objects."""
        raise _Refused("it refers to an object outside the file")


class _Values:
    """An array that a pickle is rebuilding: its values come last, as bytes or a part of a map."""

    def __init__(self, *_: Any) -> None:
        self.array: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, values = state
        order: Any = "F" if fortran else "C"
        if dtype.hasobject:
            self.array = np.empty(shape, dtype, order=order)
            flat = self.array.ravel(order="K")
            for place, value in enumerate(values):
                flat[place] = value
        else:
            values = _latin1(values) if isinstance(values, str) else values
            self.array = _in_place(values, dtype, shape, order)


def _in_place(values: Any, dtype: np.dtype[Any], shape: Any, order: Any, *axes: Any) -> Any:
    if any(axes):
        raise _Refused("its arrays have their axes in another order")
    return np.frombuffer(values, dtype).reshape(shape, order=order)


# Python's own unpickler is also written in Python, with a table of what it does for each operation.
# Both are private, but have not changed since Python 3.8.
_Readable: Any = pickle._Unpickler


class _Mapping(_Readable):  # type: ignore[misc]
    """As ``_NumpyOnly``, but large strings of bytes are parts of the mapped file."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="latin1")
        self.stream = stream
        self.content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def find_class(self, module: str, name: str) -> Any:
        """Look up an allowed name; arrays are built where their values are."""
        table = _allowed()
        for known in _MULTIARRAY:
            table[known, "_reconstruct"] = _Values
        for known in _NUMERIC:
            table[known, "_frombuffer"] = _in_place
        try:
            return table[module, name]
        except KeyError:
            raise _Refused(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse references to outside objects."""
        raise _Refused("it refers to an object outside the file")

    def binary(self, code: str, text: bool = False) -> None:
        """A string of bytes, whose length comes first; from the map if it is large."""
        (size,) = struct.unpack(code, self.read(struct.calcsize(code)))
        frame = self._unframer.current_frame
        # From protocol 4 on, small values are read ahead in frames.
        left = 0 if frame is None else len(frame.getbuffer()) - frame.tell()
        if size < _MAPPED or 0 < left < size:
            value = self.read(size)
            self.append(value.decode("latin1") if text else value)
            return
        start = self.stream.tell() - left
        if start + size > len(self.content):
            raise EOFError("it ends within an array")
        (frame if left else self.stream).seek(size, io.SEEK_CUR)
        self.append(self.content[start : start + size])

    dispatch: ClassVar[dict[int, Any]] = {
        **_Readable.dispatch,
        pickle.BINSTRING[0]: lambda self: self.binary("<i", text=True),
        pickle.BINBYTES[0]: lambda self: self.binary("<I"),
        pickle.BINBYTES8[0]: lambda self: self.binary("<Q"),
        pickle.BYTEARRAY8[0]: lambda self: self.binary("<Q"),
    }

    def load(self) -> Any:
        """The object, with every array in its place."""
        return _settled(super().load(), {})


def _settled(value: Any, done: dict[int, Any]) -> Any:
    """``value`` with arrays for what stood for them. Containers are changed in place."""
    if isinstance(value, _Values):
        return _settled(value.array, done)
    if isinstance(value, tuple):
        return tuple(_settled(part, done) for part in value)
    if id(value) in done:
        return value
    if isinstance(value, dict | list) or (isinstance(value, np.ndarray) and value.dtype.hasobject):
        done[id(value)] = value
    if isinstance(value, dict):
        value.update({key: _settled(part, done) for key, part in value.items()})
    elif isinstance(value, list):
        value[:] = [_settled(part, done) for part in value]
    elif isinstance(value, np.ndarray) and value.dtype == object:
        flat = value.ravel(order="K")
        for place, part in enumerate(flat):
            flat[place] = _settled(part, done)
    return value


def _load(stream: BinaryIO, path: Path, mapped: bool = False) -> Any:
    try:
        # Python 2 wrote some of these files; its text and arrays need latin1.
        return _Mapping(stream).load() if mapped else _NumpyOnly(stream, encoding="latin1").load()
    except _Refused as error:
        raise DataError(
            f"{path}: xmodal refuses to run code from data files: {error}; "
            "only numpy arrays and plain containers are read"
        ) from error
    except Exception as error:
        # A damaged pickle can raise nearly anything, from EOFError to MemoryError.
        raise DataError(f"{path}: damaged pickle ({type(error).__name__}: {error})") from error


def read_pickle(path: Path, mapped: bool = False) -> Any:
    """The object in a pickle of numpy arrays and plain containers. Raises DataError.

    ``mapped``: large arrays are read-only views of the file.
    """
    try:
        with path.open("rb") as stream:
            return _load(stream, path, mapped)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def read_npy(path: Path, mapped: bool = False) -> np.ndarray[Any, Any]:
    """The array in a .npy file; arrays of objects are unpickled safely. Raises DataError.

    ``mapped``: large arrays of numbers, also those within an array of objects, are read-only views
    of the file.
    """
    try:
        with path.open("rb") as stream:
            version = npy.read_magic(stream)
            readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"version {version} of the format is not supported")
            shape, _, dtype = readers[version](stream)
            if not dtype.hasobject:
                if mapped:
                    return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
                stream.seek(0)
                return np.asarray(npy.read_array(stream, allow_pickle=False))
            found = np.asarray(_load(stream, path, mapped), dtype=object)
            return found.reshape(shape)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from error
