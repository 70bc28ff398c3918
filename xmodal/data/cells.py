"""Cells of one column as Arrow arrays ``[n]``: text that means numbers, dates or durations.

The decimal mark is a question to the whole table: ``1,234`` alone may be 1.234 or 1234. Such
numbers are read where other columns, the training table or the user tell the mark, else refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmodal.errors import DataError
from xmodal.text import shown

Array = NDArray[Any]
Cells = Any
"""An Arrow array, ``[n]``; pyarrow has no types for mypy."""

_POWER = r"([eE][+-]?\d+)?$"
_PLAIN = {
    ".": r"^[+-]?(\d+\.?\d*|\.\d+)" + _POWER,
    ",": r"^[+-]?(\d+,?\d*|,\d+)" + _POWER,
}
_GROUPED = {
    ".": r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?" + _POWER,
    ",": r"^[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?" + _POWER,
}
_OTHER = {".": ",", ",": "."}
_ISO = r"^\d{4}-\d{2}(-\d{2}([T ]\d{2}(:?\d{2}(:?\d{2}(\.\d+)?)?)?)?)?$"
_ZONED = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:?\d{2}(:?\d{2}(\.\d+)?)? ?(Z|[+-]\d{2}(:?\d{2})?)$"
_MONTHS = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_LIKE_DATE = (
    r"(?i)^\d{1,4}[./-](\d{1,2}|[a-z]{3})[./-]\d{1,4}\b"
    rf"|^\d{{1,2}} {_MONTHS},? \d{{4}}\b|^{_MONTHS} \d{{1,2}}, \d{{4}}\b"
)
_MAYBE_DATE = rf"{_LIKE_DATE}|\b{_MONTHS}\b.*\d{{4}}|\d{{4}}\b.*\b{_MONTHS}\b|^\d{{4}}-\d{{1,2}}-\d"
# pandas counts in ns, up to 106,751 days.
_CLOCK = r"^[+-]?(\d{1,5} days?,? ?)?[+-]?\d{1,4}:\d{2}(:\d{2}([.,]\d+)?)?$|^[+-]?\d{1,5} days?$"
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_DAYS = (
    "%d.%m.%Y", "%Y/%m/%d", "%d-%b-%Y", "%Y.%m.%d",
    "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y",
)  # fmt: skip
_SURE = tuple(day + time for day in _DAYS for time in _TIMES)
_DAY_FIRST = tuple("%d/%m/%Y" + t for t in _TIMES)
_MONTH_FIRST = tuple("%m/%d/%Y" + t for t in _TIMES)


@dataclass(frozen=True)
class Marks:
    """The decimal mark where nothing in a table tells it; ``forced``: for all its numbers."""

    decimal: str = "."
    forced: bool = False


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text."""
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_number(kind: Any) -> bool:
    """Whether an Arrow type is a number; truth values are none."""
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def plain(cells: Cells, name: str, where: str) -> Cells:
    """One array without dictionaries. Raises DataError for what is no single value a row."""
    if isinstance(cells, pa.ChunkedArray):
        cells = cells.combine_chunks()
        if isinstance(cells, pa.ChunkedArray):  # no chunk, or several that exceed one array
            cells = pa.concat_arrays(cells.chunks) if cells.num_chunks else pa.nulls(0, cells.type)
    if isinstance(cells, pa.ExtensionArray):
        raise DataError(f"{where}: column '{name}' holds {cells.type}; {_LEAVE_OUT}")
    if pa.types.is_dictionary(cells.type):
        levels = cells.dictionary
        if pa.types.is_string_view(levels.type):
            levels = pc.cast(levels, pa.large_string())
        cells = pc.take(levels, cells.indices)
    elif pa.types.is_run_end_encoded(cells.type):
        cells = pc.run_end_decode(cells)
    kind = cells.type
    if pa.types.is_string_view(kind):
        return pc.cast(cells, pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        try:
            cells = pc.cast(cells, pa.large_string())
        except pa.ArrowInvalid:
            raise DataError(f"{where}: column '{name}' holds bytes; {_LEAVE_OUT}") from None
    if pa.types.is_nested(kind):
        what = "lists" if "list" in str(kind) else "structures"
        raise DataError(f"{where}: column '{name}' holds {what} ({kind}); {_LEAVE_OUT}")
    return cells


_LEAVE_OUT = "make it one number or one text a row, or leave it out (set drop:)"


def clean(cells: Cells, missing: Sequence[str]) -> Cells:
    """Text without blanks around it; null where it is empty or a word that means missing."""
    cells = pc.utf8_trim_whitespace(cells)
    gone = pc.is_in(cells, value_set=pa.array(["", *missing], cells.type))
    return pc.if_else(gone, pa.scalar(None, cells.type), cells)


# --- numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Written:
    """How a column's numbers are written: the mark, none if it has no mark; ``open``: either."""

    mark: str = ""
    open: str = ""


def numbers(
    texts: Mapping[str, Cells], marks: Marks, where: str, start: int = 0
) -> dict[str, NDArray[np.float64] | None]:
    """The values of columns of text, NaN for null; None for a column that holds other text.

    ``start`` is the number of the first row. Raises DataError naming the column if its numbers can
    be read in two ways.
    """
    if marks.forced:
        return {
            name: _values(text, marks.decimal) if _all(text, marks.decimal) else None
            for name, text in texts.items()
        }
    # Most tables have no comma in a number, and then one cast a column does.
    quick = {name: _cast(text) for name, text in texts.items()}
    slow = {name for name, values in quick.items() if values is None}
    written = {name: _how(texts[name]) for name in slow}
    told = {how.mark for how in written.values() if how and how.mark}
    doubtful = any(how is not None and how.open for how in written.values())
    if "," not in told and marks.decimal == "." and not doubtful:
        for name, how in written.items():
            quick[name] = None if how is None else _values(texts[name], how.mark or ".")
        return quick
    written |= {name: _how(texts[name]) for name in texts if name not in slow}
    told = {how.mark for how in written.values() if how and how.mark}
    result: dict[str, NDArray[np.float64] | None] = {}
    for name, text in texts.items():
        how = written[name]
        if how is None:
            # Infinities and the like, which a cast reads.
            result[name] = quick[name]
        else:
            place = f"{where}: column '{name}'"
            mark = how.mark or _decided(text, how, told, marks, place, start)
            result[name] = _values(text, mark)
    return result


def _decided(
    text: Cells, how: _Written, told: set[str], marks: Marks, place: str, start: int
) -> str:
    """The mark of a column that does not tell it."""
    if not how.open:
        return "."
    mark = told.pop() if len(told) == 1 else "" if told else marks.decimal
    told |= {mark} - {""}
    if how.open == mark:
        return mark
    at = pc.index(pc.fill_null(pc.match_substring_regex(text, "[.,]"), False), True).as_py()
    value = shown(text[at].as_py())
    raise DataError(
        f"{place} can be read in two ways: row {start + at} has '{value}', "
        f"{value.replace('.', '').replace(',', '')} or {value.replace(',', '.')}; say which "
        "(set decimal: to point or comma)"
    )


def _cast(text: Cells) -> NDArray[np.float64] | None:
    """The values of text with decimal points alone, or None."""
    try:
        values: NDArray[np.float64] = pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    return values


def _matches(text: Cells, mark: str) -> Cells:
    """Which cells are numbers with this decimal mark; null where they are missing."""
    return pc.or_(
        pc.match_substring_regex(text, _PLAIN[mark]),
        pc.match_substring_regex(text, _GROUPED[mark]),
    )


def _all(text: Cells, mark: str) -> bool:
    return pc.all(_matches(text, mark)).as_py() is not False


def _how(text: Cells) -> _Written | None:
    """How the numbers of a column are written; None if they are none."""
    point, comma = _all(text, "."), _all(text, ",")
    if not point and not comma:
        return None
    if point != comma:
        return _Written("." if point else ",")
    seen = [m for m in ".," if pc.any(pc.match_substring(text, m)).as_py()]
    return _Written(open="".join(seen))


def _values(text: Cells, mark: str) -> NDArray[np.float64]:
    text = pc.replace_substring(text, _OTHER[mark], "")
    text = text if mark == "." else pc.replace_substring(text, ",", ".")
    return np.asarray(pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False))


def first_that_is_no_number(text: Cells) -> int:
    """The first cell that is text and no number with a decimal point, or with a comma."""
    for mark in (".", ","):
        matches = pc.fill_null(_matches(text, mark), True)
        at: int = pc.index(matches, False).as_py()
        if at >= 0 and (mark == "," or not _matches(text.slice(at, 1), ",")[0].as_py()):
            return at
    return 0


def has_comma(text: Cells) -> bool:
    """Whether numbers in a column have a decimal comma for sure."""
    if not pc.any(pc.match_substring(text, ",")).as_py():
        return False
    how = _how(text)
    return how is not None and "," in how.mark + how.open


def look_like_numbers(text: Cells) -> NDArray[np.bool_]:
    """Which cells (without gaps) are numbers, whatever their decimal mark."""
    either = pc.or_(_matches(text, "."), _matches(text, ","))
    return np.asarray(either.to_numpy(zero_copy_only=False), dtype=bool)


def begin_like_numbers(text: Cells) -> bool:
    """Whether most cells are a number with a sign or unit, such as ``12.5 %`` or ``$3``."""
    with_unit = r"^[^\w\s]{0,2} ?[+-]?\d[\d.,]*\s?([^\d\s]{1,4})?$"
    found = pc.match_substring_regex(text, with_unit)
    return bool(pc.sum(found).as_py() * 2 > len(text))


def counted(text: Cells, words: Sequence[str]) -> dict[str, int]:
    """How often each of ``words`` is a cell."""
    if not words:
        return {}
    text = pc.utf8_trim_whitespace(text)
    found = text.filter(pc.is_in(text, value_set=pa.array(words, text.type)))
    if not len(found):
        return {}
    return {item["values"]: item["counts"] for item in found.value_counts().to_pylist()}


# --- dates and durations --------------------------------------------------------------------------


def date_form(text: Cells, name: str, where: str) -> str | None:
    """How dates in a column of text are written: empty for ISO dates; None if they are none.

    Raises DataError if day and month cannot be told apart.
    """
    known = pc.drop_null(text)
    if not len(known):
        return None
    if _matching(known, _ISO) or _matching(known, _ZONED):
        return "" if dates(text, "") is not None else None
    if not _matching(known.slice(0, 1), _LIKE_DATE):
        return None
    for form in _SURE:
        if _parsed(known, form) is not None:
            return form
    both = [next((f for f in forms if _parsed(known, f) is not None), None)
            for forms in (_DAY_FIRST, _MONTH_FIRST)]  # fmt: skip
    if all(both):
        raise DataError(
            f"{where}: column '{name}' holds dates such as '{shown(known[0])}', in which day and "
            "month cannot be told apart; write 2024-01-31, or list it in categories: or drop:"
        )
    return next((form for form in both if form), None)


def look_like_dates(known: Cells) -> bool:
    """Whether most cells (without gaps) look like dates, in a form that may not be known."""
    found = pc.match_substring_regex(known, _MAYBE_DATE)
    return bool(pc.sum(found).as_py() * 2 > len(known))


def dates(text: Cells, form: str) -> Array | None:
    """Text as ``datetime64[us]`` (UTC), NaT for null; None if a cell is no date.

    ISO dates are always understood, then ``form``, then forms that mean one thing only.
    """
    known = pc.drop_null(text)
    if _matching(known, _ZONED):
        for zoned in (pa.timestamp("us", "UTC"),):
            try:
                return _datetimes(pc.cast(pc.replace_substring_regex(text, " ?Z$", "Z"), zoned))
            except pa.ArrowInvalid:
                return None
    if _matching(known, _ISO):
        months = pc.match_substring_regex(text, r"^\d{4}-\d{2}$")
        full = pc.if_else(months, pc.binary_join_element_wise(text, *_texts(text, "01", "-")), text)
        try:
            return _datetimes(pc.cast(full, pa.timestamp("us")))
        except pa.ArrowInvalid:
            return None
    for one in dict.fromkeys([*([form] if form else []), *_SURE]):
        parsed = _parsed(known, one)
        if parsed is not None:
            result = np.full(len(text), np.datetime64("NaT"), "datetime64[us]")
            result[pc.is_valid(text).to_numpy(zero_copy_only=False)] = parsed
            return result
    return None


def _texts(like: Cells, *texts: str) -> list[Any]:
    """Scalars of the type of ``like``; Arrow does not mix its types of text."""
    return [pa.scalar(text, like.type) for text in texts]


def _datetimes(cells: Cells) -> Array:
    naive = pc.cast(cells, pa.timestamp("us"))
    return np.asarray(naive.to_numpy(zero_copy_only=False), dtype="datetime64[us]")


def typed_dates(cells: Cells) -> Array:
    """Dates and timestamps as ``datetime64[us]`` (UTC), NaT for null."""
    kind = cells.type
    if pa.types.is_date(kind):
        return _datetimes(pc.cast(cells, pa.timestamp("us")))
    return _datetimes(pc.cast(cells, pa.timestamp("us", kind.tz), safe=False))


def _parsed(known: Cells, form: str) -> Array | None:
    """Cells without gaps as ``datetime64[us]``, or None."""
    if not len(known):
        return None
    try:
        datetime.strptime(known[0].as_py(), form)  # the usual case: fails at once
    except ValueError:
        return None
    import pandas as pd

    found = pd.to_datetime(pd.Series(known.to_pylist()), format=form, errors="coerce")
    return None if found.isna().any() else found.to_numpy().astype("datetime64[us]")


def _matching(known: Cells, pattern: str) -> bool:
    return bool(len(known)) and bool(pc.all(pc.match_substring_regex(known, pattern)).as_py())


def are_durations(text: Cells) -> bool:
    """Whether text is ``1 days 02:03:04``, ``26:03:04`` or ``02:03``."""
    return _matching(pc.drop_null(text), _CLOCK)


def seconds(text: Cells) -> NDArray[np.float64]:
    """Durations as seconds, NaN for null. Raises ValueError for other text."""
    import pandas as pd

    result = np.full(len(text), np.nan)
    known = pc.drop_null(text)
    short = pc.match_substring_regex(known, r"^[^:]*:\d{2}$")
    full = pc.if_else(short, pc.binary_join_element_wise(known, *_texts(known, ":00", "")), known)
    found = pd.to_timedelta(pd.Series(pc.replace_substring(full, ",", ".").to_pylist()))
    result[pc.is_valid(text).to_numpy(zero_copy_only=False)] = found.dt.total_seconds()
    return result


def typed_seconds(cells: Cells) -> NDArray[np.float64]:
    """Durations and times of day as seconds, NaN for null."""
    unit = cells.type.unit
    factor = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
    bits = pa.int32() if pa.types.is_time32(cells.type) else pa.int64()
    whole = cells.view(bits) if hasattr(cells, "view") else pc.cast(cells, bits)
    return (
        np.asarray(pc.cast(whole, pa.float64(), safe=False).to_numpy(zero_copy_only=False)) / factor
    )
