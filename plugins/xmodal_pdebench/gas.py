"""``pdebench/navier-stokes``: a compressible, viscous gas on a periodic line, from t = 0 to t = 1.

    rho_t     + (rho v)_x       = 0
    (rho v)_t + (rho v^2 + p)_x = (rho nu v_x)_x
    E_t       + ((E + p) v)_x   = (rho nu v v_x)_x,   E = p / (gamma - 1) + rho v^2 / 2

with gamma = 5/3 and nu = 4/3 eta + zeta. The viscosity is proportional to the density, as in the
published code; heat is not conducted.

The scheme is the published one: piecewise linear reconstruction of rho, v and p with van Leer's
monotonised central limiter, the flux of the state that HLLC's wave fan (Toro 2009, chapter 10) has
at the edge, midpoint rule with Courant number 0.3, and the viscous terms in explicit substeps.
Every sample has its own step. Two things differ, each by less than 1e-3 of a field: the viscous
terms act half before and half after the step, not after it, which makes the whole of second order;
and their substeps are 0.8 of the stable length, not 0.3.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xmodal_pdebench import threefry
from xmodal_pdebench.advection import limited
from xmodal_pdebench.initial import Array, Family, draw, unit

GAMMA = 5 / 3
VISCOSITY = 4 / 3 * 0.1 + 0.1
LENGTH = 2.0
END = 1.0
SAVED = 0.01
COURANT = 0.3
STABLE = 0.8
FAMILY = Family(numbers=1000, waves=3, windowed=0.5, left=-1.0, length=LENGTH)
SEEDS = range(2020, 2030)
"""Of the parts of the published file, 1000 samples each: density; pressure and velocity use the
next two seeds. So the shapes of densities in one part are those of pressures in the part before."""


def solve(first: int, count: int, resolution: int) -> tuple[Array, Array]:
    """Initial and final density, pressure, velocity ``[count, 3, resolution]`` from ``first``."""
    x = np.concatenate(
        [
            initial(SEEDS[part], slice(max(first - start, 0), first + count - start), resolution)
            for part in range(len(SEEDS))
            if first < (start := part * FAMILY.numbers) + FAMILY.numbers and first + count > start
        ]
    )
    return x, evolve(x, END)


def initial(seed: int, rows: slice, resolution: int) -> Array:
    """Density, pressure and velocity ``[rows, 3, resolution]`` at t = 0."""
    x_X = FAMILY.centres(resolution)
    fields = [
        _between(seed, x_X, rows, 1.0, 10.0),
        _between(seed + 1, x_X, rows, 10.0, 100.0),
        draw(FAMILY, seed + 2).at(x_X, rows),
    ]
    return np.stack(fields, axis=1)


def _between(seed: int, x_X: Array, rows: slice, low: float, high: float) -> Array:
    """Fields from b to b + m; b and m are log-uniform in [low, high)."""
    drawn = draw(FAMILY, seed)
    secret, sizes = drawn.secret, []
    for _ in range(2):
        secret, _unused = threefry.split(secret)
        size = threefry.uniform(secret, (FAMILY.numbers,), np.log(low), np.log(high))
        sizes.append(np.exp(size.astype(np.float64))[rows, None])
    return unit(drawn, x_X, rows) * sizes[0] + sizes[1]


def evolve(start: Array, end: float, viscosity: float = VISCOSITY) -> Array:
    """Density, pressure and velocity ``[N, 3, X]`` at time ``end``."""
    result = np.empty_like(start)
    left = np.arange(len(start))
    gas = _Gas(np.ascontiguousarray(start.swapaxes(0, 1)), viscosity)
    while len(left):
        for _ in range(32):
            gas.step(end)
        done = gas.time >= end
        if done.any():
            result[left[done]] = gas.primitive()[:, done].swapaxes(0, 1)
            left = left[~done]
            gas = gas.part(~done)
    return result


class _Gas:
    """Samples that move on, each at its own pace: rho, rho v and E ``[3, N, X]``, and the times."""

    def __init__(self, primitive: Array, viscosity: float) -> None:
        density, pressure, velocity = primitive
        energy = pressure / (GAMMA - 1) + 0.5 * density * velocity**2
        self._start(np.stack([density, density * velocity, energy]), viscosity)
        self.time = np.zeros(primitive.shape[1])
        self.saved = np.full(primitive.shape[1], SAVED)

    def _start(self, conserved: Array, viscosity: float) -> None:
        self.u, self.viscosity = conserved, viscosity
        _, rows, cells = conserved.shape
        self.dx = LENGTH / cells
        self.half = np.empty_like(conserved)
        self.wide = np.empty((3, rows, cells + 4))
        self.jump = np.empty((3, rows, cells + 3))
        self.slope, self.work = (np.empty((3, rows, cells + 2)) for _ in range(2))
        self.flux = np.empty((3, rows, cells + 1))

    def part(self, rows: npt.NDArray[np.bool_]) -> _Gas:
        """Some of the samples."""
        gas = object.__new__(_Gas)
        gas._start(np.ascontiguousarray(self.u[:, rows]), self.viscosity)
        gas.time, gas.saved = self.time[rows], self.saved[rows]
        return gas

    def primitive(self) -> Array:
        """Density, pressure and velocity ``[3, N, X]``."""
        return np.stack(_primitive(self.u))

    def step(self, end: float) -> None:
        """One step of every sample, at most to the next time of saving, and to ``end``."""
        density, pressure, velocity = _primitive(self.u)
        fastest_N = (np.sqrt(GAMMA * pressure / density) + np.abs(velocity)).max(1)
        until_N = np.minimum(self.saved, end)
        dt_N = np.minimum(COURANT * self.dx / fastest_N, until_N - self.time)
        self._rub(0.5 * dt_N)
        self._move(_primitive(self.u), 0.5 * dt_N, self.half)
        self._move(_primitive(self.half), dt_N, self.u)
        self._rub(0.5 * dt_N)
        self.time += dt_N
        reached = self.time >= until_N - 1e-8
        self.time[reached] = until_N[reached]
        self.saved[reached] += SAVED

    def _move(self, primitive: tuple[Array, Array, Array], dt_N: Array, into: Array) -> None:
        """``into`` = u - dt flux_x, the flux from ``primitive``."""
        wide, slope = self.wide, self.slope
        for value, padded in zip(primitive, wide, strict=True):
            padded[:, 2:-2] = value
            padded[:, :2] = value[:, -2:]
            padded[:, -2:] = value[:, :2]
        np.subtract(wide[..., 1:], wide[..., :-1], out=self.jump)
        limited(self.jump[..., :-1], self.jump[..., 1:], slope, self.work)
        slope *= 0.5
        # To the left of an edge is the right end of the cell before it.
        left = np.add(wide[..., 1:-2], slope[..., :-1], out=self.work[..., :-1])
        right = np.subtract(wide[..., 2:-1], slope[..., 1:], out=slope[..., 1:])
        _flux(left, right, self.flux)
        change = np.subtract(self.flux[..., 1:], self.flux[..., :-1], out=self.half)
        change *= dt_N[:, None] / self.dx
        np.subtract(self.u, change, out=into)

    def _rub(self, dt_N: Array) -> None:
        """The viscous terms: v_t = (rho nu v_x)_x / rho in explicit substeps, and their work."""
        if not self.viscosity:
            return
        density, momentum, energy = self.u
        stable = STABLE * 0.5 * self.dx**2 / self.viscosity
        substeps_N = np.maximum(1, np.ceil(dt_N / stable)).astype(int)
        rows, cells = density.shape
        v = np.empty((rows, cells + 2))
        v[:, 1:-1] = momentum / density
        inverse = 1 / density
        strength = np.empty((rows, cells + 1))
        strength[:, 1:-1] = density[:, 1:] + density[:, :-1]
        strength[:, 0] = strength[:, -1] = density[:, 0] + density[:, -1]
        strength *= (0.5 * self.viscosity / self.dx**2 * dt_N / substeps_N)[:, None]
        stress, mean = np.empty_like(strength), np.empty_like(strength)
        work, change = np.zeros_like(strength), np.empty_like(density)
        for substep in range(substeps_N.max()):
            strength[substeps_N == substep] = 0.0
            v[:, 0], v[:, -1] = v[:, -2], v[:, 1]
            np.subtract(v[:, 1:], v[:, :-1], out=stress)
            stress *= strength
            np.add(v[:, 1:], v[:, :-1], out=mean)
            mean *= stress
            work += mean
            np.subtract(stress[:, 1:], stress[:, :-1], out=change)
            change *= inverse
            v[:, 1:-1] += change
        np.multiply(density, v[:, 1:-1], out=momentum)
        energy += 0.5 * (work[:, 1:] - work[:, :-1])


def _primitive(conserved: Array) -> tuple[Array, Array, Array]:
    density, momentum, energy = conserved
    velocity = momentum / density
    return density, (GAMMA - 1) * (energy - 0.5 * momentum * velocity), velocity


def _flux(left: Array, right: Array, flux: Array) -> None:
    """The flux at edges between states (density, pressure, velocity), into ``flux``."""
    (d_l, p_l, v_l), (d_r, p_r, v_r) = left, right
    sound = np.maximum(np.sqrt(GAMMA * p_l / d_l), np.sqrt(GAMMA * p_r / d_r))
    slow, fast = np.minimum(v_l, v_r) - sound, np.maximum(v_l, v_r) + sound
    # Mass per second that the outer waves sweep up.
    swept_l, swept_r = d_l * (slow - v_l), d_r * (fast - v_r)
    middle = (swept_r * v_r - swept_l * v_l - p_r + p_l) / (swept_r - swept_l)
    pressure = p_l + swept_l * (middle - v_l)
    to_right = middle >= 0
    density = np.where(to_right, swept_l, swept_r) / (np.where(to_right, slow, fast) - middle)
    velocity = middle
    if (slow > 0).any() or (fast < 0).any():
        for beyond, (d, p, v) in ((slow > 0, left), (fast < 0, right)):
            density = np.where(beyond, d, density)
            pressure = np.where(beyond, p, pressure)
            velocity = np.where(beyond, v, velocity)
    mass, momentum, energy = flux
    np.multiply(density, velocity, out=mass)
    np.multiply(mass, velocity, out=momentum)
    np.multiply(0.5 * momentum + GAMMA / (GAMMA - 1) * pressure, velocity, out=energy)
    momentum += pressure
