"""From one grid of cells or points to another, as matrices along one axis.

Shapes: n points of the first grid, m of the second.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@lru_cache(maxsize=16)
def averaging(n: int, m: int) -> Array:
    """From n cells to m cells of the same interval, ``[m, n]``: means weighted by overlap."""
    fine, coarse = np.arange(n + 1) / n, np.arange(m + 1) / m
    left = np.maximum(fine[None, :-1], coarse[:-1, None])
    right = np.minimum(fine[None, 1:], coarse[1:, None])
    return np.asarray(np.maximum(right - left, 0) * m)


def splines(places_n: Array, wanted_m: Array) -> Array:
    """Cubic splines through values at the first places, at the wanted ones, ``[m, n]``."""
    from scipy.interpolate import CubicSpline

    return np.asarray(CubicSpline(places_n, np.eye(len(places_n)))(wanted_m))


def centres(n: int) -> Array:
    """Centres of n cells of [0, 1]."""
    return (np.arange(n) + 0.5) / n


@lru_cache(maxsize=16)
def refining(m: int, n: int) -> Array:
    """From the centres of m cells to those of n cells, by cubic splines, ``[n, m]``."""
    return splines(centres(m), centres(n))


def on_both_axes(matrix: Array, field: Array) -> Array:
    """Apply a matrix along the last two axes of ``[..., n, n]``."""
    return np.asarray(matrix @ field @ matrix.T)
