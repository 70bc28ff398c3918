"""Reads untrusted numpy pickles without running their code, and within a limit of memory.

A pickle can name any function and have it called. These readers allow only the functions that
rebuild numpy arrays, and refuse every other name with a DataError before looking it up. A pickle
can also ask for any amount of memory in a few bytes; what would exceed the limit is refused before
it is allocated.

``mapped`` readers leave the values of large arrays in the file, which is mapped into memory: they
need no memory for them, whatever the size of the file.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.lib import format as npy

from xmodal import text
from xmodal.errors import DataError

LIMIT = 4 * 2**30
"""Bytes that the content of a file may take in memory, unless the caller says otherwise."""
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_MAPPED = 1 << 14
"""Strings of at least this many bytes are not copied out of a file that is mapped."""
_KIND = re.compile(r"[biufcSUOV]\d*|\?")
"""Names of the types of arrays that are read: numbers, text, bytes and objects, no records."""
_STEP = 64
"""Bytes counted for each operation of a pickle: about those of a number in a list."""


class _Refused(pickle.UnpicklingError):
    """The file asks for more than numbers and containers."""


class _TooLarge(Exception):
    """The content would take more memory than it may."""


class _Budget:
    """Bytes that may still be taken."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def take(self, count: int) -> None:
        """Count bytes that are about to be allocated. Raises _TooLarge."""
        self.left -= count
        if self.left < 0:
            raise _TooLarge


class _Bounded:
    """A file of which nothing is asked for that it does not hold, or that would be too large."""

    def __init__(self, stream: BinaryIO, budget: _Budget) -> None:
        self.stream, self.budget = stream, budget
        self.size = os.fstat(stream.fileno()).st_size

    def read(self, count: int) -> bytes:
        """``count`` bytes, or fewer at the end of the file (as files do)."""
        if count > 1 and count > self.size - self.stream.tell():
            raise EOFError("it ends within a value")
        self.budget.take(count)
        return self.stream.read(count)

    def readline(self) -> bytes:
        """The rest of a line."""
        line = self.stream.readline(max(0, self.budget.left) + 1)
        self.budget.take(len(line))
        return line


class _Values:
    """An array that a pickle is rebuilding: its values come last, as bytes or a part of a map."""

    def __init__(self, array: Any = None) -> None:
        self.array = array


class _Kind:
    """A type of numbers that a pickle is rebuilding: its order of bytes comes last.

    NumPy's own ``dtype.__setstate__`` trusts what it is given, and a damaged state crashes it.
    """

    def __init__(self, name: Any = None, *_: Any) -> None:
        if not isinstance(name, str) or not _KIND.fullmatch(name):
            raise _Refused(f"its arrays hold {text.shown(name)}")
        self.dtype = np.dtype(name)

    def order(self, state: Any) -> None:
        """Take the order of bytes out of a state; all else in it follows from the name."""
        order: Any = state[1] if isinstance(state, tuple) and len(state) > 4 else ""
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _Refused("its arrays hold records")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


# Python's own unpickler is also written in Python, with a table of what it does for each operation.
# Both are private, but have not changed since Python 3.8.
_Readable: Any = pickle._Unpickler


class _Operations(dict[int, Callable[[Any], None]]):
    """What to do for each operation of a pickle; every one is counted."""

    budget: _Budget

    def __getitem__(self, key: int) -> Callable[[Any], None]:
        self.budget.take(_STEP)
        return super().__getitem__(key)


class _NumpyOnly(_Readable):  # type: ignore[misc]
    """Rebuilds only numpy arrays and Python's own containers.

    ``mapped``: large strings of bytes are parts of the mapped file.
    """

    def __init__(self, stream: BinaryIO, mapped: bool, budget: _Budget) -> None:
        # Python 2 wrote some of these files; its text and arrays need latin1.
        super().__init__(_Bounded(stream, budget), encoding="latin1")
        self.stream, self.budget = stream, budget
        self.content: memoryview | None = None
        if mapped:
            self.content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        own: dict[bytes, Callable[[Any], None]] = {
            pickle.BINSTRING: lambda reader: reader.binary("<i", text=True),
            pickle.BINBYTES: lambda reader: reader.binary("<I"),
            pickle.BINBYTES8: lambda reader: reader.binary("<Q"),
            pickle.BYTEARRAY8: lambda reader: reader.binary("<Q"),
            pickle.BUILD: _NumpyOnly.build,
        }
        for code in (pickle.BINUNICODE, pickle.BINUNICODE8, pickle.UNICODE, pickle.STRING):
            own[code] = _measured(_Readable.dispatch[code[0]])
        self.dispatch = _Operations(_Readable.dispatch)
        self.dispatch.update({code[0]: step for code, step in own.items()})
        self.dispatch.budget = budget
        # A class of numpy is only ever handed on, never called: a word stands for it.
        self.known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "numpy.ndarray",
            ("numpy", "dtype"): _Kind,
            ("_codecs", "encode"): self.latin1,
            # No bytes at all, as Python 3 writes them in old protocols.
            ("__builtin__", "bytes"): lambda: b"",
        }
        for module in _MULTIARRAY:
            self.known[module, "_reconstruct"] = lambda *_: _Values()
            self.known[module, "scalar"] = self.scalar
        for module in _NUMERIC:
            self.known[module, "_frombuffer"] = self.in_place

    def find_class(self, module: str, name: str) -> Any:
        """Look up an allowed name; arrays are built where their values are."""
        try:
            return self.known[module, name]
        except KeyError:
            raise _Refused(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse references to outside objects."""
        raise _Refused("it refers to an object outside the file")

    def latin1(self, value: str, encoding: str = "latin1") -> bytes:
        """How Python 3 stores bytes in old pickle protocols; refuses every other codec."""
        if encoding not in ("latin1", "latin-1"):
            raise _Refused(f"it asks for the codec {encoding!r}")
        self.budget.take(len(value))
        return value.encode("latin1")

    def build(self) -> None:
        """Give an array or a type of numbers its state, as the last step of its rebuilding."""
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, _Values):
            made.array = self.array(state)
        elif isinstance(made, _Kind):
            made.order(state)
        else:
            raise _Refused(f"it gives a {type(made).__name__} a state")

    def array(self, state: Any) -> Any:
        """An array out of its state: version, shape, type of numbers, order and values."""
        _, shape, kind, fortran, values = state
        dtype = kind.dtype
        order: Any = "F" if fortran else "C"
        if not dtype.hasobject:
            values = self.latin1(values) if isinstance(values, str) else values
            return self.in_place(values, kind, shape, order)
        if math.prod(shape) != len(values):
            raise ValueError(f"an array of shape {shape} has {len(values)} values")
        self.budget.take(math.prod(shape) * dtype.itemsize)
        array = np.empty(shape, dtype, order=order)
        flat = array.ravel(order="K")
        for place, value in enumerate(values):
            flat[place] = value
        return array

    def in_place(self, values: Any, kind: Any, shape: Any, order: Any, *axes: Any) -> Any:
        """An array on its values; a copy, which can be changed, unless the file is mapped."""
        if any(axes):
            raise _Refused("its arrays have their axes in another order")
        if kind.dtype.hasobject:
            raise _Refused("its arrays hold objects as bytes")
        array = np.frombuffer(values, kind.dtype).reshape(shape, order=order)
        if self.content is not None:
            return array
        self.budget.take(array.nbytes)
        return array.copy(order=order)

    def scalar(self, kind: Any, value: Any) -> Any:
        """One number."""
        if kind.dtype.hasobject:
            return value
        raw = self.latin1(value) if isinstance(value, str) else value
        return np.frombuffer(raw, kind.dtype, 1)[0]

    def binary(self, code: str, text: bool = False) -> None:
        """A string of bytes, whose length comes first; from the map if it is large."""
        (size,) = struct.unpack(code, self.read(struct.calcsize(code)))
        if size < 0:
            raise ValueError("a string of less than no bytes")
        frame = self._unframer.current_frame
        # From protocol 4 on, small values are read ahead in frames.
        left = 0 if frame is None else len(frame.getbuffer()) - frame.tell()
        if self.content is None or size < _MAPPED or 0 < left < size:
            value = self.read(size)
            self.append(value.decode("latin1") if text else value)
            return
        start = self.stream.tell() - left
        if start + size > len(self.content):
            raise EOFError("it ends within an array")
        (frame if left else self.stream).seek(size, io.SEEK_CUR)
        self.append(self.content[start : start + size])

    def load(self) -> Any:
        """The object, with every array in its place."""
        return _settled(super().load(), {})


def _measured(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """A step that reads text, which can take four times as many bytes as in the file."""

    def counted(reader: Any) -> None:
        step(reader)
        reader.budget.take(sys.getsizeof(reader.stack[-1]))

    return counted


def _settled(value: Any, done: dict[int, Any]) -> Any:
    """``value`` with arrays for what stood for them. Lists, mappings and arrays are changed."""
    if isinstance(value, _Values):
        return _settled(value.array, done)
    if isinstance(value, _Kind):
        return value.dtype
    if not isinstance(value, tuple | list | dict | np.ndarray):
        return value
    if id(value) in done:
        return done[id(value)][1]
    # The value itself is kept too, so that nothing else gets its number.
    done[id(value)] = (value, value)
    if isinstance(value, tuple):
        settled = tuple(_settled(part, done) for part in value)
        done[id(value)] = (value, settled)
        return settled
    if isinstance(value, dict):
        value.update({key: _settled(part, done) for key, part in value.items()})
    elif isinstance(value, list):
        value[:] = [_settled(part, done) for part in value]
    elif value.dtype == object:
        flat = value.ravel(order="K")
        for place, part in enumerate(flat):
            flat[place] = _settled(part, done)
    return value


def _load(stream: BinaryIO, path: Path, mapped: bool, limit: int) -> Any:
    try:
        return _NumpyOnly(stream, mapped, _Budget(limit)).load()
    except _TooLarge:
        raise _too_large(path, limit) from None
    except _Refused as error:
        raise DataError(
            f"{path}: xmodal refuses to run code from data files: {error}; "
            "only numpy arrays and plain containers are read"
        ) from error
    except Exception as error:
        # A damaged pickle can raise nearly anything, from EOFError to MemoryError.
        raise DataError(f"{path}: damaged pickle ({type(error).__name__}: {error})") from error


def _too_large(path: Path, limit: int) -> DataError:
    return DataError(f"{path}: its content would take more than {text.size(limit)} of memory")


def read_pickle(path: Path, mapped: bool = False, limit: int = LIMIT) -> Any:
    """The object in a pickle of numpy arrays and plain containers. Raises DataError.

    ``mapped``: large arrays are read-only views of the file. ``limit``: bytes of memory that all
    else may take; a file that asks for more is refused before they are allocated.
    """
    try:
        with path.open("rb") as stream:
            return _load(stream, path, mapped, limit)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def read_npy(path: Path, mapped: bool = False, limit: int = LIMIT) -> np.ndarray[Any, Any]:
    """The array in a .npy file; arrays of objects are unpickled safely. Raises DataError.

    ``mapped``: large arrays of numbers, also those within an array of objects, are read-only views
    of the file. ``limit``: as in ``read_pickle``.
    """
    try:
        with path.open("rb") as stream:
            version = npy.read_magic(stream)
            readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"version {version} of the format is not supported")
            shape, _, dtype = readers[version](stream)
            if not dtype.hasobject:
                return _numbers(stream, path, math.prod(shape) * dtype.itemsize, mapped, limit)
            found = np.asarray(_load(stream, path, mapped, limit), dtype=object)
            return found.reshape(shape)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from error


def _numbers(
    stream: BinaryIO, path: Path, size: int, mapped: bool, limit: int
) -> np.ndarray[Any, Any]:
    """The numbers that follow a header which says how many bytes they are."""
    if size > os.fstat(stream.fileno()).st_size - stream.tell():
        raise ValueError("it ends within the array")
    if mapped:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    if size > limit:
        raise _too_large(path, limit)
    stream.seek(0)
    return np.asarray(npy.read_array(stream, allow_pickle=False))
