"""Turns labels as users have them into labels that a metric reads: classes, numbers, fields.

Labels come from arrays, tensors and tables: as names, numbers or text of numbers, with and without
axes of size 1. Labels that cannot be right are refused. ``infer_kind`` guesses what labels are if
nobody says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xmodal.data.naming import EXACT, are_numbers, in_order, name_of, positions
from xmodal.data.preparation import RawForm
from xmodal.errors import DataError
from xmodal.text import shortlist, shown

Kind = Literal["classification", "multi-label", "regression", "dense"]

Array = NDArray[Any]
Shape = tuple[int, ...]
FEW = 20
"""Up to this many different whole numbers are taken for classes."""


def infer_kind(y_N: NDArray[Any], length: int | None = None) -> Kind:
    """The kind of labels ``[n, ...]``; ``length``: of samples that are sequences.

    Classes: text, booleans, up to 20 different whole numbers, whole numbers that fill 0 .. m-1 or
    1 .. m, and rows of 0/1 with a single 1 each. Several labels: other rows of 0/1. A field: labels
    as long as the samples, or with two or more axes. Everything else is numbers.
    """
    if y_N.ndim > 2:
        return "dense"
    if y_N.dtype.kind == "U":
        return "classification"
    if y_N.ndim == 2:
        binary = bool(np.isin(y_N, (0, 1)).all())
        if binary and bool((y_N.sum(axis=1) == 1).all()):
            return "classification"
        if y_N.shape[1] == length:
            return "dense"
        return "multi-label" if binary else "regression"
    if y_N.dtype.kind == "b":
        return "classification"
    values = np.unique(y_N)
    if not whole_numbers(values).all() or len(values) > len(y_N) // 2:
        return "regression"
    # Class numbers fill 0 .. m-1 or 1 .. m; counts, years and ages seldom do. As Python's own
    # integers, because 127 - 0 + 1 is -128 in int8.
    first, last = int(values[0]), int(values[-1])
    counted = first in (0, 1) and last - first + 1 == len(values)
    return "classification" if len(values) <= FEW or counted else "regression"


def whole_numbers(y: Array) -> NDArray[np.bool_]:
    """Which numbers are whole and exact, so that they can number classes."""
    if y.dtype.kind in "iub":
        return np.ones(y.shape, dtype=bool)
    y = y.astype(np.result_type(y, np.float64), copy=False)  # float16 has no EXACT
    return np.asarray((y == np.round(y)) & (np.abs(y) <= EXACT))


def class_names(
    parts: Sequence[Array], names: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The classes of labels ``[n]``, what their values are called in the data, and a note.

    Without ``names`` a class is called what its labels are: text, or a number (1.0 is ``1``), in
    order. With ``names``, labels that are text, or numbers among names that are numbers, are names.
    Other numbers are places 0 .. K-1; if they are not, but as many as the names, they get the names
    in order.
    """
    found = in_order({name_of(value) for y_N in parts for value in np.unique(y_N).tolist()})
    counted = tuple(str(place) for place in range(len(names)))
    if not names:
        plain = found == tuple(str(place) for place in range(len(found)))
        text = any(y_N.dtype.kind in "Ub" for y_N in parts)
        note = "" if plain and not text else f"classes in order: {shortlist(found)}"
        if not text and not plain:
            note = f"labels {shortlist(found)} are numbered 0 to {len(found) - 1}"
        return found, found, note
    names = tuple(names)
    if any(y_N.dtype.kind == "U" for y_N in parts) or are_numbers(names):
        return names, names, ""
    if not {*found} <= {*counted} and len(found) == len(names):
        pairs = [f"{value} is {name}" for value, name in zip(found, names, strict=True)]
        return names, found, f"labels get the names of classes in order: {shortlist(pairs)}"
    return names, counted, ""


def as_labels(y: Any) -> Array:
    """Labels as an array ``[n, ...]``. Raises DataError for a single value."""
    array = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    if array.ndim == 0:
        raise DataError(f"y: expected one label for each sample, [n], got {array}")
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def absent(y: Array) -> NDArray[np.bool_]:
    """Which of n samples have no label at all (None, NaN), ``[n]``."""
    import pandas as pd

    return np.asarray(pd.isna(y).all(axis=tuple(range(1, y.ndim))))


def require_all(y: Array, first: int) -> None:
    """Raise DataError for the first sample that lacks a label, or one of its labels."""
    import pandas as pd

    rows = np.flatnonzero(pd.isna(y).any(axis=tuple(range(1, y.ndim))))
    if len(rows):
        raise DataError(f"y: row {first + rows[0]} has no label")


def class_numbers(y: Array, names: Sequence[str], first: int) -> NDArray[np.int64]:
    """The class 0 .. K-1 of each label: a name, a number, or a row with a single 1.

    If the names are numbers themselves, a number is a name, not a position.
    Raises DataError naming the row.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.shape[1] == len(names) and y.dtype.kind in "fiub":
        return _places_of_ones(y, first)
    if y.ndim != 1:
        raise DataError(f"y: expected one class for each sample, [n]; got {list(y.shape)}")
    index_N = positions(y, names)
    more = ""
    if not are_numbers(names):
        counted = positions(y, [str(index) for index in range(len(names))])
        index_N = np.where(np.isnan(index_N), counted, index_N)
        more = f", or a number 0 to {len(names) - 1}"
    wrong = np.flatnonzero(np.isnan(index_N))
    if len(wrong):
        raise DataError(
            f"y: row {first + wrong[0]} is '{shown(y[wrong[0]])}'; expected one of "
            f"{shortlist(names)}{more}"
        )
    return index_N.astype(np.int64)


def _places_of_ones(y_NK: Array, first: int) -> NDArray[np.int64]:
    wrong = np.flatnonzero(~np.isin(y_NK, (0, 1)).all(axis=1) | (y_NK.sum(axis=1) != 1))
    if len(wrong):
        raise DataError(
            f"y: row {first + wrong[0]} is {y_NK[wrong[0]].tolist()}; expected a single 1 among 0"
        )
    return np.asarray(y_NK.argmax(axis=1), dtype=np.int64)


def fields(y: Array, form: RawForm, shape: Shape, first: int) -> NDArray[np.float64]:
    """Labels, in the user's layout or the model's, as ``[n, *shape]``. Raises DataError."""
    kept = form.label_shape or shape
    layouts: dict[Shape, Shape] = {_squeezed(shape): shape, _squeezed(kept): kept}
    layouts |= {shape: shape, kept: kept}
    found = layouts.get(y.shape[1:], layouts.get(_squeezed(y.shape[1:])))
    if found is None:
        wanted = ", ".join(map(str, ("n", *kept)))
        raise DataError(f"y: expected [{wanted}] of numbers, got {list(y.shape)} of {y.dtype}")
    y = _numbers(y, first).reshape(len(y), *found)
    if form.label_channel is not None and found == kept:
        y = np.moveaxis(y, 1 + form.label_channel, 1)
    return np.ascontiguousarray(y.reshape(len(y), *shape), dtype=np.float64)


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _numbers(y: Array, first: int) -> Array:
    """Labels as numbers, also if they are written as text; NaN for gaps."""
    if y.dtype.kind in "fiub":
        return y
    import pandas as pd

    flat = pd.Series(y.ravel()).astype(object)
    values = pd.to_numeric(flat, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    values = np.where(np.isnan(values), positions(flat, ("False", "True")), values)
    wrong = np.flatnonzero(np.isnan(values) & flat.notna().to_numpy())
    if len(wrong):
        row = first + wrong[0] // (y.size // len(y))
        raise DataError(f"y: row {row} is '{shown(flat[wrong[0]])}'; expected a number")
    return values.reshape(y.shape)
