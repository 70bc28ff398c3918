"""Coarse numerical answers to PDEBench's tasks in one dimension, by their own solvers.

Each takes inputs ``[N, C, X]``, which are every ``stride``-th cell of the grid, averages them to
``points`` cells, solves there, and carries the solution back by cubic splines.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from xmodal_pdebench import advection as upwind
from xmodal_pdebench import burgers as cole_hopf
from xmodal_pdebench import gas, reaction, sorption
from xmodal_pdebench.grids import averaging, centres, splines

Array = npt.NDArray[np.float64]

REACTION_STEPS = 10
SORPTION_GROWTH = 2.0
"""Steps of diffusion and sorption double from 0.05 on."""
SORPTION_FIRST = 0.05


@lru_cache(maxsize=16)
def _there_and_back(
    cells: int, points: int, stride: int, periodic: bool = True
) -> tuple[Array, Array]:
    """Matrices ``[points, X]`` to the coarse cells and ``[X, points]`` back to the given ones."""
    given = (np.arange(cells) * stride + 0.5) / (cells * stride)
    back = _periodic(centres(points), given) if periodic else splines(centres(points), given)
    if stride == 1:
        return averaging(cells, points), back
    return _periodic(given, centres(points)), back


def _periodic(places_n: Array, wanted_m: Array) -> Array:
    """Cubic splines through values of a period of 1, ``[m, n]``."""
    from scipy.interpolate import CubicSpline

    closed = np.append(places_n, places_n[0] + 1)
    values = np.vstack([np.eye(len(places_n)), np.eye(len(places_n))[:1]])
    first = closed[0]
    return np.asarray(
        CubicSpline(closed, values, bc_type="periodic")((wanted_m - first) % 1 + first)
    )


def advection(x: Array, points: int, stride: int = 1) -> Array:
    """u at t = 2: moved along its characteristics in one step, much better than many upwind ones.

    On all points what remains is the numerical diffusion of the published scheme.
    """
    cells = x.shape[-1]
    there, _ = _there_and_back(cells, points, stride)
    given = (np.arange(cells) * stride + 0.5) / (cells * stride)
    shifted = _periodic(centres(points), given - upwind.SPEED * upwind.END)
    return np.asarray(x[:, 0] @ there.T @ shifted.T)[:, None]


def burgers(x: Array, points: int, stride: int = 1) -> Array:
    """u at t = 2."""
    there, back = _there_and_back(x.shape[-1], points, stride)
    return np.asarray(cole_hopf.evolve(x[:, 0] @ there.T, cole_hopf.END) @ back.T)[:, None]


def diffusion_reaction(x: Array, points: int, stride: int = 1) -> Array:
    """u at t = 0.29."""
    there, back = _there_and_back(x.shape[-1], points, stride)
    u = reaction.evolve(x[:, 0] @ there.T, reaction.END, REACTION_STEPS)
    return np.asarray(u @ back.T)[:, None]


def diffusion_sorption(x: Array, points: int, stride: int = 1) -> Array:
    """c at t = 500. Near the inlet it is steep, but known there: the spline starts at c = 1."""
    cells = x.shape[-1]
    c = x[:, 0] @ averaging(cells, points).T
    ends = sorption.times(sorption.END, SORPTION_FIRST, SORPTION_GROWTH)
    c = sorption.evolve(c, ends)
    # The inlet's value holds in the cell before the first one.
    places = np.append(-0.5 / points, centres(points))
    back = splines(places, centres(cells))
    known = np.full((len(c), 1), sorption.INLET)
    return np.asarray(np.hstack([known, c]) @ back.T)[:, None]


def navier_stokes(x: Array, points: int, stride: int = 1) -> Array:
    """Density, pressure and velocity at t = 1, ``[N, 3, X]``."""
    there, back = _there_and_back(x.shape[-1], points, stride)
    return np.asarray(gas.evolve(np.ascontiguousarray(x @ there.T), gas.END) @ back.T)
