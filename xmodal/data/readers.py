"""Reads samples to predict and writes predictions, one batch at a time.

Samples come from ``.npz``, ``.npy`` or tables (``xmodal.data.tables``); predictions go to
``.npz``, ``.npy`` or ``.csv``. Files may be larger than memory: ``.npy`` is mapped, ``.npz`` is
decompressed while it is read, and tables are read in pieces. Nothing is unpickled. A file of
predictions appears when it is complete.
"""

from __future__ import annotations

import csv
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from xmodal.data import tables
from xmodal.data.naming import are_numbers
from xmodal.data.preparation import RawForm
from xmodal.errors import DataError, UsageError, did_you_mean
from xmodal.files import atomically
from xmodal.text import shortlist

Array = NDArray[Any]
READABLE = (".npz", ".npy", *tables.SUFFIXES)
WRITABLE = (".npz", ".npy", ".csv")
NOT_FLAT = "this model predicts fields, which do not fit into lines of text"
Piece = tuple[Any, Array | None]
"""A batch: raw samples and, if the file has them, their labels."""
Note = Callable[[str], None]
Add = Callable[[Mapping[str, Array]], None]
"""Writes a batch of named arrays, all of one length."""


@dataclass(frozen=True)
class SampleReader:
    """The samples of a file. ``count`` is None if it is known only after reading."""

    count: int | None
    labelled: bool
    pieces: Iterator[Piece]


def read(
    path: Path,
    form: RawForm,
    batch: int,
    settings: tables.TableFormat | None = None,
    note: Note | None = None,
) -> SampleReader:
    """Raw samples of a file and, if it has them, labels, ``batch`` at a time.

    Rows of tables are coded as ``form`` says. ``settings`` say how a text is written, where it is
    neither seen nor as in training. Raises DataError.
    """
    tables.existing(path)
    suffix = path.suffix.lower()
    if suffix in tables.SUFFIXES:
        return _table(path, form, batch, settings or tables.TableFormat(), note)
    reader = {".npz": _npz, ".npy": _npy}.get(suffix)
    if reader is None:
        hint = did_you_mean(path.suffix, READABLE)
        raise DataError(f"{path}: cannot read '{path.suffix}'{hint}; expected {list(READABLE)}")
    return reader(path, form, batch)


# --- reading arrays -------------------------------------------------------------------------------


def _npy(path: Path, form: RawForm, batch: int) -> SampleReader:
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as .npy: {error}") from error
    form.check_shape(x)
    return SampleReader(len(x), False, ((x[i : i + batch], None) for i in range(0, len(x), batch)))


class _Member:
    """An array in an ``.npz`` file, read from front to back."""

    def __init__(self, path: Path, pack: zipfile.ZipFile, key: str) -> None:
        self.path, self.key, self.at = path, key, 0
        self.stream: IO[bytes] = pack.open(f"{key}.npy")
        version = np.lib.format.read_magic(self.stream)
        header = np.lib.format.read_array_header_2_0
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0
        self.shape, columns_first, self.dtype = header(self.stream)
        if self.dtype.hasobject:
            raise DataError(f"{path}: '{key}' holds Python objects, which are never unpickled")
        self.whole: Array | None = None
        if columns_first and len(self.shape) > 1:
            with np.load(path, allow_pickle=False) as opened:
                self.whole = opened[key]

    def take(self, count: int) -> Array:
        """The next ``count`` samples."""
        start, self.at = self.at, min(self.at + count, self.shape[0])
        if self.whole is not None:
            return self.whole[start : self.at]
        size = (self.at - start) * prod(self.shape[1:]) * self.dtype.itemsize
        content = self.stream.read(size)
        if len(content) < size:
            raise DataError(f"{self.path}: '{self.key}' ends too early; the file is damaged")
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


def _npz(path: Path, form: RawForm, batch: int) -> SampleReader:
    try:
        pack = zipfile.ZipFile(path)
        keys = [name.removesuffix(".npy") for name in pack.namelist()]
        if "x" not in keys:
            raise DataError(
                f"{path}: no array 'x'{did_you_mean('x', keys)}; it has {shortlist(keys)}"
            )
        x = _Member(path, pack, "x")
        y = _Member(path, pack, "y") if "y" in keys else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from error
    # An array of this shape that takes no memory.
    form.check_shape(np.broadcast_to(np.empty((), x.dtype), x.shape))
    if y is not None and y.shape[:1] != x.shape[:1]:
        raise DataError(f"{path}: x has shape {list(x.shape)}, but y {list(y.shape)}")
    return SampleReader(x.shape[0], y is not None, _members(path, pack, x, y, batch))


def _members(
    path: Path, pack: zipfile.ZipFile, x: _Member, y: _Member | None, batch: int
) -> Iterator[Piece]:
    with pack:
        try:
            while x.at < x.shape[0]:
                yield x.take(batch), None if y is None else y.take(batch)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: cannot be read as .npz: {error}") from error


# --- reading tables -------------------------------------------------------------------------------


def _table(
    path: Path,
    form: RawForm,
    batch: int,
    settings: tables.TableFormat,
    note: Note | None,
) -> SampleReader:
    opened = tables.open_table(path, settings, form.table, batch)
    names = form.table.names if form.table is not None else form.columns
    tables.require(opened.names, names, str(path), _layout_hint(form, opened))
    labels = _label_names(form, opened.names)
    if note is not None:
        for line in opened.notes:
            note(line)
    return SampleReader(opened.count, bool(labels), _parts(opened, form, labels, note))


def _parts(
    opened: tables.OpenTable, form: RawForm, labels: list[str], note: Note | None
) -> Iterator[Piece]:
    where, dialect = opened.where, opened.dialect
    first, left_out = 0, {*labels}
    for table in opened.pieces():
        y = tables.label_values(table, labels, where, dialect, True) if labels else None
        x = table.select([name for name in table.column_names if name not in left_out])
        yield form.encode(x, first, note, where, dialect), y
        first += table.num_rows


def _layout_hint(form: RawForm, opened: tables.OpenTable) -> str:
    """Why a table may have none of the columns; empty if it has some."""
    if {*form.columns} & {*opened.names} or opened.dialect is None:
        return ""
    values = {name for levels in form.levels for name in levels}
    if any(name in values or are_numbers([name]) for name in opened.names):
        return "; does the file lack a line of names?"
    return ""


def _label_names(form: RawForm, columns: Sequence[str]) -> list[str]:
    """The columns that hold labels; empty unless all are there.

    If the model does not know their names it is ``y``, unless the samples have a column ``y``.
    """
    names = list(form.label_columns)
    if not names and (form.columns or len(columns) != prod(form.shape)):
        names = ["y"]
    return names if {*names} <= {*columns} - {*form.columns} else []


# --- writing --------------------------------------------------------------------------------------


def check_writable(path: Path, force: bool, flat: bool) -> None:
    """Raise UsageError if ``path`` cannot be written; ``flat``: a prediction fits into a line."""
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        hint = did_you_mean(path.suffix, WRITABLE)
        raise UsageError(f"--out {path}: cannot write '{path.suffix}'{hint}; use {list(WRITABLE)}")
    if suffix == ".csv" and not flat:
        raise UsageError(f"--out {path}: {NOT_FLAT}; write .npz or .npy")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force replaces it")


@contextmanager
def array_file(path: Path, constant: Mapping[str, Array]) -> Iterator[Add]:
    """Write batches of arrays to ``path``, and the ``constant`` arrays once.

    An ``.npy`` file holds the first array only.
    """
    with atomically(path) as new:
        kept: dict[str, _Growing] = {}

        def add(batch: Mapping[str, Array]) -> None:
            for name, array in batch.items():
                if name not in kept:
                    kept[name] = _Growing(new.with_name(f"rows-{name}"), array)
                kept[name].add(array)

        yield add
        if path.suffix.lower() == ".npy":
            with new.open("wb") as stream:
                next(iter(kept.values())).write(stream)
            return
        with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED, allowZip64=True) as pack:
            for name, growing in kept.items():
                with pack.open(f"{name}.npy", "w", force_zip64=True) as member:
                    growing.write(member)
            for name, array in constant.items():
                with pack.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


class _Growing:
    """An array on disk that grows; its header is written last, when the rows are counted."""

    def __init__(self, file: Path, first: Array) -> None:
        self.file, self.rows, self.shape, self.dtype = file, 0, first.shape[1:], first.dtype

    def add(self, array: Array) -> None:
        with self.file.open("ab") as stream:
            stream.write(np.ascontiguousarray(array, self.dtype).tobytes())
        self.rows += len(array)

    def write(self, out: IO[bytes]) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(out, header)
        with self.file.open("rb") as stream:
            shutil.copyfileobj(stream, out, 1 << 20)


@contextmanager
def csv_file(path: Path) -> Iterator[Add]:
    """Write batches of columns to the CSV file ``path``."""
    with atomically(path) as new, new.open("w", encoding="utf-8", newline="") as stream:
        yield csv_writer(stream)


def csv_writer(stream: Any) -> Add:
    """A function that writes batches of columns to a stream as CSV, under one header."""
    writer = csv.writer(stream, lineterminator="\n")
    started: list[bool] = []

    def add(columns: Mapping[str, Array]) -> None:
        if not started:
            writer.writerow(columns)
            started.append(True)
        # str() keeps the precision: 0.1 in float32 is not 0.10000000149011612.
        cells = [[str(value) for value in column] for column in columns.values()]
        writer.writerows(zip(*cells, strict=True))

    return add
