"""``pdebench/diffusion-sorption``: R(c) c_t = D c_xx, water that carries a solute through clay.

The retardation R = 1 + (1 - p) / p rho k n (c + 1e-6)^(n - 1) follows Freundlich. On the left the
concentration is 1; on the right the value beyond the end is (c[-2] - c[-1]) D / dx, as published.
The start is one constant for all x, so a sample is a function of one number.

Space: second-order differences on cell centres, as published. Time: the published code calls an
explicit Runge-Kutta method at its default tolerance (``solve_as_published``). Here the linearly
implicit Euler method is extrapolated to fourth order, in steps that grow with the time since the
start: the layer that enters from the left is thin at first.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import solve_banded

from xmodal_pdebench.initial import Array

DIFFUSION = 5e-4
POROSITY, DENSITY, FREUNDLICH, EXPONENT = 0.29, 2880.0, 3.5e-4, 0.874
SORBED = (1 - POROSITY) / POROSITY * DENSITY * FREUNDLICH * EXPONENT
INLET = 1.0
END = 500.0
FIRST_STEP, GROWTH = 1e-3, 1.3
SUBSTEPS = (1, 2, 3, 4)


def solve(first: int, count: int, resolution: int) -> tuple[Array, Array]:
    """Initial and final fields ``[count, 1, resolution]`` of the samples from ``first`` on."""
    c = initial(first, count, resolution)
    return c, evolve(c[:, 0], times(END))[:, None]


def initial(first: int, count: int, resolution: int) -> Array:
    """Constant fields ``[count, 1, resolution]``."""
    start = np.array([draw(number) for number in range(first, first + count)])
    return np.repeat(start[:, None, None], resolution, axis=2)


def solve_as_published(first: int, count: int, resolution: int) -> tuple[Array, Array]:
    """As ``solve``, but by SciPy's explicit RK45 at its default tolerance."""
    c = initial(first, count, resolution)
    ends = []
    # Its trial steps may leave the domain of the power; they are not numbers, and it rejects them.
    with np.errstate(invalid="ignore"):
        for start in c[:, 0]:
            run = solve_ivp(lambda _, u: rate(u[None])[0][0], (0, END), start, t_eval=[END])
            ends.append(run.y[:, -1])
    return c, np.stack(ends)[:, None]


def draw(seed: int) -> float:
    """The initial concentration of a sample, by NumPy's generator of the release of the data."""
    return float(np.random.RandomState(seed).uniform(0, 0.2))


def times(end: float, first: float = FIRST_STEP, growth: float = GROWTH) -> list[float]:
    """Step ends from 0: each is ``growth`` times the last, up to ``end``."""
    count = int(np.ceil(np.log(end / first) / np.log(growth)))
    return [0.0, *(end * growth ** (k - count) for k in range(count)), end]


def retardation(c: Array) -> Array:
    """R(c)."""
    return np.asarray(1 + SORBED * (c + 1e-6) ** (EXPONENT - 1))


def rate(c_NX: Array) -> tuple[Array, Array]:
    """D c_xx / R, and D / (R dx^2), of concentrations ``[N, X]``."""
    dx = 1.0 / c_NX.shape[1]
    scale = DIFFUSION / dx**2 / retardation(c_NX)
    change = -2 * c_NX
    change[:, 1:] += c_NX[:, :-1]
    change[:, :-1] += c_NX[:, 1:]
    change[:, 0] += INLET
    change[:, -1] += (c_NX[:, -2] - c_NX[:, -1]) * (DIFFUSION / dx)
    return change * scale, scale


def evolve(c_NX: Array, ends: list[float]) -> Array:
    """The concentrations at the last of the times ``ends``; each step goes from one to the next."""
    for start, end in pairwise(ends):
        c_NX = _step(c_NX, end - start)
    return c_NX


def _step(c: Array, dt: float) -> Array:
    """One extrapolated step (Aitken and Neville)."""
    change, scale = rate(c)
    # The Jacobian lacks the derivative of R. That costs no order, and it stays tridiagonal.
    coarser: list[Array] = []
    for row, substeps in enumerate(SUBSTEPS):
        h = dt / substeps
        u = c + _implicit(h * scale, h * change)
        for _ in range(substeps - 1):
            u = u + _implicit(h * scale, h * rate(u)[0])
        refined = [u]
        for k, coarse in enumerate(coarser):
            ratio = substeps / SUBSTEPS[row - 1 - k]
            refined.append(refined[k] + (refined[k] - coarse) / (ratio - 1))
        coarser = refined
    return coarser[-1]


def _implicit(scale: Array, change: Array) -> Array:
    """The solution u of (I - J) u = change ``[N, X]``, with J = scale (second difference).

    All samples stand one after another in one tridiagonal system; what would couple them is 0.
    """
    outlet = DIFFUSION * scale.shape[1]
    band = np.zeros((3, *scale.shape))
    band[0, :, 1:] = -scale[:, :-1]
    band[1] = 1 + 2 * scale
    band[2, :, :-1] = -scale[:, 1:]
    band[1, :, -1] += scale[:, -1] * outlet
    band[2, :, -2] -= scale[:, -1] * outlet
    found = solve_banded(
        (1, 1), band.reshape(3, -1), change.reshape(-1), overwrite_ab=True, check_finite=False
    )
    return np.asarray(found).reshape(scale.shape)
