"""Arrays whose first axis counts samples, read a few samples at a time; and what all readers of
array files share: which files are read at all, how large an array may be, how damage is reported.

Pickles are never read. A header is not trusted: what it says is compared with the size of the file.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xmodal import text
from xmodal.errors import DataError, XModalError, did_you_mean

Array = NDArray[Any]
Indices = NDArray[np.int64]
LARGE, MAX_RATIO = 1 << 30, 200
"""An array of more than LARGE bytes may have at most MAX_RATIO times the bytes that it has in its
file: what holds measurements is never packed so well, and a few MB could fill every memory."""
_SPECIAL = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Rows(Protocol):
    """An array whose first axis counts samples, read a few samples at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The values' type; an object type where every sample is an array of its own length."""

    def read(self, index: slice | Indices) -> Array:
        """The samples at ``index``, in memory and in that order."""


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array in memory."""

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


@dataclass(frozen=True)
class StackedRows:
    """Arrays of one shape side by side: the channels (or outputs) of every sample, axis 1."""

    parts: tuple[Rows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""
        first = self.parts[0].shape
        return (first[0], len(self.parts), *first[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that holds the values of all parts."""
        return np.result_type(*(part.dtype for part in self.parts))

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``."""
        return np.stack([part.read(index) for part in self.parts], axis=1)


@dataclass(frozen=True)
class FlatRows:
    """Rows of one value each, without the axes of size 1 after the first."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""
        return self.rows.shape[:1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The values' type."""
        return self.rows.dtype

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``."""
        return self.rows.read(index).reshape(-1)


@dataclass(frozen=True)
class TextRows:
    """Rows of bytes as text."""

    rows: Rows
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Text of any length."""
        return np.dtype(str)

    def read(self, index: slice | Indices) -> Array:
        """The rows at ``index``. Raises DataError with the first row that is not UTF-8."""
        values = self.rows.read(index)
        try:
            return np.char.decode(values, "utf-8")
        except UnicodeDecodeError:
            for row, value in zip(np.arange(self.shape[0])[index], values, strict=True):
                try:
                    np.char.decode(value, "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{self.name} row {row}: {text.shown(error.object)} is not UTF-8 text"
                    ) from error
            raise


@dataclass(frozen=True)
class NamedArray:
    """A named array of a file, of which no more is read than is asked for.

    says: what its header says of it. open: its rows; raises DataError if they cannot be read.
    files: all files that it draws on.
    """

    says: Callable[[], str]
    open: Callable[[], Rows]
    files: Callable[[], tuple[Path, ...]]

    @classmethod
    def of(cls, says: str, open: Callable[[], Rows], files: tuple[Path, ...]) -> NamedArray:
        """An array whose header is known."""
        return cls(lambda: says, open, lambda: files)


def refused(says: str, message: str, files: tuple[Path, ...] = ()) -> NamedArray:
    """An array that cannot be read, for a reason that is known already."""

    def raises() -> Rows:
        raise DataError(message)

    return NamedArray.of(says, raises, files)


def existing(path: Path) -> Path:
    """The file or folder ``path``, with ``~`` expanded.

    Raises DataError with the nearest name if there is none, and for what is neither: reading from a
    pipe or a device may never end.
    """
    try:
        path = path.expanduser()
        status = path.stat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise DataError(f"{path}: no such file; there is no folder {path.parent}") from None
        if path.is_symlink():
            raise DataError(f"{path}: no such file: it is a link to {path.readlink()}") from None
        names = sorted(p.name for p in path.parent.iterdir())
        raise DataError(f"{path}: no such file{did_you_mean(path.name, names)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{text.shown(path, 200)}: cannot be read: {why}") from error
    kind = next((name for test, name in _SPECIAL if test(status.st_mode)), None)
    if kind is not None:
        raise DataError(f"{path}: is {kind}, not a file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise DataError(f"{path}: the file is empty")
    return path


@contextmanager
def reading(where: object, form: str = "") -> Iterator[None]:
    """Turn whatever the reader of a file's format raises into a DataError about ``where``.

    Damaged bytes make parsers raise nearly anything, so no list of exceptions would be complete.
    """
    try:
        yield
    except XModalError:
        raise
    except MemoryError as error:
        raise DataError(f"{where}: does not fit into memory{_after(error)}") from error
    except Exception as error:
        how = f" as {form}" if form else ""
        raise DataError(f"{where}: cannot be read{how}{_after(error)}") from error


def _after(error: Exception) -> str:
    """The words of an error, after a colon; its type if it has none."""
    line = text.shown(" ".join(str(error).split()), 300)
    return f": {line or type(error).__name__}"


def described(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """A shape and a type as a message shows them."""
    return f"{shape} {'text' if dtype.kind in 'SU' else text.shown(dtype)}"


def checked_size(where: str, shape: tuple[Any, ...], dtype: np.dtype[Any], held: int) -> None:
    """Raise DataError unless an array of this header takes ``held`` bytes."""
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 32:
        raise DataError(f"{where} is damaged: its header says shape {text.shown(shape)}")
    says = prod(shape) * dtype.itemsize
    if says > held:
        raise DataError(
            f"{where} is damaged or cut off: by its header, {shape} of {dtype}, it takes {says:,} "
            f"bytes, but the file holds {max(held, 0):,} of them"
        )
    if says < held:
        raise DataError(
            f"{where} holds more than its header says, {shape} of {dtype} ({says} bytes; there are "
            f"{held}); if several arrays were written into one file, save them one by one"
        )


def refuse_bomb(where: str, size: int, stored: int) -> None:
    """Raise DataError for an array of ``size`` bytes that is packed far too well."""
    if size > LARGE and size > MAX_RATIO * max(stored, 1):
        raise DataError(
            f"{where} would unpack to {text.size(size)} from {text.size(stored) if stored else 0}, "
            f"more than {MAX_RATIO} times as much; if you trust the file, save it without packing"
        )


def refuse_large(where: str, size: int) -> None:
    """Raise DataError for an array that must be held in memory and does not fit."""
    import psutil

    free = psutil.virtual_memory().available
    if size > free:
        raise DataError(
            f"{where} takes {text.size(size)} of memory, {text.size(free)} are free; save it as "
            ".npy, .npz without packing (numpy.savez) or HDF5, which are read sample by sample"
        )


def refuse_type(where: str, dtype: np.dtype[Any]) -> None:
    """Raise DataError for values that are neither numbers nor text, with the way out."""
    ways = {
        "c": "complex numbers; save their parts as two channels: np.stack([x.real, x.imag], 1)",
        "M": "dates; save them as numbers: (t - t[0]) / np.timedelta64(1, 's')",
        "m": "durations; save them as numbers: d / np.timedelta64(1, 's')",
        "O": "Python objects (pickle), which are never read; for samples of unequal lengths save "
        "one .npy a sample in a folder, or pad them with NaN and set lengths: pad",
        "V": f"{text.shown(dtype)}, not numbers",
    }
    if dtype.names:
        names = text.shortlist(dtype.names)
        way = f"records with the fields {names}; save each field as an array of its own"
    elif dtype.kind in ways:
        way = ways[dtype.kind]
    else:
        return
    raise DataError(f"{where} holds {way}")


def dense_slice(index: slice | Indices) -> tuple[slice, Indices] | None:
    """If ``index`` picks most rows of a stretch: the stretch, and the places in it. Else None."""
    if isinstance(index, slice) or len(index) == 0:
        return None
    low, high = int(index.min()), int(index.max()) + 1
    return (slice(low, high), index - low) if high - low <= 2 * len(index) else None


def of_items(where: str, items: Array) -> Rows:
    """An array of objects (cells) as rows: one text, or one array, a sample.

    Arrays of one row or one column lose that axis. Raises DataError for anything else.
    """
    if items.size != max(items.shape, default=0):
        raise DataError(f"{where} is a cell array of shape {items.shape}; expected one cell a row")
    flat: list[Array | str] = []
    for row, item in enumerate(items.ravel()):
        value = np.asarray(item)
        if value.dtype.kind in "OV" or value.dtype.names:
            raise DataError(f"{where} row {row}: the cell holds neither text nor numbers")
        if value.dtype.kind in "SU":
            if value.size > 1:
                raise DataError(f"{where} row {row}: the cell holds {value.size} lines of text")
            flat.append(str(value.ravel()[0]) if value.size else "")
            continue
        flat.append(value.ravel() if value.ndim == 2 and 1 in value.shape else value)
    texts = [isinstance(value, str) for value in flat]
    if all(texts) and flat:
        return ArrayRows(np.array(flat))
    if any(texts):
        raise DataError(f"{where} row {texts.index(not texts[0])}: text and numbers are mixed")
    result = np.empty(len(flat), object)
    for row, each in enumerate(flat):
        result[row] = each
    return ArrayRows(result)
