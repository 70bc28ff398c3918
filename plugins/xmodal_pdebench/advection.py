"""``pdebench/advection``: u_t + 0.4 u_x = 0 on the periodic unit interval, from t = 0 to t = 2.

The published fields are not shifted exactly: they went through a finite-volume scheme, whose error
(0.4 % nRMSE) is larger than that of good models. The same scheme is used here: piecewise linear
reconstruction with van Leer's monotonised central limiter, upwind flux, midpoint rule, Courant
number 0.4, and a step that ends at each multiple of 0.01, where the published data were saved.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from xmodal_pdebench.initial import Array, Family, draw

SPEED = 0.4
END = 2.0
SAVED = 0.01
COURANT = 0.4
FAMILY = Family(numbers=10_000, waves=4, windowed=0.1)
SEED = 2022


def solve(first: int, count: int, resolution: int) -> tuple[Array, Array]:
    """Initial and final fields ``[count, 1, resolution]`` of the samples from ``first`` on."""
    rows = slice(first, first + count)
    u = draw(FAMILY, SEED).at(FAMILY.centres(resolution), rows)
    return u[:, None], advect(u, END)[:, None]


def advect(u_NX: Array, time: float) -> Array:
    """Advance cell means by ``time``, a multiple of 0.01."""
    cells = u_NX.shape[1]
    dx = 1.0 / cells
    longest = COURANT * dx / SPEED
    steps = ceil(SAVED / longest - 1e-9)
    lengths = [longest] * (steps - 1) + [SAVED - longest * (steps - 1)]
    scheme = _Upwind(u_NX)
    for _ in range(round(time / SAVED)):
        for dt in lengths:
            scheme.step(SPEED * dt / dx)
    return scheme.u


class _Upwind:
    """The scheme and its workspace: two cells beyond the left end and one beyond the right."""

    def __init__(self, u_NX: Array) -> None:
        self.u = u_NX.copy()
        rows, cells = u_NX.shape
        self.wide = np.empty((rows, cells + 3))
        self.jump = np.empty((rows, cells + 2))
        self.slope, self.least, self.edge = (np.empty((rows, cells + 1)) for _ in range(3))
        self.change = np.empty_like(u_NX)
        self.half = np.empty_like(u_NX)

    def step(self, courant: float) -> None:
        """One step of the midpoint rule; ``courant`` is the distance in cells."""
        self._move(self.u, 0.5 * courant, self.half)
        self._move(self.half, courant, self.u)

    def _move(self, flux_of: Array, courant: float, into: Array) -> None:
        """``into`` = u - courant (difference of upwind edge values of ``flux_of``)."""
        wide, jump, slope, least, edge = self.wide, self.jump, self.slope, self.least, self.edge
        wide[:, 2:-1] = flux_of
        wide[:, :2] = flux_of[:, -2:]
        wide[:, -1] = flux_of[:, 0]
        np.subtract(wide[:, 1:], wide[:, :-1], out=jump)
        limited(jump[:, :-1], jump[:, 1:], slope, least)
        # The wind blows to the right: the value at an edge is that of the cell on its left.
        slope *= 0.5
        np.add(wide[:, 1:-1], slope, out=edge)
        np.subtract(edge[:, 1:], edge[:, :-1], out=self.change)
        self.change *= courant
        np.subtract(self.u, self.change, out=into)


def limited(left: Array, right: Array, slope: Array, work: Array) -> None:
    """van Leer's monotonised central limiter of the jumps to both neighbours, into ``slope``.

    The mean of the two, but at most twice the smaller; 0 where they differ in sign.
    """
    np.minimum(left, right, out=slope)
    np.maximum(left, right, out=work)
    # Both positive: slope > 0; both negative: work < 0. The smaller jump, with its sign:
    np.maximum(slope, 0.0, out=slope)
    np.minimum(work, 0.0, out=work)
    slope += work
    slope *= 2.0
    np.add(left, right, out=work)
    work *= 0.5
    # Of two numbers of one sign, the one closer to 0; 0 if the first is 0.
    closer = np.abs(work) < np.abs(slope)
    np.copyto(slope, work, where=closer)
