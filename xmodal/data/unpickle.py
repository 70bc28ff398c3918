"""Reads untrusted numpy pickles without running their code.

A pickle can name any function and have it called. These readers allow only the functions that
rebuild numpy arrays, and refuse every other name with a DataError before looking it up.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.lib import format as npy

from xmodal.errors import DataError

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 stores bytes in old pickle protocols; refuses every other codec."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding!r}")
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
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse references to outside objects."""
        raise pickle.UnpicklingError("it refers to an object outside the file")


def _load(stream: BinaryIO, path: Path) -> Any:
    try:
        # Python 2 wrote some of these files; its text and arrays need latin1.
        return _NumpyOnly(stream, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: xmodal refuses to run code from data files: {error}; "
            "only numpy arrays and plain containers are read"
        ) from error
    except Exception as error:
        # A damaged pickle can raise nearly anything, from EOFError to MemoryError.
        raise DataError(f"{path}: damaged pickle ({type(error).__name__}: {error})") from error


def read_pickle(path: Path) -> Any:
    """The object in a pickle of numpy arrays and plain containers. Raises DataError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return _load(io.BytesIO(content), path)


def read_npy(path: Path) -> np.ndarray[Any, Any]:
    """The array in a .npy file; arrays of objects are unpickled safely. Raises DataError."""
    try:
        with path.open("rb") as stream:
            version = npy.read_magic(stream)
            readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"version {version} of the format is not supported")
            shape, _, dtype = readers[version](stream)
            if not dtype.hasobject:
                stream.seek(0)
                return np.asarray(npy.read_array(stream, allow_pickle=False))
            found = np.asarray(_load(stream, path), dtype=object)
            return found.reshape(shape)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from error
