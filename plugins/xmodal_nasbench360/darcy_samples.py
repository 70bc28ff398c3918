"""Samples of the Darcy-flow distribution of the Fourier neural operator's data (NAS-Bench-360).

A Gaussian random field is thresholded into a coefficient a with values 12 and 3, and
-div(a grad u) = 1 is solved with u = 0 on the boundary. A sample depends only on (seed, stream,
index); the grid only sets its resolution. Written from the published equations and constants.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from xmodal_nasbench360.elliptic import Array, solve

ALPHA = 2.0
TAU = 3.0
HIGH = 12.0
LOW = 3.0
COARSE = 1e-4
"""Relative residual of a coarse solution, whose grid costs more than a percent."""
MODES = 421
"""Cosine modes per side: as many as the published grid resolves; the same for every grid."""

Placement = Literal["node", "published"]


@dataclass(frozen=True)
class Grid:
    """Where a sample is computed and kept.

    ``node``: a and u are given on the nodes i / (n - 1), including the boundary, where u is exactly
    0. ``published``: a and u are given on the cell centres (i + 1/2) / n. Not-a-knot cubic splines
    carry a to the nodes and u back, so u is small but not 0 on the outermost ring, as in the
    published files. In both cases, every ``(solver_grid - 1) / (resolution - 1)``-th point is kept.
    """

    resolution: int
    solver_grid: int
    placement: Placement = "node"

    @property
    def stride(self) -> int:
        """Distance between kept points on the solver's grid."""
        return (self.solver_grid - 1) // (self.resolution - 1)

    def positions(self) -> Array:
        """Where the kept points lie along one axis of the unit square, ``[resolution]``."""
        kept = np.arange(self.resolution) * self.stride
        if self.placement == "node":
            return np.asarray(kept / (self.solver_grid - 1))
        return np.asarray((kept + 0.5) / self.solver_grid)

    def key(self) -> dict[str, Any]:
        """A JSON-like identification for the cache."""
        return asdict(self)


def mode_scales(count: int) -> Array:
    """Standard deviations of the cosine modes, ``[count, count]``.

    tau^(alpha-1) (pi^2 |k|^2 + tau^2)^(-alpha/2): the field is N(0, tau^(2 alpha - 2) (-Laplace +
    tau^2)^-alpha) with zero Neumann boundary and zero mean (mode (0, 0) has scale 0).
    """
    k = np.arange(count, dtype=np.float64)
    scale = TAU ** (ALPHA - 1) * (np.pi**2 * (k[:, None] ** 2 + k**2) + TAU**2) ** (-ALPHA / 2)
    scale[0, 0] = 0.0
    return np.asarray(scale)


def _sum_cosines(coefficients: Array, grid: Grid) -> Array:
    """Sum c_k phi_k at the grid's points, phi_k = cos(pi k x) times 1 (k = 0) or sqrt 2 (k > 0)."""
    from scipy.fft import dctn

    n = grid.solver_grid
    count = min(n, coefficients.shape[0])
    # scipy's unnormalised cosine transforms count every mode twice, except the first mode (and, on
    # the nodes, the last).
    weight = np.full(count, np.sqrt(0.5))
    weight[0] = 1.0
    if grid.placement == "node" and count == n:
        weight[-1] = np.sqrt(2.0)
    padded = np.zeros((n, n))
    padded[:count, :count] = coefficients[:count, :count] * weight[:, None] * weight
    return np.asarray(dctn(padded, type=1 if grid.placement == "node" else 3))


def gaussian_field(rng: np.random.Generator, grid: Grid) -> Array:
    """Draw the Gaussian random field at the grid's points, ``[solver_grid, solver_grid]``."""
    modes = rng.standard_normal((MODES, MODES))
    return _sum_cosines(modes * mode_scales(MODES), grid)


@lru_cache(maxsize=8)
def _resampling(n: int, to_nodes: bool) -> Array:
    """The matrix ``[n, n]`` of spline interpolation between cell centres and nodes on one axis."""
    from scipy.interpolate import CubicSpline

    nodes = np.linspace(0.0, 1.0, n)
    centres = (np.arange(n) + 0.5) / n
    source, wanted = (centres, nodes) if to_nodes else (nodes, centres)
    return np.asarray(CubicSpline(source, np.eye(n), bc_type="not-a-knot")(wanted))


def pressure(a: Array, placement: Placement) -> Array:
    """Solve for u at the points where ``a`` is given; both are ``[n, n]``."""
    if placement == "node":
        return solve(a)
    there, back = _resampling(a.shape[0], True), _resampling(a.shape[0], False)
    # Splines overshoot where a jumps, so a few faces at the boundary even become negative, as in
    # the published data. Conjugate gradients still converge, in about 30 iterations (measured).
    return np.asarray(back @ solve(there @ a @ there.T) @ back.T)


def coarse_pressure(a: Array, given: Array, points: int) -> Array:
    """u from a ``[n, 1, R, R]`` at the places ``given`` ``[R]``, solved on ``points`` nodes a side.

    A node takes the nearest a; cubic splines carry u back.
    """
    from scipy.interpolate import CubicSpline

    nodes = np.linspace(0.0, 1.0, points)
    nearest = np.abs(given[None, :] - nodes[:, None]).argmin(axis=1)
    back = np.asarray(CubicSpline(nodes, np.eye(points))(given))
    solved = np.stack([solve(one[np.ix_(nearest, nearest)], tolerance=COARSE) for one in a[:, 0]])
    return np.asarray(back @ solved @ back.T)[:, None]


def draw(seed: int, stream: int, index: int, grid: Grid) -> tuple[Array, Array]:
    """Sample ``index`` of a stream: a and u, each ``[resolution, resolution]``."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, stream, index]))
    a = np.where(gaussian_field(rng, grid) >= 0, HIGH, LOW)
    u = pressure(a, grid.placement)
    step = grid.stride
    return a[::step, ::step], u[::step, ::step]
