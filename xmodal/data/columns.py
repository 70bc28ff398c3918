"""The columns of a table: what each one means, and its values as numbers for a model.

``learn`` decides once, in training, what a column is; ``TableForm.encode`` reads columns of any
later table as that. Cells are Arrow arrays, text or typed, whatever file or frame they come from.

A number is one number, a category its code 0 .. m-1. A date gives the days since 1970-01-01 and,
because what repeats is hard to see in them, sine and cosine of its place in the year, the month,
the week and the day: of those parts that vary in the training file. A duration, or a time of day
alone, gives seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmodal.data import cells as reading
from xmodal.data.cells import Cells, Marks
from xmodal.data.dialect import MISSING, Dialect
from xmodal.data.naming import positions
from xmodal.errors import DataError, did_you_mean
from xmodal.text import shortlist, shown

Array = NDArray[Any]
Kind = Literal["number", "category", "date", "duration"]
Note = Callable[[str], None]
CYCLES = ("year", "month", "week", "day")
_BEFORE_MONTHS = ("year", "week", "day")
"""The cycles of dates in runs that do not say which ones vary."""
_DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Column:
    """What a column is.

    levels: the categories, in the order of their codes.
    clock: dates have times of day.
    cycles: what varies in dates, of CYCLES; None in runs of versions that did not look.
    form: how dates are written (for ``strptime``); empty for ISO dates and typed columns.
    """

    name: str
    kind: Kind = "number"
    levels: tuple[str, ...] = ()
    clock: bool = False
    form: str = ""
    cycles: tuple[str, ...] | None = None

    @property
    def waves(self) -> tuple[str, ...]:
        """The cycles that a date gives sine and cosine of."""
        if self.cycles is not None:
            return self.cycles
        return _BEFORE_MONTHS if self.clock else _BEFORE_MONTHS[:2]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the numbers that the column gives."""
        if self.kind != "date":
            return (self.name,)
        waves = [f"{self.name}: {wave} of the {cycle}" for cycle in self.waves for wave in _WAVES]
        return (self.name, *waves)


_WAVES = ("sine", "cosine")


@dataclass(frozen=True)
class Part:
    """Rows of a table.

    where: what messages call the table. dialect: how its text is written; None if it is typed.
    start: the number of the first of these rows.
    """

    where: str
    table: pa.Table
    dialect: Dialect | None = None
    start: int = 0

    def cells(self, name: str) -> Cells:
        """The cells of a column. Raises DataError for what is no single value a row."""
        return reading.plain(self.table[name], name, self.where)

    def refused(self, name: str, cells: Cells, row: int, what: str) -> DataError:
        """The error to raise for the cell in ``row``, where column ``name`` must hold ``what``."""
        return DataError(
            f"{self.where}: column '{name}' must hold {what}; row {self.start + row} has "
            f"'{shown(cells[row].as_py())}'"
        )


@dataclass(frozen=True)
class TableForm:
    """How the table of a training run was read, and so how later ones are read.

    missing: the words that mean that a value is missing.
    """

    columns: tuple[Column, ...]
    dialect: Dialect = field(default_factory=Dialect)
    missing: tuple[str, ...] = MISSING

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the file that are read."""
        return tuple(column.name for column in self.columns)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the numbers of a row, F of them."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """The categories of every feature, F of them; empty for a number."""
        return tuple(column.levels for column in self.columns for _ in column.features)

    def state(self) -> dict[str, Any]:
        """The form as plain values."""
        return {
            "columns": [asdict(column) for column in self.columns],
            "dialect": self.dialect.state(),
            "missing": list(self.missing),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> TableForm:
        """The form that ``state`` describes."""
        plain: list[dict[str, Any]] = [
            {key: tuple(value) if isinstance(value, list) else value for key, value in one.items()}
            for one in state["columns"]
        ]
        columns = tuple(Column(**one) for one in plain)
        return cls(columns, Dialect(**state["dialect"]), tuple(state["missing"]))

    def encode(self, part: Part, note: Note | None = None) -> Array:
        """Rows as numbers, float64 ``[n, F]``; NaN where a value is missing.

        Columns are found by name. A category that training never saw counts as missing, and is
        noted. Raises DataError for missing columns and for values of another kind than in training.
        """
        require(part.table.column_names, self.names, part.where)
        given = {name: part.cells(name) for name in self.names}
        texts = {
            column.name: reading.clean(given[column.name], self.missing)
            for column in self.columns
            if column.kind == "number" and reading.is_text(given[column.name].type)
        }
        written = part.dialect or self.dialect
        marks = Marks(written.decimal, written.forced)
        found = reading.numbers(texts, marks, part.where, part.start)
        result = np.empty((part.table.num_rows, len(self.features)))
        at = 0
        for column in self.columns:
            cells = given[column.name]
            if column.kind == "category":
                values = _codes(cells, column, self.missing, part, note)[:, None]
            elif column.kind == "date":
                values = _dates(cells, column, self.missing, part)
            elif column.kind == "duration":
                values = _seconds(cells, column, self.missing, part)[:, None]
            elif column.name in texts:
                read = found[column.name]
                if read is None:
                    text = texts[column.name]
                    row = reading.first_that_is_no_number(text)
                    raise part.refused(column.name, text, row, "numbers")
                values = read[:, None]
            else:
                values = _typed_numbers(cells, column, part)[:, None]
            wrong = np.flatnonzero(np.isinf(values).any(axis=1))
            if len(wrong):
                raise part.refused(column.name, cells, int(wrong[0]), "finite numbers")
            result[:, at : at + values.shape[1]] = values
            at += values.shape[1]
        return result


def require(known: Sequence[str], columns: Sequence[str], where: str = "x", hint: str = "") -> None:
    """Raise DataError naming the ``columns`` that a table with columns ``known`` lacks."""
    there = {*known}
    missing = [name for name in columns if name not in there]
    if missing:
        hint = hint or did_you_mean(missing[0], known)
        named = shortlist([f"'{name}'" for name in missing])
        raise DataError(
            f"{where}: no column {named}{hint}; expected {shortlist(columns)}; got "
            f"{shortlist(known)}"
        )


# --- values of one column -------------------------------------------------------------------------


def _codes(
    cells: Cells, column: Column, missing: Sequence[str], part: Part, note: Note | None
) -> Array:
    """The code of every category, ``[n]``; NaN for what is missing or was never seen."""
    if reading.is_text(cells.type):
        cells = reading.clean(cells, ())
    coded = cells.dictionary_encode()
    values = coded.dictionary.to_pylist()
    code_V = positions(values, column.levels)
    index_N = pc.fill_null(coded.indices, len(values)).to_numpy(zero_copy_only=False)
    gone = {None, *missing}
    unseen_V = np.isnan(code_V) & np.array([value not in gone for value in values], dtype=bool)
    if note is not None and unseen_V.any():
        rows = np.flatnonzero(np.append(unseen_V, False)[index_N])
        note(
            f"column '{column.name}': what training never saw counts as missing ({len(rows)} of "
            f"{len(cells)} rows; first: row {part.start + rows[0]}, "
            f"'{shown(cells[int(rows[0])].as_py())}'; known: {shortlist(column.levels)})"
        )
    codes_N: Array = np.append(code_V, np.nan)[index_N]
    return codes_N


def _typed_numbers(cells: Cells, column: Column, part: Part) -> Array:
    if pa.types.is_null(cells.type):
        return np.full(len(cells), np.nan)
    if pa.types.is_boolean(cells.type) or reading.is_number(cells.type):
        return np.asarray(pc.cast(cells, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    raise part.refused(column.name, cells, _first_valid(cells), "numbers")


def _dates(cells: Cells, column: Column, missing: Sequence[str], part: Part) -> Array:
    """Days since 1970 and the waves of year, week and day, ``[n, K]``."""
    kind = cells.type
    if reading.is_text(kind):
        cells = reading.clean(cells, missing)
    if cells.null_count == len(cells):  # one row without a date, say
        time_N: Array | None = np.full(len(cells), np.datetime64("NaT"), "datetime64[us]")
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        time_N = reading.typed_dates(cells)
    elif reading.is_text(kind):
        time_N = reading.dates(cells, column.form)
    else:
        time_N = None
    if time_N is None:
        wrong = next(
            (
                row
                for row in range(len(cells))
                if not reading.is_text(kind)
                or reading.dates(cells.slice(row, 1), column.form) is None
            ),
            _first_valid(cells),
        )
        raise part.refused(column.name, cells, wrong, "dates, as in training")
    known = ~np.isnat(time_N)
    safe_N = np.where(known, time_N, np.datetime64(0, "us"))
    shares = _places(safe_N)
    values = [safe_N.astype(np.int64) / _DAY]
    for cycle in column.waves:
        angle_N = 2 * np.pi * shares[cycle]
        values += [np.sin(angle_N), np.cos(angle_N)]
    return np.where(known[:, None], np.stack(values, axis=1), np.nan)


def _places(time_N: Array) -> dict[str, Array]:
    """How much of its year, month, week and day has passed at each time, 0 to 1."""
    us_N = time_N.astype(np.int64)

    def within(unit: str) -> Array:
        first_N = time_N.astype(f"datetime64[{unit}]")
        start_N, end_N = (
            time.astype("datetime64[us]").astype(np.int64) for time in (first_N, first_N + 1)
        )
        return np.asarray((us_N - start_N) / (end_N - start_N))

    # 1970-01-01 was a Thursday; weeks begin on Monday.
    week_N = (us_N / _DAY + 3) % 7 / 7
    return {"year": within("Y"), "month": within("M"), "week": week_N, "day": us_N % _DAY / _DAY}


def varying(time_N: Array) -> tuple[str, ...]:
    """The cycles in which times differ: by month, day of the month, day of the week, time of day.

    ``time_N``: ``datetime64[us]``, NaT where there is none.
    """
    known = time_N[~np.isnat(time_N)]
    days, months = known.astype("datetime64[D]"), known.astype("datetime64[M]")
    parts = {
        "year": months.astype(np.int64) % 12,
        "month": (days - months.astype("datetime64[D]")).astype(np.int64),
        "week": days.astype(np.int64) % 7,
        "day": (known - days).astype(np.int64),
    }
    return tuple(cycle for cycle in CYCLES if len(np.unique(parts[cycle])) > 1)


def _seconds(cells: Cells, column: Column, missing: Sequence[str], part: Part) -> Array:
    kind = cells.type
    if pa.types.is_null(kind):
        return np.full(len(cells), np.nan)
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        return reading.typed_seconds(cells)
    if reading.is_text(kind):
        cells = reading.clean(cells, missing)
        if not len(pc.drop_null(cells)) or reading.are_durations(cells):
            return reading.seconds(cells)
    raise part.refused(column.name, cells, _first_valid(cells), "durations, as in training")


def _first_valid(cells: Cells) -> int:
    at: int = pc.index(pc.is_valid(cells), True).as_py()
    return max(at, 0)
