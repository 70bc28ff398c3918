"""The FitzHugh-Nagumo equations in two dimensions: activator u and inhibitor v.

    u_t = D_u lap(u) + u - u^3 - k - v,   v_t = D_v lap(v) + u - v

on [-1, 1]^2 without flux through the boundary. Second-order finite volumes on cells; in time the
published scheme, SciPy's adaptive Runge-Kutta method of order 5(4) at its default tolerances
(relative 1e-3, absolute 1e-6), whose errors are part of the published fields.

Shapes: n cells per side. Arrays are float64 ``[n, n]``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xmodal_pdebench.grids import averaging, on_both_axes, refining

Array = npt.NDArray[np.float64]

D_U, D_V, K = 1e-3, 5e-3, 5e-3
SIDE = 2.0
TIME = 5.0
RELATIVE, ABSOLUTE = 1e-3, 1e-6
"""SciPy's default tolerances."""


class Rates:
    """The time derivatives of u and v, as a function for SciPy; keeps its working arrays."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.diffusion = np.array([D_U, D_V])[:, None, None] * (n / SIDE) ** 2
        self.laplacian = np.empty((2, n, n))
        self.down, self.right = np.empty((2, n - 1, n)), np.empty((2, n, n - 1))

    def __call__(self, t: float, y: Array) -> Array:
        """``y`` and the result: u and v, flat."""
        w = y.reshape(2, self.n, self.n)
        u, v = w
        # What flows over a face leaves one cell and enters the other; the rim has no outer faces.
        np.subtract(w[:, 1:], w[:, :-1], out=self.down)
        np.subtract(w[:, :, 1:], w[:, :, :-1], out=self.right)
        out = self.laplacian
        out[:, :-1] = self.down
        out[:, -1] = 0
        out[:, 1:] -= self.down
        out[:, :, :-1] += self.right
        out[:, :, 1:] -= self.right
        rate = out * self.diffusion
        rate[0] += u * (1 - u * u) - v
        rate[0] -= K
        rate[1] += u
        rate[1] -= v
        return np.asarray(rate.reshape(-1))


def solve(
    u: Array,
    v: Array,
    time: float = TIME,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
) -> tuple[Array, Array]:
    """u and v at ``time``, from u and v at time 0. Raises ArithmeticError if steps vanish."""
    from scipy.integrate import solve_ivp

    n = len(u)
    start = np.concatenate([u.ravel(), v.ravel()]).astype(np.float64)
    # Not the whole path: 300 steps of two fields are 80 MB.
    found = solve_ivp(Rates(n), (0, time), start, t_eval=[time], rtol=relative, atol=absolute)
    if not found.success:
        raise ArithmeticError(f"reaction-diffusion: {found.message}")
    ends = found.y[:, -1].reshape(2, n, n)
    return ends[0], ends[1]


def samples(first: int, count: int, resolution: int) -> tuple[Array, Array]:
    """u at time 0 and v at the end of the samples from ``first`` on, ``[count, 1, n, n]`` each."""
    shape = (count, 1, resolution, resolution)
    x, y = np.empty(shape), np.empty(shape)
    for row in range(count):
        draws = np.random.RandomState(first + row)
        x[row, 0] = draws.standard_normal(shape[2:])
        y[row, 0] = solve(x[row, 0], draws.standard_normal(shape[2:]))[1]
    return x, y


def coarse(x: Array, points: int, stride: int = 1) -> Array:
    """v at the end on ``points`` cells per side, from u at the start and the mean of v there, 0.

    Nobody knows v at the start: it is white noise that is not part of a sample.
    """
    n = x.shape[-1]
    u = on_both_axes(averaging(n, points), x[:, 0])
    v = np.stack([solve(one, np.zeros_like(one))[1] for one in u])
    return on_both_axes(refining(points, n), v)[:, None]
