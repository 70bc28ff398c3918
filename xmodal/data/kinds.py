"""What labels are where nobody says: classes, numbers, several 0/1 labels, or a field."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["classification", "multi-label", "regression", "dense"]

FEW = 20
"""Up to so many whole numbers are classes, wherever they lie."""


def infer_kind(y_N: NDArray[Any], length: int | None = None) -> Kind:
    """The kind of labels ``[n, ...]``; ``length`` is that of samples that are sequences.

    Text, booleans, up to 20 whole numbers, and whole numbers that fill 0 .. m-1 or 1 .. m are
    classes, and so are rows of 0/1 with a single 1 each; other rows of 0/1 are several labels;
    labels as long as the samples, or with two or more axes, are a field; all else is numbers.
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
    values = np.unique(y_N)
    if y_N.dtype.kind == "b":
        return "classification"
    if bool((values != np.round(values)).any()) or len(values) > len(y_N) // 2:
        return "regression"
    # Class numbers fill 0 .. m-1 or 1 .. m; counts, years and ages seldom do.
    counted = values[0] in (0, 1) and values[-1] - values[0] + 1 == len(values)
    return "classification" if len(values) <= FEW or counted else "regression"
