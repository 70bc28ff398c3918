"""The shallow-water solver against exact solutions, conservation, symmetry and finer grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from xmodal_pdebench import shallow_water as sw
from xmodal_pdebench.task import repeated


def exact_dam_break(left: float, right: float, at: np.ndarray) -> np.ndarray:
    """Depth at x / t = ``at`` after a dam between two depths breaks in one dimension (g = 1)."""

    def gap(middle: float) -> float:
        jump = (middle - right) * np.sqrt(0.5 * (middle + right) / (middle * right))
        return 2 * (np.sqrt(left) - np.sqrt(middle)) - jump

    h = brentq(gap, right, left)
    u = 2 * (np.sqrt(left) - np.sqrt(h))
    shock = u * h / (h - right)
    fan = (2 * np.sqrt(left) - at) ** 2 / 9
    return np.select([at < -np.sqrt(left), at < u - np.sqrt(h), at < shock], [left, fan, h], right)


def one_dimension(left: float, right: float, n: int, time: float) -> np.ndarray:
    """The depth along x of the numerical solution on [-1, 1]; y has four equal cells."""
    x = (np.arange(n) + 0.5) * 2 / n - 1
    h = np.repeat(np.where(x < 0, left, right)[None, :, None], 4, axis=2)
    steps = int(np.ceil(time * 3.5 * n / 2 / 0.9))
    state = sw.evolve((h, np.zeros_like(h), np.zeros_like(h)), time, steps, 2 / n)
    assert np.array_equal(state[0][..., 0], state[0][..., 3])
    assert not state[2].any()
    return state[0][0, :, 0]


@pytest.mark.parametrize(("left", "right", "error"), [(2.0, 1.0, 0.004), (3.0, 0.01, 0.005)])
def test_a_dam_that_breaks_in_one_dimension(left: float, right: float, error: float) -> None:
    """The second one is transonic: without the entropy fix, steps become unstable."""
    gaps = []
    for n in (100, 200, 400):
        at = ((np.arange(n) + 0.5) * 2 / n - 1) / 0.3
        h = one_dimension(left, right, n, 0.3)
        gaps.append(np.abs(h - exact_dam_break(left, right, at)).mean())
    # First order at shocks, whatever the order elsewhere.
    assert gaps[2] < error
    assert np.log2(gaps[0] / gaps[2]) / 2 > 0.8


def test_left_and_right_are_alike() -> None:
    """Also where a fan spreads over speeds of both signs, on either side."""
    h = np.where(np.arange(60) < 30, 3.0, 0.05)[None, :, None] * np.ones((1, 1, 2))
    state = sw.evolve((h, 0 * h, 0 * h), 0.3, 40, 2 / 60)
    mirror = sw.evolve((h[:, ::-1], 0 * h, 0 * h), 0.3, 40, 2 / 60)
    np.testing.assert_allclose(mirror[0][:, ::-1], state[0], rtol=1e-11)
    np.testing.assert_allclose(mirror[1][:, ::-1], -state[1], rtol=1e-11, atol=1e-12)


def test_second_order_where_the_flow_is_smooth() -> None:
    """Against a much finer grid, before a wave breaks."""

    def wave(n: int) -> np.ndarray:
        x = (np.arange(n) + 0.5) / n - 0.5
        h = 1 + 0.1 * np.exp(-60 * (x[:, None] ** 2 + x[None, :] ** 2))[None]
        return sw.evolve((h, 0 * h, 0 * h), 0.15, n // 2, 1 / n)[0][0]

    def halved(h: np.ndarray, times: int) -> np.ndarray:
        n = len(h) // times
        return h.reshape(n, times, n, times).mean((1, 3))

    fine = wave(128)
    gaps = [np.abs(wave(n) - halved(fine, 128 // n)).mean() for n in (16, 32, 64)]
    orders = np.log2(np.array(gaps[:-1]) / gaps[1:])
    assert (orders > 1.6).all(), orders


def test_water_and_momentum_are_conserved_until_waves_leave() -> None:
    rng = np.random.default_rng(0)
    h = np.ones((2, 30, 30))
    h[:, 10:20, 10:20] += rng.random((2, 10, 10))
    h_1, hu, hv = sw.evolve((h, 0 * h, 0 * h), 0.2, 4, 5 / 30)
    np.testing.assert_allclose(h_1.sum((1, 2)), h.sum((1, 2)), rtol=1e-13)
    np.testing.assert_allclose([hu.sum((1, 2)), hv.sum((1, 2))], 0, atol=1e-12)
    assert np.abs(h_1 - h).max() > 0.2


def test_a_lake_at_rest_stays_and_waves_leave() -> None:
    still = np.full((1, 12, 12), 1.3)
    assert np.array_equal(sw.solve(still), still)
    h = still.copy()
    h[:, 5:7, 5:7] = 1.6
    h_1 = sw.evolve((h, 0 * h, 0 * h), 40.0, 400, 5 / 12)[0]
    np.testing.assert_allclose(h_1, 1.3, atol=2e-3)


def test_a_quarter_gives_the_whole() -> None:
    """A dam is solved on a quarter; the whole square gives the same, and all its symmetries."""
    h = sw.dam(np.array([0.55]), 40)
    whole = sw.evolve((h, 0 * h, 0 * h), sw.TIME, 100, sw.SIDE / 40)[0]
    np.testing.assert_allclose(sw.solve(h), whole, rtol=1e-13)
    np.testing.assert_allclose(whole, np.flip(whole, 1), rtol=1e-13)
    # Sweeps along x come before sweeps along y, so exchanging them is a symmetry only nearly.
    np.testing.assert_allclose(whole, whole.transpose(0, 2, 1), rtol=2e-2)


def test_samples_do_not_depend_on_their_company() -> None:
    x, y = sw.samples(0, 3, 16)
    x_1, y_1 = sw.samples(2, 1, 16)
    assert np.array_equal(x[2:], x_1)
    assert np.array_equal(y[2:], y_1)
    together = sw.solve(x[:, 0])
    assert np.array_equal(together, y[:, 0])


def test_the_published_start() -> None:
    """Radius 0.3 + 0.4 u with NumPy's legacy generator: 0.5195 for seed 0 (0.5488 = its first)."""
    x, _ = sw.samples(0, 1, 128)
    centre = (np.arange(128) + 0.5) * 5 / 128 - 2.5
    radius = 0.3 + 0.4 * 0.5488135039273248
    inside = centre[:, None] ** 2 + centre**2 <= radius**2
    assert np.array_equal(x[0, 0], np.where(inside, 2.0, 1.0))


def test_every_test_sample_of_the_published_set_is_a_training_sample() -> None:
    """A start depends on which cell centres are within the radius: 81 different starts."""
    radii = [np.random.RandomState(seed).uniform(0.3, 0.7) for seed in range(1000)]
    quarter = np.hypot(*np.meshgrid(sw.centres(128)[64:], sw.centres(128)[64:]))
    wet = np.array([(quarter <= radius).sum() for radius in radii])  # cells; nested discs
    assert len(set(wet)) == 81
    assert set(wet[900:]) <= set(wet[:810])
    x = torch.from_numpy(
        np.concatenate([sw.dam(np.array(radii[i : i + 1]), 16) for i in range(12)])
    )
    parts = {"train": range(8), "test": range(10, 12)}
    assert repeated(x, parts).startswith("2 of 2 test inputs equal a training input")
    assert repeated(x + torch.arange(12)[:, None, None], parts) == ""


def test_as_many_steps_as_published_and_none_too_long() -> None:
    assert sw.needed_steps(128, 0.01) == sw.needed_steps(256, 0.01) == 1
    h = sw.dam(np.array([0.5]), 64)
    with pytest.raises(ArithmeticError, match="Courant number 1"):
        sw.solve(h, steps=20)


# Depth at cells (64, 64), (80, 64), (90, 70), (64, 100) of seed 3 at t = 1 on 128 cells, by
# Clawpack 5.14.0 (Roe's solver with entropy fix, MC limiter, dimensional splitting, 100 outputs).
CLAWPACK = {
    (64, 64): 0.7594932141516377,
    (80, 64): 0.8634081814739524,
    (90, 70): 1.1020340733135863,
    (64, 100): 1.1998455063652285,
}


def test_clawpack_gives_the_same() -> None:
    _, y = sw.samples(3, 1, 128)
    for place, value in CLAWPACK.items():
        assert y[0, 0][place] == pytest.approx(value, abs=1e-12)


def test_a_coarse_solve_comes_closer_with_more_cells() -> None:
    x, y = sw.samples(0, 2, 128)
    gaps = [np.linalg.norm(sw.coarse(x, points) - y) / np.linalg.norm(y) for points in (16, 32, 64)]
    assert gaps[0] < 0.06
    assert gaps[1] < 0.03
    assert gaps[2] < 0.012
