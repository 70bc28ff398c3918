"""The FitzHugh-Nagumo solver against SciPy with a matrix, exact decay, and finer grids."""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp
from scipy.sparse import diags_array, eye_array, kron

from xmodal_pdebench import reaction_diffusion_2d as rd


def laplacian(n: int) -> object:
    """Without flux through the boundary of [-1, 1]^2, as a matrix."""
    ends = np.r_[-1.0, np.full(n - 2, -2.0), -1.0]
    line = diags_array([np.ones(n - 1), ends, np.ones(n - 1)], offsets=[-1, 0, 1]) * (n / 2) ** 2
    return (kron(line, eye_array(n)) + kron(eye_array(n), line)).tocsr()


def test_rates_are_those_of_the_matrix() -> None:
    n = 9
    y = np.random.default_rng(0).standard_normal(2 * n * n)
    u, v = y[: n * n], y[n * n :]
    matrix = laplacian(n)
    expected = np.r_[
        1e-3 * (matrix @ u) + u - u**3 - 5e-3 - v,
        5e-3 * (matrix @ v) + u - v,
    ]
    rates = rd.Rates(n)
    np.testing.assert_allclose(rates(0.0, y), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(rates(0.0, y), expected, rtol=1e-12, atol=1e-12)


def test_the_published_scheme() -> None:
    """SciPy's RK45 at its defaults, saving 101 moments, with the equations as matrices."""
    n = 16
    x, y = rd.samples(4, 2, n)
    draws = np.random.RandomState(5)
    u, v = draws.randn(n * n), draws.randn(n * n)
    matrix = laplacian(n)

    def rates(t: float, w: np.ndarray) -> np.ndarray:
        a, b = w[: n * n], w[n * n :]
        return np.r_[1e-3 * (matrix @ a) + a - a**3 - 5e-3 - b, 5e-3 * (matrix @ b) + a - b]

    path = solve_ivp(rates, (0, 5), np.r_[u, v], t_eval=np.linspace(0, 5, 101)).y
    assert np.array_equal(x[1, 0], u.reshape(n, n))
    np.testing.assert_allclose(y[1, 0], path[n * n :, -1].reshape(n, n), rtol=0, atol=1e-12)


def test_default_tolerances_cost_little() -> None:
    draws = np.random.RandomState(0)
    u, v = draws.randn(24, 24), draws.randn(24, 24)
    loose, tight = rd.solve(u, v)[1], rd.solve(u, v, relative=1e-9, absolute=1e-12)[1]
    assert 0 < np.linalg.norm(loose - tight) / np.linalg.norm(tight) < 1e-3


def test_order_of_convergence_in_space() -> None:
    """A smooth start, against a finer grid: second order."""

    def field(n: int) -> np.ndarray:
        x = (np.arange(n) + 0.5) * 2 / n - 1
        u = np.cos(np.pi * x)[:, None] * np.cos(np.pi * x)[None, :] + 0.2
        return rd.solve(u, 0.5 * u.T, time=1.0, relative=1e-8, absolute=1e-10)[1]

    def halved(w: np.ndarray, times: int) -> np.ndarray:
        n = len(w) // times
        return w.reshape(n, times, n, times).mean((1, 3))

    fine = field(128)
    gaps = [np.linalg.norm(field(n) - halved(fine, 128 // n)) / n for n in (8, 16, 32)]
    orders = np.log2(np.array(gaps[:-1]) / gaps[1:])
    assert (orders > 1.8).all(), orders


def test_symmetry_and_the_mean_that_only_reactions_move() -> None:
    draws = np.random.RandomState(1)
    u, v = draws.randn(12, 12), draws.randn(12, 12)
    ends = rd.solve(u, v, time=0.5)
    for change in (np.transpose, np.flipud):
        changed = rd.solve(change(u), change(v), time=0.5)
        np.testing.assert_allclose(changed[1], change(ends[1]), atol=1e-10)
    # v_t = D lap(v) + u - v: without flux, diffusion does not move the mean.
    rates = rd.Rates(12)(0.0, np.r_[u.ravel(), v.ravel()])
    assert abs(rates[144:].mean() - (u - v).mean()) < 1e-12


def test_samples_do_not_depend_on_their_company() -> None:
    x, y = rd.samples(0, 3, 8)
    x_1, y_1 = rd.samples(2, 1, 8)
    assert np.array_equal(x[2:], x_1)
    assert np.array_equal(y[2:], y_1)


def test_a_coarse_solve_knows_half_of_the_start() -> None:
    """The other half, v, is noise: more points do not bring the error to 0."""
    x, y = rd.samples(0, 2, 64)
    gaps = [np.linalg.norm(rd.coarse(x, points) - y) / np.linalg.norm(y) for points in (8, 32, 64)]
    assert gaps[0] > 0.8
    assert 0.3 < gaps[1] < 0.8
    assert 0.3 < gaps[2] <= gaps[1]
