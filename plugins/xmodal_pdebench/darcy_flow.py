"""PDEBench's Darcy flow: how pressure spreads from a random start, until it is nearly steady.

    u_t = div(nu grad u) + beta,   beta = 0.1,   u = 0 around the unit square

Centred differences between cells; nu on a face is the mean of its two cells, and u is 0 in the
cells around the square, so that the rim lies half a cell outside. PDEBench steps through time with
steps of 1e-5 and keeps the field at t = 1.75. Here the same equations are solved exactly in time:
their steady part by one factorisation, and with it exp(-t K) by Lanczos' method in the Krylov space
of the inverse.

Shapes: n cells per side, float64 ``[n, n]``, x first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xmodal_pdebench import darcy_draws as draws
from xmodal_pdebench.grids import on_both_axes, splines

Array = npt.NDArray[np.float64]

BETA = 0.1
TIME = 1.75
"""PDEBench integrates to 2 in steps of .25, and its files keep the last field but one."""
TOLERANCE = 1e-11
MAX_ITERATIONS = 80


def matrix(nu: Array, spacing: float) -> Any:
    """K = -div(nu grad) as a sparse matrix ``[n^2, n^2]``, symmetric and positive definite."""
    from scipy.sparse import diags_array

    n = len(nu)
    # A cell outside has the nu of its neighbour.
    wide = np.pad(nu, 1, mode="edge")
    along_x = 0.5 * (wide[1:, 1:-1] + wide[:-1, 1:-1]) / spacing**2
    along_y = 0.5 * (wide[1:-1, 1:] + wide[1:-1, :-1]) / spacing**2
    own = along_x[1:] + along_x[:-1] + along_y[:, 1:] + along_y[:, :-1]
    after = along_y[:, 1:].copy()
    after[:, -1] = 0  # the last cell of a row and the first of the next do not touch
    right, below = -after.ravel()[:-1], -along_x[1:-1].ravel()
    bands = [below, right, own.ravel(), right, below]
    return diags_array(bands, offsets=[-n, -1, 0, 1, n], format="csc")


def solve(
    nu: Array, start: Array, time: float = TIME, beta: float = BETA, spacing: float | None = None
) -> Array:
    """u at ``time`` from ``start``; ``spacing`` is the distance of cells (default: 1 / n).

    Raises ArithmeticError if Lanczos' method does not converge.
    """
    from scipy.sparse.linalg import splu

    n = len(nu)
    # Symmetric, so no pivots are needed; the ordering makes half the fill of the default.
    factors = splu(
        matrix(nu, 1 / n if spacing is None else spacing),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    steady = factors.solve(np.full(n * n, beta))
    return np.asarray(steady + _decayed(factors, start.ravel() - steady, time)).reshape(n, n)


def _decayed(factors: Any, w: Array, time: float) -> Array:
    """exp(-time K) w, from the factors of K."""
    size = float(np.linalg.norm(w))
    if size == 0:
        return w
    basis = [w / size]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(MAX_ITERATIONS):
        new = factors.solve(basis[-1])
        diagonal.append(float(new @ basis[-1]))
        # Orthogonal to all, twice: Lanczos' short recurrence loses it.
        known = np.stack(basis)
        for _ in range(2):
            new -= known.T @ (known @ new)
        values, vectors = np.linalg.eigh(
            np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        )
        kept = values > 0
        weight = np.exp(-time / np.where(kept, values, np.inf)) * kept
        parts = vectors @ (weight * vectors[0])
        if len(parts) > 2 and np.abs(parts[-2:]).max() < TOLERANCE:
            return np.asarray(size * (parts @ known))
        beside.append(float(np.linalg.norm(new)))
        basis.append(new / beside[-1])
    raise ArithmeticError(f"Darcy flow: no convergence in {MAX_ITERATIONS} iterations")


def samples(first: int, count: int, resolution: int) -> tuple[Array, Array]:
    """nu and u of the samples from number ``first`` on, ``[count, 1, n, n]`` each."""
    shape = (count, 1, resolution, resolution)
    x, y = np.empty(shape), np.empty(shape)
    for batch in range(first // draws.BATCH, (first + count - 1) // draws.BATCH + 1):
        # A threshold over the batch decides on nu, so a batch is always drawn as a whole.
        nu, start = draws.permeability(batch, resolution), draws.start(batch, resolution)
        offset = batch * draws.BATCH
        for number in range(max(first, offset), min(first + count, offset + draws.BATCH)):
            x[number - first, 0] = nu[number - offset]
            y[number - first, 0] = solve(
                x[number - first, 0], start[number - offset].astype(np.float64)
            )
    return x, y


def coarse(x: Array, points: int, stride: int = 1) -> Array:
    """u on ``points`` inner points per side, from the mean of all starts: a constant.

    Nobody knows the start: it is random, and not part of a sample. As u depends on it linearly,
    this is the mean of u over all starts, but for the coarseness.
    """
    n = x.shape[-1]
    cell = 1 / (n * stride)
    given = (np.arange(n) * stride + 0.5) * cell
    # u is 0 half a cell outside the square.
    spacing = (1 + cell) / (points + 1)
    places = np.arange(points + 2) * spacing - cell / 2
    nearest = np.clip(np.rint((places[1:-1] / cell - 0.5) / stride).astype(int), 0, n - 1)
    back = splines(places, given)[:, 1:-1]
    start = np.full((points, points), np.mean(draws.LEVEL))
    solved = [solve(nu[np.ix_(nearest, nearest)], start, spacing=spacing) for nu in x[:, 0]]
    return on_both_axes(back, np.stack(solved))[:, None]
