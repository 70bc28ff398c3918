"""Reads samples to predict and writes predictions, one batch at a time.

Samples come from files of arrays (``xmodal.data.arrays``) or tables (``xmodal.data.tables``);
predictions go to ``.npz``, ``.npy`` or ``.csv``. Files may be larger than memory: they are read in
pieces. Nothing is unpickled. A file of predictions appears when it is complete.
"""

from __future__ import annotations

import csv
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from xmodal.data import lengths, tables
from xmodal.data.arrays import (
    LABEL_KEYS,
    SAMPLE_KEYS,
    SUFFIXES,
    Container,
    Rows,
    described,
    existing,
    first_key,
    open_container,
    row_labels,
)
from xmodal.data.naming import are_numbers
from xmodal.data.preparation import RawForm
from xmodal.errors import DataError, UsageError, did_you_mean
from xmodal.files import atomically
from xmodal.text import shortlist, spreadsheet

Array = NDArray[Any]
READABLE = (*SUFFIXES, *tables.SUFFIXES)
Keys = tuple[tuple[str, ...], tuple[str, ...]]
"""The names of the arrays of samples and of labels, as far as the user says them."""
WRITABLE = (".npz", ".npy", ".csv")
MOST_COLUMNS = 1000
"""Of more numbers a sample is not written into a line."""
NOT_FLAT = "this model predicts fields, which do not fit into lines of text"
Given = Callable[[], Mapping[str, Array]]
"""Reads the input of a batch as it stands in the file: the columns of a table, or the array ``x``.
"""
Piece = tuple[Any, Array | None, Given]
"""A batch: raw samples, their labels if the file has them, and the input beside predictions."""
Note = Callable[[str], None]
Add = Callable[[Mapping[str, Array]], None]
"""Writes a batch of named arrays, all of one length."""


@dataclass(frozen=True)
class SampleReader:
    """The samples of a file. ``count`` is None if it is known only after reading."""

    count: int | None
    labelled: bool
    pieces: Iterator[Piece]
    says: str = ""
    """What was found, in words: names, shapes and types."""


def read(
    path: Path,
    form: RawForm,
    batch: int,
    settings: tables.TableFormat | None = None,
    note: Note | None = None,
    keys: Keys = ((), ()),
) -> SampleReader:
    """Raw samples of a file or folder and, if it has them, labels, ``batch`` at a time.

    Rows of tables are coded as ``form`` says. ``settings`` say how a text is written, where it is
    neither seen nor as in training; ``keys`` which arrays to read. Raises DataError.
    """
    path, suffix = existing(path), path.suffix.lower()
    if path.is_dir() or suffix in SUFFIXES:
        return _arrays(path, form, batch, keys)
    if suffix in tables.SUFFIXES:
        return _table(path, form, batch, settings or tables.TableFormat(), note)
    hint = did_you_mean(path.suffix, READABLE)
    raise DataError(f"{path}: cannot read '{path.suffix}'{hint}; expected {list(READABLE)}")


# --- reading arrays -------------------------------------------------------------------------------


def _arrays(path: Path, form: RawForm, batch: int, keys: Keys) -> SampleReader:
    """Samples, and labels if there are any, under the names they had in training or usual ones."""
    container = open_container(path, form.samples)
    single = path.suffix.lower() == ".npy" and path.is_file()
    x_keys = (path.stem,) if single else _named(container, keys[0], form.x_keys, SAMPLE_KEYS)
    y_keys = () if single else _named(container, keys[1], form.y_keys, LABEL_KEYS)
    x = container.stacked(x_keys or SAMPLE_KEYS[:1], "--x")
    y = container.stacked(y_keys, "--y") if y_keys else None
    says = [f"samples {_says(x, x_keys)}"]
    if form.window is not None:  # recordings, which the model cuts
        says.append(f"cut into windows of {form.shape[form.window_axis or 0]}, every {form.window}")
    elif lengths.is_unequal(x) or form.padded is not None:
        x = _of_one_length(x, container.name(*x_keys), form, says)
    # An array of this shape that takes no memory.
    if form.window is None:
        form.check_shape(np.broadcast_to(np.empty((), x.dtype), x.shape))
    if y is not None:
        y = row_labels(y, x.shape[0])
        says.append(f"labels {_says(y, y_keys)}")
        if lengths.is_unequal(y):
            y = _labels_of_one_length(y, container.name(*y_keys), form)
        if y.shape[:1] != x.shape[:1]:
            raise DataError(f"{path}: x has shape {list(x.shape)}, but y {list(y.shape)}")
    return SampleReader(x.shape[0], y is not None, _batches(x, y, batch), ", ".join(says))


def _named(
    container: Container, asked: tuple[str, ...], known: tuple[str, ...], usual: tuple[str, ...]
) -> tuple[str, ...]:
    """The keys to read: those asked for, else those of training, else the first usual one."""
    if asked or (known and all(key in container.entries for key in known)):
        return asked or known
    found = first_key(container, usual)
    return (found,) if found else ()


def _says(rows: Rows, keys: tuple[str, ...]) -> str:
    names = shortlist(f"'{key}'" for key in keys)
    shown = "of unequal lengths" if lengths.is_unequal(rows) else described(rows.shape, rows.dtype)
    return f"{names} {shown}"


def _of_one_length(rows: Rows, name: str, form: RawForm, says: list[str]) -> Rows:
    """Samples cut or filled up to the length of training."""
    found = lengths.measure([(rows, name)], form.padded)
    if len(found.shape) != len(form.shape):
        expected = ", ".join(map(str, ("n", *form.shape)))
        raise DataError(f"{name} has samples of {len(found.shape)} axes; expected [{expected}]")
    length = form.shape[found.axis]
    if form.padded is None and found.shortest < length:
        raise DataError(
            f"{name} has samples of {found.shortest} to {found.longest} values; this model was "
            f"trained on the first {length} of each"
        )
    if found.longest > length:
        says.append(f"the first {length} of up to {found.longest} values are used")
    return lengths.even(rows, name, form.shape, found.axis)


def _labels_of_one_length(rows: Rows, name: str, form: RawForm) -> Rows:
    """Labels for each place, cut to the length of training."""
    found, shape = lengths.measure([(rows, name)]), form.label_shape or ()
    if len(found.shape) != len(shape) or found.shortest < shape[found.axis]:
        expected = ", ".join(map(str, ("n", *shape)))
        raise DataError(f"{name} has labels of unequal lengths; expected [{expected}]")
    return lengths.even(rows, name, shape, found.axis)


def _batches(x: Rows, y: Rows | None, batch: int) -> Iterator[Piece]:
    for start in range(0, x.shape[0], batch):
        at = slice(start, min(start + batch, x.shape[0]))
        values = x.read(at)
        yield values, None if y is None else y.read(at), partial(_whole, values)


def _whole(values: Array) -> Mapping[str, Array]:
    return {"x": values}


def as_columns(given: Mapping[str, Array], names: Sequence[str]) -> Mapping[str, Array]:
    """The input of a batch as columns of a CSV file; ``names``: those of an array's columns.

    Raises UsageError for samples that do not fit into a line.
    """
    x = given.get("x")
    if x is None or x.ndim == 1:
        return given
    wide = x.reshape(len(x), -1)
    if wide.shape[1] > MOST_COLUMNS:
        raise UsageError(
            f"--with-input: samples of shape {list(x.shape[1:])} do not fit into lines of text; "
            "write --out NAME.npz"
        )
    known = names if len(names) == wide.shape[1] else [f"x{c}" for c in range(wide.shape[1])]
    return {name: wide[:, c] for c, name in enumerate(known)}


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
    kept = [name for name in opened.names if name not in {*labels}]
    for part in opened.pieces():
        y = tables.label_values(part, labels, written=True) if labels else None
        x = form.encode(replace(part, table=part.table.select(kept)), note=note)
        yield x, y, partial(_written, part)


def _written(part: tables.Part) -> Mapping[str, Array]:
    """All columns of a part as text, empty where a value is missing."""
    return {
        name: np.array(["" if value is None else str(value) for value in column.to_pylist()])
        for name, column in zip(part.table.column_names, part.table.columns, strict=True)
    }


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
            writer.writerow(map(spreadsheet, columns))
            started.append(True)
        # Text keeps the precision: 0.1 in float32 is not 0.10000000149011612.
        cells = [
            [(str if column.dtype.kind in "biuf" else spreadsheet)(value) for value in column]
            for column in columns.values()
        ]
        writer.writerows(zip(*cells, strict=True))

    return add
