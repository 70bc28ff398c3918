"""PDEBench's Darcy flow: solver against exact exponentials and steps, draws against JAX's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

from xmodal_pdebench import darcy_draws as draws
from xmodal_pdebench import darcy_flow as flow


def two_phase(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, n)) < 0.5, 1.0, 0.1), 10 * rng.random((n, n))


def by_hand(nu: np.ndarray, u: np.ndarray, spacing: float) -> np.ndarray:
    """div(nu grad u), cell by cell."""
    n, out = len(nu), np.zeros_like(u)
    for i in range(n):
        for j in range(n):
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                inside = 0 <= a < n and 0 <= b < n
                face = 0.5 * (nu[i, j] + (nu[a, b] if inside else nu[i, j]))
                out[i, j] += face * ((u[a, b] if inside else 0.0) - u[i, j]) / spacing**2
    return out


def test_the_matrix() -> None:
    nu, u = two_phase(6)
    matrix = flow.matrix(nu, 0.2)
    np.testing.assert_allclose((matrix @ u.ravel()).reshape(6, 6), -by_hand(nu, u, 0.2), rtol=1e-12)
    assert abs(matrix - matrix.T).max() == 0


def test_the_exact_exponential() -> None:
    nu, start = two_phase(9)
    matrix = flow.matrix(nu, 1 / 9).toarray()
    for time in (0.2, 1.75, 20.0):
        steady = np.linalg.solve(matrix, np.full(81, 0.1))
        exact = steady + expm(-time * matrix) @ (start.ravel() - steady)
        np.testing.assert_allclose(flow.solve(nu, start, time).ravel(), exact, atol=1e-9)


def test_the_published_scheme() -> None:
    """Small explicit steps with a predictor at half a step (a quarter of the stability limit)."""
    nu, start = two_phase(8, 1)
    dt = 0.25 * 0.5 / 64
    steps = int(np.ceil(flow.TIME / dt))
    dt, u = flow.TIME / steps, start
    for _ in range(steps):
        half = u + 0.5 * dt * (by_hand_fast(nu, u) + 0.1)
        u = u + dt * (by_hand_fast(nu, half) + 0.1)
    gap = np.abs(flow.solve(nu, start) - u).max() / u.max()
    assert gap < 1e-5


def by_hand_fast(nu: np.ndarray, u: np.ndarray) -> np.ndarray:
    wide, n = np.pad(nu, 1, mode="edge"), len(nu)
    w = np.pad(u, 1)
    x = 0.5 * (wide[1:, 1:-1] + wide[:-1, 1:-1]) * np.diff(w[:, 1:-1], axis=0)
    y = 0.5 * (wide[1:-1, 1:] + wide[1:-1, :-1]) * np.diff(w[1:-1], axis=1)
    return (np.diff(x, axis=0) + np.diff(y, axis=1)) * n**2


def test_second_order_for_a_single_mode() -> None:
    """nu = 1: sin(pi x) sin(pi y) decays as exp(-2 pi^2 t); u is 0 half a cell outside."""
    gaps = []
    for n in (15, 31, 63):
        x = np.arange(1, n + 1) / (n + 1)
        mode = np.sin(np.pi * x)[:, None] * np.sin(np.pi * x)
        u = flow.solve(np.ones((n, n)), mode, 0.05, 0.0, 1 / (n + 1))
        gaps.append(np.abs(u - np.exp(-0.1 * np.pi**2) * mode).max())
    orders = np.log2(np.array(gaps[:-1]) / gaps[1:])
    assert (np.abs(orders - 2) < 0.05).all(), orders


def test_linear_in_the_start_and_below_its_largest_value() -> None:
    nu, start = two_phase(12)
    other = two_phase(12, 3)[1]
    both = flow.solve(nu, 0.5 * (start + other))
    np.testing.assert_allclose(both, 0.5 * (flow.solve(nu, start) + flow.solve(nu, other)))
    decayed = flow.solve(nu, start, beta=0.0)
    assert (decayed > 0).all()
    assert decayed.max() < start.max()


def test_the_field_is_not_steady() -> None:
    """With nu = 0.1 throughout, the start is still there at the time that is kept."""
    nu, start = np.full((16, 16), 0.1), np.full((16, 16), 5.0)
    late = flow.solve(nu, start, 50.0)
    assert np.linalg.norm(flow.solve(nu, start) - late) > 0.5 * np.linalg.norm(late)


def test_the_draws_are_those_of_jax() -> None:
    """Sums by JAX 0.10.2 (jax_threefry_partitionable=False), key 2023, on 128 cells."""
    nu, start = draws.permeability(3, 128), draws.start(3, 128)
    assert nu.shape == start.shape == (200, 128, 128)
    assert set(np.unique(nu)) == {np.float32(0.1), np.float32(1.0)}
    for row, (cells, values) in JAX.items():
        assert (nu[row] == 1).sum() == cells
        found = [start[row, 3, 40], start[row, 64, 64], start[row, 120, 7]]
        np.testing.assert_allclose(found, values, atol=2e-5)


JAX: dict[int, tuple[int, tuple[float, ...]]] = {
    0: (8082, (9.741311, 9.728079, 9.711244)),
    17: (9556, (9.583371, 9.480728, 9.350129)),
    199: (6746, (0.6086376, 0.4963619, 0.6086376)),
}


def test_samples_do_not_depend_on_their_company() -> None:
    x, y = flow.samples(198, 4, 8)
    x_1, y_1 = flow.samples(200, 1, 8)
    assert np.array_equal(x[2:3], x_1)
    assert np.array_equal(y[2:3], y_1)
    assert np.array_equal(x[:2, 0], draws.permeability(0, 8)[198:].astype(np.float64))


def test_a_coarse_solve_is_the_mean_over_starts() -> None:
    """At full resolution it equals the mean of solutions from many starts."""
    nu = draws.permeability(0, 12)[:1].astype(np.float64)
    starts = np.concatenate([draws.start(batch, 12) for batch in range(3)]).astype(np.float64)
    mean = flow.solve(nu[0], starts.mean(0))
    each = np.mean([flow.solve(nu[0], one) for one in starts[:50]], axis=0)
    np.testing.assert_allclose(each, flow.solve(nu[0], starts[:50].mean(0)), rtol=1e-6)
    coarse = flow.coarse(nu[:, None], 12)[0, 0]
    assert np.linalg.norm(coarse - mean) < 0.1 * np.linalg.norm(mean)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_coarse_solve_knows_where_points_lie(stride: int) -> None:
    """nu = 1 has its steady state at this time: the torsion function of the wider square."""
    n = 64 // stride
    u = flow.coarse(np.ones((1, 1, n, n)), 31, stride)[0, 0]
    fine = flow.solve(np.ones((64, 64)), np.full((64, 64), 5.05))[::stride, ::stride]
    assert np.abs(u - fine).max() < 0.01 * fine.max()
