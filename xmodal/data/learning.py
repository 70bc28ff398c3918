"""What the columns of a table are: decided once, in training, from their values.

Text in a file of text may be numbers; in a typed table it is text, unless it holds dates. Labels
have rules of their own: in them no word means missing, so that classes may be called None or NA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmodal.data import cells as reading
from xmodal.data.cells import Cells, Marks
from xmodal.data.columns import Column, Part, TableForm, varying
from xmodal.data.dialect import Dialect, TableFormat
from xmodal.data.naming import EXACT, in_order, name_of
from xmodal.data.statistics import Moments
from xmodal.errors import DataError
from xmodal.text import listed, shortlist, shown

Array = NDArray[Any]


def learn(
    parts: Sequence[Part],
    names: Sequence[str],
    categories: Collection[str] = (),
    settings: TableFormat | None = None,
) -> tuple[TableForm, list[str]]:
    """What the columns ``names`` are, and notes that say so.

    The first part decides whether a column holds numbers, categories, dates or durations; those in
    ``categories`` are categories in any case. A category has the levels of all parts. Raises
    DataError naming the column if it has no values or can be read in two ways.
    """
    settings = settings or TableFormat()
    first = parts[0]
    known = first.dialect or Dialect(forced=settings.decimal != "auto")
    if settings.decimal != "auto":
        known = replace(known, decimal=settings.decimal)
    # The user has said of a pandas category that it is one, whatever it holds.
    categories = {
        *categories,
        *(name for name in names if pa.types.is_dictionary(first.table[name].type)),
    }
    given = {name: _cleaned(first, name, settings.missing) for name in names}
    texts = {
        name: cells
        for name, cells in given.items()
        if first.dialect is not None and name not in categories
    }
    values = reading.numbers(texts, Marks(known.decimal, known.forced), first.where)
    found, notes = [], _Notes(first.where)
    for name in names:
        if len(given[name]) == given[name].null_count:
            raise DataError(
                f"{first.where}: column '{name}' has no value; leave it out (set drop:)"
            )
        column = Column(name) if values.get(name) is not None else None
        if column is None and name not in categories:
            column = _other(name, given[name], first.where)
        if column is not None and column.kind == "number":
            _require_exact(given[name], values.get(name), name, first.where)
        if column is None:
            column = Column(name, "category", _levels(name, parts, settings.missing))
            notes.category(column, given[name], name in categories)
        elif column.kind != "number":
            notes.time(column)
        found.append(column)
    commas = [
        name for name, read in values.items() if read is not None and reading.has_comma(texts[name])
    ]
    if commas and not known.forced:
        known = replace(known, decimal=",")
        notes.lines.append(
            f"{first.where}: decimal commas in {shortlist(commas)} (set decimal: to change)"
        )
    form = TableForm(tuple(found), known, settings.missing)
    notes.numbers([column.name for column in found if column.kind == "number"])
    if first.dialect is not None:
        notes.missing(first, names, settings.missing)
    return form, notes.lines


def _require_exact(cells: Cells, read: Array | None, name: str, where: str) -> None:
    """Raise DataError for long whole numbers, such as identifiers, that float64 cannot hold."""
    if read is None:
        read = pc.cast(cells, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if not np.nanmax(np.abs(read)) > EXACT:
        return
    moments = Moments(1)
    moments.add(read[np.isfinite(read), None])
    if moments.coarse_C[0] and pc.count_distinct(cells).as_py() > len(np.unique(read)):
        raise DataError(
            f"{where}: column '{name}' holds whole numbers up to {moments.largest_C[0]:.3g}, whose "
            "differences float64 cannot hold; leave it out if it is an identifier (set drop:)"
        )


def _other(name: str, cells: Cells, where: str) -> Column | None:
    """A column of typed values, or of text that holds dates or durations; None: a category."""
    kind, types = cells.type, pa.types
    if reading.is_number(kind):
        return Column(name)
    if types.is_date(kind) or types.is_timestamp(kind):
        return _date(name, reading.typed_dates(cells))
    if types.is_duration(kind) or types.is_time(kind):
        return Column(name, "duration")
    if reading.is_text(kind):
        form = reading.date_form(cells, name, where)
        times = None if form is None else reading.dates(cells, form)
        if form is not None and times is not None:
            return _date(name, times, form)
        if reading.are_durations(cells):
            return Column(name, "duration")
        return None
    if types.is_boolean(kind):
        return None
    raise DataError(f"{where}: column '{name}' holds {kind}, which is no number, text or date")


def _date(name: str, time_N: Array, form: str = "") -> Column:
    known = time_N[~np.isnat(time_N)]
    clock = bool((known != known.astype("datetime64[D]")).any())
    return Column(name, "date", clock=clock, form=form, cycles=varying(time_N))


def _cleaned(part: Part, name: str, missing: Sequence[str] = ()) -> Cells:
    """The cells of a column; text without blanks around it, and null where it is missing."""
    cells = part.cells(name)
    # In typed tables a gap is null, and a word is a word.
    words = missing if part.dialect is not None else ()
    return reading.clean(cells, words) if reading.is_text(cells.type) else cells


def _levels(name: str, parts: Sequence[Part], missing: Sequence[str]) -> tuple[str, ...]:
    found: set[str] = set()
    for part in parts:
        if part.table.schema.get_field_index(name) >= 0:
            cells = _cleaned(part, name, missing)
            found |= {name_of(value) for value in pc.unique(pc.drop_null(cells)).to_pylist()}
    if {level.casefold() for level in found} <= {"true", "false"}:
        found = {level.capitalize() for level in found}
    return in_order(found)


class _Notes:
    """The notes on what columns were read as."""

    MOST = 12

    def __init__(self, where: str) -> None:
        self.where, self.lines = where, []  # type: str, list[str]
        self.counts: Counter[str] = Counter()

    def _add(self, read_as: str, line: str) -> None:
        """Add a line on a column, unless there are many of its kind."""
        self.counts[read_as] += 1
        if self.counts[read_as] <= self.MOST:
            self.lines.append(line)
        elif self.counts[read_as] == self.MOST + 1:
            self.lines.append(f"{self.where}: and more columns are read as {read_as}")

    def category(self, column: Column, cells: Cells, wanted: bool) -> None:
        """A category, and whether it looks as if it were something else."""
        count = len(column.levels)
        note = f"{self.where}: column '{column.name}' read as a category of {count} levels"
        doubt = ""
        if reading.is_text(cells.type) and not wanted:
            known = pc.drop_null(cells)
            numbers_N = reading.look_like_numbers(known)
            others = len(known) - int(numbers_N.sum())
            if others == 0:
                doubt = "; its texts are numbers: save them as such if they are quantities"
            elif others == len(known) and reading.look_like_dates(known):
                doubt = (
                    "; its texts look like dates, in no form that is known: write them as "
                    "2024-01-31 or 2024-01-31 16:45"
                )
            elif others == len(known) and reading.begin_like_numbers(known):
                doubt = "; its texts are numbers with a sign or unit: leave that out of the file"
            elif others < len(known) / 2:
                place = int(np.flatnonzero(pc.is_valid(cells).to_numpy(zero_copy_only=False))[
                    np.flatnonzero(~numbers_N)[0]])  # fmt: skip
                note = (
                    f"{self.where}: column '{column.name}' has text among its numbers (row "
                    f"{place}: '{shown(cells[place].as_py())}'); read as a category of {count} "
                    "levels"
                )
                doubt = " "
        if count > max(20, len(cells) // 2):
            doubt = doubt.strip() + "; if it is an identifier, leave out the column (set drop:)"
        self._add("doubtful categories" if doubt else "categories", note + doubt.rstrip())

    def time(self, column: Column) -> None:
        """A date or a duration."""
        if column.kind == "duration":
            line = f"{self.where}: column '{column.name}' read as durations, in seconds"
            self._add("durations", line)
            return
        written = f" written as {column.form}" if column.form else ""
        waves = f", and sine and cosine of the {listed(column.waves)}" if column.waves else ""
        self._add(
            "dates",
            f"{self.where}: column '{column.name}' read as dates{written}: days since 1970-01-01"
            f"{waves}",
        )

    def numbers(self, names: Sequence[str]) -> None:
        """The columns of numbers."""
        if names:
            self.lines.append(
                f"{self.where}: read as numbers: {shortlist(names)} (list codes in categories: to "
                "change)"
            )

    def missing(self, part: Part, names: Sequence[str], words: Sequence[str]) -> None:
        """Which words mean missing, and which of them occur."""
        seen: dict[str, int] = {}
        for name in names:
            for word, count in reading.counted(part.cells(name), words).items():
                seen[word] = seen.get(word, 0) + count
        found = ", ".join(f"'{word}' ({count})" for word, count in seen.items())
        self.lines.append(
            f"{self.where}: missing values are empty fields and {shortlist(words, 3) or 'no word'}"
            + (f"; found: {found}" if found else "")
            + " (set missing: to change)"
        )


# --- labels ---------------------------------------------------------------------------------------


def label_values(part: Part, names: Sequence[str], written: bool = False) -> Array:
    """The labels in the columns ``names``, ``[n]``, or ``[n, K]`` if there are several.

    Numbers, truth values, or objects that are text and None where a label is missing (NaN in
    numbers). Only an empty field or null is missing. ``written``: what is text in the file stays
    text, unless it has decimal commas. Raises DataError for what cannot be labels.
    """
    columns = []
    for name in names:
        cells = _cleaned(part, name)
        as_it_is = part.dialect is None or (written and not reading.has_comma(cells))
        columns.append(_typed(cells, name, part) if as_it_is else _meant(cells, name, part))
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def complete_labels(part: Part, name: str, called: str = "y", missing: Sequence[str] = ()) -> Array:
    """The labels in a column, ``[n]``: numbers, truth values or text.

    Raises DataError, which calls the column ``called``, if a label is missing: an empty field, null
    or one of the words ``missing``.
    """
    values_N = label_values(part, [name])
    gaps = {None, *missing}
    rows = [row for row, v in enumerate(values_N.tolist()) if v in gaps or v != v]
    if rows:
        raise DataError(
            f"{part.where}: column '{name}' ({called}) is missing in {len(rows)} rows; first: row "
            f"{rows[0]}"
        )
    return values_N.astype(str) if values_N.dtype.kind == "O" else values_N


def _meant(cells: Cells, name: str, part: Part) -> Array:
    """What text in a file means: numbers, truth values or text."""
    dialect = part.dialect or Dialect()
    marks = Marks(dialect.decimal, dialect.forced)
    read = reading.numbers({name: cells}, marks, part.where, part.start)[name]
    # "nan" and "inf" are numbers among numbers, and words among themselves.
    if read is not None and np.isfinite(read).any():
        return _whole(cells, read)
    texts_N: Array = cells.to_numpy(zero_copy_only=False).astype(object)
    known = pc.unique(pc.drop_null(cells)).to_pylist()
    if known and {text.casefold() for text in known} <= {"true", "false"}:
        return np.array([None if v is None else v.capitalize() for v in texts_N], dtype=object)
    return texts_N


def _typed(cells: Cells, name: str, part: Part) -> Array:
    kind = cells.type
    if reading.is_text(kind):
        return np.asarray(cells.to_numpy(zero_copy_only=False)).astype(object)
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return np.asarray(cells.to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind) and not cells.null_count:
        return np.asarray(cells.to_numpy())
    if reading.is_number(kind):
        return np.asarray(pc.cast(cells, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    raise DataError(f"{part.where}: column '{name}' (y) holds {kind}, which cannot be labels")


def _whole(cells: Cells, read: Array) -> Array:
    """Numbers as int64 if they are written as such: large ones keep all digits."""
    try:
        return np.asarray(pc.cast(cells, pa.int64()).to_numpy()) if not cells.null_count else read
    except pa.ArrowInvalid:
        return read
