"""Categories and classes are text; here values of any type find their names.

They are named by their text as training read it. Later the same value may be written another way:
pandas turns TRUE into ``True``, 0.50 into 0.5, 02139 into 2139, and 1 into 1.0 if the column has
gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
EXACT = 2**53
"""Whole numbers below this are exact as float64, so that two of them are never one."""


def name_of(value: Any) -> str:
    """A value as the name of a category or class: whole numbers without decimals."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return str(int(value))
    return str(value)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Different names, sorted: numbers by value, anything else by spelling."""
    found = sorted({*names})
    return tuple(sorted(found, key=float) if are_numbers(found) else found)


def positions(values: Any, names: Sequence[str]) -> Array:
    """The index of each value ``[n]`` in ``names``, float64; NaN if it is missing or not there.

    Values are looked up as they are written. A value that is not found so is compared by meaning:
    as a truth value if all names are, as a number if all names are, else as a whole number. A
    meaning that several names share finds none of them.
    """
    import pandas as pd

    series = pd.Series(values).reset_index(drop=True).astype(object)
    given = series[series.notna()]
    place = {name: float(index) for index, name in reversed(list(enumerate(names)))}
    found = given.map(str).map(place).astype(float)
    others = given[found.isna()]
    if len(others):
        meaning = _meaning(names)
        keys = meaning(pd.Series(list(names), dtype=object))
        unique = keys.notna() & ~keys.duplicated(keep=False)
        index_of = dict(zip(keys[unique], np.flatnonzero(unique).astype(float), strict=True))
        found[others.index] = meaning(others).map(index_of).astype(float)
    result: Array = found.reindex(series.index).to_numpy(np.float64)
    return result


def are_numbers(names: Sequence[str]) -> bool:
    """Whether every name is a finite number."""
    return all(map(_is_number, names))


def _is_number(name: str) -> bool:
    try:
        return isfinite(float(name))
    except ValueError:
        return False


def _meaning(names: Sequence[str]) -> Callable[[Any], Any]:
    """A function that turns a series into values to compare, for these ``names``."""
    if set(names) <= {"True", "False"}:
        return lambda series: series.map(lambda value: str(value).casefold())
    return _as_numbers if are_numbers(names) else _whole


def _as_numbers(series: Any) -> Any:
    """Values as float64; NaN for what is no number."""
    import pandas as pd

    return pd.to_numeric(series, errors="coerce").astype(float)


def _whole(series: Any) -> Any:
    """Values as text, whole numbers without their decimals."""
    return series.map(lambda value: _plain(str(value)))


def _plain(text: str) -> str:
    whole = text.removesuffix(".0")
    return whole if whole.lstrip("-").isdigit() else text
