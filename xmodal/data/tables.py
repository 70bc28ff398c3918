"""Tables, from files or from memory: opened, checked and read once, by everything that reads any.

CSV and Parquet files, pandas and polars frames and Arrow tables become Arrow tables. ``learn``
decides what their columns are; the ``TableForm`` that it gives is kept with a run (``RawForm``)
and reads later tables in the same way.

Refused, with the place: a column without values, with lists or with a name that occurs twice, a
line of the wrong length, a file that is damaged or no text. A saved index is left out and named.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from xmodal.data.cells import Cells
from xmodal.data.columns import Column, Part, TableForm, require
from xmodal.data.dialect import Dialect, TableFormat, detect, fields_of, rows
from xmodal.data.learning import complete_labels, label_values, learn
from xmodal.data.naming import name_of
from xmodal.data.rows import existing
from xmodal.errors import DataError
from xmodal.text import shortlist

__all__ = [
    "SUFFIXES",
    "Column",
    "Dialect",
    "OpenTable",
    "Part",
    "TableForm",
    "TableFormat",
    "complete_labels",
    "existing",
    "forget",
    "label_values",
    "learn",
    "name_of",
    "of",
    "of_lines",
    "open_table",
    "remembered",
    "require",
    "starts_with_index",
]

R = TypeVar("R")
TEXT = (".csv", ".tsv", ".txt")
SUFFIXES = (*TEXT, ".parquet")
_CELLS = 1 << 20
"""About so many cells of a text are Python objects at a time."""
_INDEX = ("", "Unnamed: 0")


@dataclass
class OpenTable:
    """A table whose columns are known and whose rows are still to be read, once.

    names: the columns, without a saved index. count: None if it is known only after reading.
    dialect: how a text is written; None for typed tables.
    """

    where: str
    names: tuple[str, ...]
    count: int | None
    dialect: Dialect | None
    _pieces: Iterator[pa.Table]
    notes: list[str] = field(default_factory=list)

    def pieces(self) -> Iterator[Part]:
        """The rows in their order, several at a time. Raises DataError."""
        start = 0
        for table in self._pieces:
            yield Part(self.where, table, self.dialect, start)
            start += table.num_rows

    def whole(self) -> Part:
        """All rows. Raises DataError if there is none, or no second column."""
        found = list(self._pieces)
        rows = sum(piece.num_rows for piece in found)
        if not rows or len(self.names) < 2:
            size = (rows, len(self.names))
            raise DataError(
                f"{self.where}: needs a row and two columns, has {size} (rows, columns)"
            )
        return Part(self.where, pa.concat_tables(found), self.dialect)


_remembered: dict[str, Any] = {}


def remembered(paths: Sequence[Path], what: object, read: Callable[[], R]) -> R:
    """What ``read()`` gave last, if it was for the same ``what`` and the files are unchanged.

    Checking a recipe, describing a task and loading it are one reading. ``forget`` frees memory.
    """
    states = []
    for path in paths:
        state = existing(path).stat()
        states.append((path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
    key = repr((read.__qualname__, what, states))
    if key not in _remembered:
        found = read()
        forget()
        _remembered[key] = found
    result: R = _remembered[key]
    return result


def forget() -> None:
    """Forget what was read."""
    _remembered.clear()


def open_table(
    path: Path,
    settings: TableFormat | None = None,
    like: TableForm | None = None,
    batch: int | None = None,
) -> OpenTable:
    """Open a CSV or Parquet file; pieces have at most ``batch`` rows.

    ``settings`` say how a text is written; what they leave open is detected. ``like`` is the form
    of the training table: if several dialects fit, its own is taken. Raises DataError.
    """
    path = existing(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a table")
    opened = _text if path.suffix.lower() in TEXT else _parquet
    return opened(path, settings or TableFormat(), like, batch)


def _text(
    path: Path, settings: TableFormat, like: TableForm | None, batch: int | None
) -> OpenTable:
    known, columns = (like.dialect, like.names) if like else (None, ())
    dialect = detect(path, settings, known, columns)
    header, lines = rows(path, dialect)
    kept, notes = _kept(header, f"{path}", dialect.row_names)
    names = tuple(header[index] for index in kept)
    if known is None:
        change = "(set separator:, decimal:, encoding: or quote: to change)"
        notes.insert(0, f"{path}: {dialect.said()} {change}")
    elif dialect.said() != known.said():
        notes.insert(0, f"{path}: {dialect.said()} (in training: {known.said()})")
    size = min(batch or _CELLS, max(1, _CELLS // max(1, len(header))))

    def pieces() -> Iterator[pa.Table]:
        while piece := list(itertools.islice(lines, size)):
            columns = list(zip(*piece, strict=True))
            yield pa.Table.from_arrays([pa.array(columns[i], pa.string()) for i in kept], names)

    return OpenTable(f"{path}", names, None, dialect, pieces(), notes)


def _kept(header: list[str], where: str, row_names: bool = False) -> tuple[list[int], list[str]]:
    """The places of the columns to read, and notes on a saved index. Raises DataError."""
    kept = list(range(len(header)))
    notes = []
    if starts_with_index(header):
        called = "the names of rows, which the header does not name" if row_names else (
            f"the first column, '{header[0]}'" if header[0] else "the first column, without a name"
        )  # fmt: skip
        notes.append(f"{where}: left out: {called} (a saved index)")
        kept = kept[1:]
    names = [header[index] for index in kept]
    if "" in names:
        raise DataError(f"{where}: column {1 + kept[names.index('')]} has no name")
    _require_different(names, where)
    return kept, notes


def starts_with_index(names: Sequence[str]) -> bool:
    """Whether the first column is an index that was saved with the table."""
    return len(names) > 1 and names[0] in _INDEX


def _require_different(names: Sequence[str], where: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{where}: two columns are named '{twice}'; rename one of them")


def _parquet(
    path: Path, settings: TableFormat, like: TableForm | None, batch: int | None
) -> OpenTable:
    from pyarrow.parquet import ParquetFile

    try:
        # Otherwise a whole group of rows is held in memory, and a file may have a single group.
        file = ParquetFile(path, memory_map=True, pre_buffer=False)
        names, count = list(file.schema_arrow.names), file.metadata.num_rows
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    # pandas saves the index of a frame as one more column, which it marks.
    saved = (file.schema_arrow.pandas_metadata or {}).get("index_columns", ())
    index = [name for name in names if name in saved]
    inside = [at for at, name in enumerate(names) if name not in index]
    kept, notes = _kept([names[at].strip() for at in inside], f"{path}")
    kept = [inside[at] for at in kept]
    if index:
        notes.insert(0, f"{path}: left out: {shortlist(index)} (a saved index)")
    coded = {
        column["name"]
        for column in (file.schema_arrow.pandas_metadata or {}).get("columns", ())
        if column["pandas_type"] == "categorical"
    }
    chosen = [names[at] for at in kept]
    stripped = tuple(name.strip() for name in chosen)

    def pieces() -> Iterator[pa.Table]:
        try:
            for piece in file.iter_batches(batch_size=batch or 1 << 16):
                columns = [
                    piece[at].dictionary_encode() if names[at] in coded else piece[at]
                    for at in kept
                ]
                yield pa.Table.from_arrays(columns, list(stripped))
        except _DAMAGED as error:
            raise _unreadable(path, error) from error

    return OpenTable(f"{path}", stripped, count, None, pieces(), notes)


_DAMAGED = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)


def _unreadable(path: Path, error: BaseException) -> DataError:
    cause = " ".join(str(error).split())[:200]
    return DataError(f"{path}: cannot be read as parquet: {cause or type(error).__name__}")


def of_lines(path: Path, lines: Iterable[str], dialect: Dialect, names: Sequence[str]) -> Part:
    """Rows of text without a header, the part of a file after ``dialect.skip`` lines.

    Raises DataError with the line, and if there is no row.
    """
    rows_of = list(fields_of(path, lines, dialect, len(names)))
    columns = zip(*rows_of, strict=True) if rows_of else [()] * len(names)
    table = pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], names)
    return OpenTable(f"{path}", tuple(names), None, dialect, iter([table])).whole()


def of(x: Any, where: str = "x") -> pa.Table | None:
    """A frame of pandas or polars, or an Arrow table, as an Arrow table; None for anything else.

    Raises DataError for two columns of one name and for cells that are neither number, text, date
    nor truth value.
    """
    if hasattr(x, "iloc") and getattr(x, "ndim", 0) == 2:
        names = [str(name).strip() for name in x.columns]
        arrays = [_series(x.iloc[:, at], name, where) for at, name in enumerate(names)]
        table = pa.Table.from_arrays(arrays, names)
    elif hasattr(x, "__arrow_c_stream__") and hasattr(x, "columns"):
        table = pa.table(x)
        names = [name.strip() for name in table.column_names]
        table = pa.Table.from_arrays([_category(column) for column in table.columns], names)
    else:
        return None
    _require_different(names, where)
    return table


def _category(cells: Cells) -> Cells:
    """Cells; categories by name, because Parquet keeps only those of text."""
    if not pa.types.is_dictionary(cells.type):
        return cells
    if isinstance(cells, pa.ChunkedArray):
        cells = cells.unify_dictionaries().combine_chunks()
    levels = pa.array([name_of(value) for value in cells.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(cells.indices, levels)


def _series(series: Any, name: str, where: str) -> Cells:
    """A pandas column as an Arrow array."""
    try:
        return _category(pa.array(series, from_pandas=True))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        values = series.dropna()
        if any(isinstance(value, (list, tuple, dict, set, np.ndarray)) for value in values):
            raise DataError(
                f"{where}: column '{name}' holds lists or objects; make it one number or one text "
                "a row, or drop it"
            ) from None
        if any(isinstance(value, str) for value in values):
            texts = series.astype(object).map(name_of).where(series.notna(), None)
            return pa.array(texts, pa.large_string(), from_pandas=True)
        try:
            return pa.array(series.astype(float), from_pandas=True)
        except (TypeError, ValueError):
            held = type(values.iloc[0]).__name__ if len(values) else series.dtype
            raise DataError(
                f"{where}: column '{name}' holds {held}, which is no number, text or date"
            ) from None
