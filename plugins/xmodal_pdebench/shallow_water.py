"""The two-dimensional shallow-water equations, by second-order finite volumes.

    h_t + (hu)_x + (hv)_y = 0,  (hu)_t + (hu^2 + g h^2 / 2)_x + (huv)_y = 0,  and so in y

on a square of cells, with boundaries that let waves out. High-resolution wave propagation (LeVeque
2002, *Finite Volume Methods for Hyperbolic Problems*, chapters 6, 13, 15): Roe's solver with Harten
and Hyman's entropy fix, waves limited by the monotonised-centred limiter, one sweep along each axis
per step. PDEBench's data come from the same method (Clawpack's), in 100 steps.

Shapes: B samples, n cells per side. Arrays are float64 ``[B, n, n]``.
"""

from __future__ import annotations

from math import ceil

import numpy as np
import numpy.typing as npt

from xmodal_pdebench.grids import averaging, on_both_axes, refining

Array = npt.NDArray[np.float64]
State = tuple[Array, Array, Array]
"""Depth h, and momentum hu along axis 1 and hv along axis 2."""
Wave = dict[int, Array]
"""The parts of a wave that are not 0: of h, of the momentum along the sweep and across it."""

SIDE = 5.0
"""Length of the domain, [-2.5, 2.5] on both axes."""
GRAVITY = 1.0
INSIDE, OUTSIDE = 2.0, 1.0
"""Depth inside and outside the dam."""
TIME = 1.0
SAVES = 100
"""The published solver stops at every hundredth of the time; on 128 cells each is one step."""
COURANT = 0.9
FASTEST = 1.75
"""A bound of |u| + sqrt(g h) for this dam: 1.62 behind the first front, and less ever after."""


def centres(n: int) -> Array:
    """Centres of the cells along one axis, ``[n]``."""
    return np.asarray((np.arange(n) + 0.5) * (SIDE / n) - SIDE / 2)


def dam(radius_B: Array, n: int) -> Array:
    """The depth at the start: a cylinder of water of each radius, ``[B, n, n]``."""
    x = centres(n)
    inside = np.hypot(x[:, None], x[None, :]) <= np.asarray(radius_B)[:, None, None]
    return np.asarray(np.where(inside, INSIDE, OUTSIDE), np.float64)


def solve(h: Array, steps: int | None = None) -> Array:
    """The depth at time 1 of water at rest with the depth ``h``, ``[B, n, n]``.

    ``steps``: how many, all equal. None: as published, one or a few between any two of the 100
    moments that were saved. Raises ArithmeticError if a step is too long.
    """
    n = h.shape[-1]
    if steps is None:
        steps = SAVES * needed_steps(n, TIME / SAVES)
    mirrored = n % 2 == 0 and all(np.array_equal(h, np.flip(h, axis)) for axis in (1, 2))
    # Water that mirrors itself stays so: a quarter of the square is enough.
    part = h[:, n // 2 :, n // 2 :] if mirrored else h
    still = np.zeros_like(part)
    part = evolve((part, still, still), TIME, steps, SIDE / n, mirrored)[0]
    if mirrored:
        part = np.concatenate([part[:, ::-1], part], axis=1)
        part = np.concatenate([part[:, :, ::-1], part], axis=2)
    return part


def needed_steps(n: int, time: float = TIME) -> int:
    """The fewest stable steps on n cells per side."""
    return ceil(time * FASTEST * n / (COURANT * SIDE))


def evolve(state: State, time: float, steps: int, spacing: float, mirrored: bool = False) -> State:
    """The state after ``time``; ``spacing`` is the width of a cell.

    ``mirrored``: the first cell of each axis touches its own mirror image instead of open water.
    """
    ratio = time / steps / spacing
    h, hu, hv = state
    for _ in range(steps):
        h, hu, hv = _sweep(h, hu, hv, ratio, 1, mirrored)
        h, hv, hu = _sweep(h, hv, hu, ratio, 2, mirrored)
    return h, hu, hv


def _sweep(
    h: Array, normal: Array, across: Array, ratio: float, axis: int, mirrored: bool
) -> State:
    """One step along one axis; ``ratio`` is time step / width of a cell."""
    q = [np.moveaxis(part, axis, 0) for part in (h, normal, across)]
    # Two cells beyond each end hold the values of the last one, so that waves leave.
    first = [p[1::-1] if mirrored else p[[0, 0]] for p in q]
    if mirrored:
        first[1] = -first[1]
    q = [np.concatenate([f, p, p[-1:], p[-1:]]) for f, p in zip(first, q, strict=True)]
    left, right = [p[:-1] for p in q], [p[1:] for p in q]
    speeds, waves = _waves(left, right)
    courant = ratio * max(float(np.abs(s).max()) for s in speeds)
    if not courant <= 1:
        raise ArithmeticError(f"shallow water: a step of Courant number {courant:.2f} is unstable")
    # Fluctuations at every face: what changes the cell on its left, and that on its right.
    down = [np.zeros_like(q[0][1:-2]) for _ in range(3)]
    up = [np.zeros_like(q[0][1:-2]) for _ in range(3)]
    for s, leftward, wave in zip(speeds, _leftward(left, right, speeds, waves), waves, strict=True):
        size = np.abs(s[1:-1])
        second = 0.5 * size * (1 - ratio * size) * _limiter(s, wave)
        for k, part in wave.items():
            down[k] += (leftward[1:-1] + second) * part[1:-1]
            up[k] += (s[1:-1] - leftward[1:-1] - second) * part[1:-1]
    moved = [
        np.moveaxis(p[2:-2] - ratio * (u[:-1] + d[1:]), 0, axis)
        for p, u, d in zip(q, up, down, strict=True)
    ]
    return moved[0], moved[1], moved[2]


def _waves(left: list[Array], right: list[Array]) -> tuple[list[Array], list[Wave]]:
    """Roe's speeds and waves at every face: left-going, shear, right-going."""
    root_l, root_r = np.sqrt(left[0]), np.sqrt(right[0])
    weight = root_l + root_r
    u = (left[1] / root_l + right[1] / root_r) / weight
    v = (left[2] / root_l + right[2] / root_r) / weight
    c = np.sqrt(0.5 * GRAVITY * (left[0] + right[0]))
    dh, dm, dn = (b - a for a, b in zip(left, right, strict=True))
    first = ((u + c) * dh - dm) / (2 * c)
    third = dh - first
    return [u - c, u, u + c], [
        {0: first, 1: first * (u - c), 2: first * v},
        {2: dn - v * dh},
        {0: third, 1: third * (u + c), 2: third * v},
    ]


def _leftward(
    left: list[Array], right: list[Array], speeds: list[Array], waves: list[Wave]
) -> list[Array]:
    """The left-going part of every speed.

    A wave that spreads over speeds of both signs goes both ways (Harten and Hyman's entropy fix).
    """
    parts = [np.minimum(s, 0) for s in speeds]
    for p, sign in ((0, -1), (2, 1)):
        # The states on both sides of the wave, and its speed there.
        a = left if p == 0 else [right[k] - waves[2][k] for k in (0, 1)]
        b = right if p == 2 else [left[k] + waves[0][k] for k in (0, 1)]
        behind = a[1] / a[0] + sign * np.sqrt(GRAVITY * np.maximum(a[0], 0))
        ahead = b[1] / b[0] + sign * np.sqrt(GRAVITY * np.maximum(b[0], 0))
        spreads = (behind < 0) & (ahead > 0)
        if spreads.any():
            share = (ahead - speeds[p]) / np.where(spreads, ahead - behind, 1.0)
            parts[p] = np.where(spreads, share * behind, parts[p])
    return parts


def _limiter(s: Array, wave: Wave) -> Array:
    """The monotonised-centred limiter at all faces but the outermost."""
    norm: Array = np.zeros_like(s[1:-1])
    before, after = np.zeros_like(norm), np.zeros_like(norm)
    for part in wave.values():
        norm += part[1:-1] * part[1:-1]
        before += part[:-2] * part[1:-1]
        after += part[2:] * part[1:-1]
    upwind = np.where(s[1:-1] > 0, before, after)
    ratio = upwind / np.where(norm > 0, norm, 1.0)
    bounded = np.minimum(np.minimum(0.5 * (1 + ratio), 2.0), 2 * ratio)
    # A wave of no size has nothing to limit.
    return np.where(norm > 0, np.maximum(bounded, 0.0), 1.0)


def samples(first: int, count: int, resolution: int) -> tuple[Array, Array]:
    """Depth at time 0 and 1 of the samples from number ``first`` on, ``[count, 1, n, n]`` each."""
    drawn = [np.random.RandomState(seed).uniform(0.3, 0.7) for seed in range(first, first + count)]
    h = dam(np.array(drawn), resolution)
    # As many samples at a time as fit into a processor's cache.
    step = max(1, (128 // resolution) ** 2)
    solved = [solve(h[start : start + step]) for start in range(0, count, step)]
    return h[:, None], np.concatenate(solved)[:, None]


def coarse(x: Array, points: int, stride: int = 1) -> Array:
    """The depth at time 1 by as few steps as are stable on ``points`` cells per side."""
    n = x.shape[-1]
    h = on_both_axes(averaging(n, points), x[:, 0])
    return on_both_axes(refining(points, n), solve(h, needed_steps(points)))[:, None]
