"""Finds values among the names that training gave to categories and classes.

A name is the text of a value as training read it, and what is read later may be written otherwise:
pandas makes ``True`` of TRUE, 0.5 of 0.50, 2139 of 02139, and 1.0 of 1 where a column has gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def positions(values: Any, names: Sequence[str]) -> Array:
    """The index of each value ``[n]`` in ``names``, float64; NaN if it is missing or not there.

    Values are looked up as they are written. What is not found so is found by its meaning: a truth
    value where all names are, a number where all names are, a whole number elsewhere. A meaning
    that several names share finds none of them.
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
    """What makes values of a series comparable with ``names``."""
    if set(names) <= {"True", "False"}:
        return lambda series: series.map(lambda value: str(value).casefold())
    return _numbers if are_numbers(names) else _whole


def _numbers(series: Any) -> Any:
    """Values as float64, NaN where they are none."""
    import pandas as pd

    return pd.to_numeric(series, errors="coerce").astype(float)


def _whole(series: Any) -> Any:
    """Values as text, whole numbers without their decimals."""
    return series.map(lambda value: _plain(str(value)))


def _plain(text: str) -> str:
    whole = text.removesuffix(".0")
    return whole if whole.lstrip("-").isdigit() else text
