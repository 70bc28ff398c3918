"""The one-dimensional solvers against exact solutions, SciPy, and what must be conserved."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from xmodal_pdebench import advection, burgers, gas, reaction, sorption

Array = Any


def points(cells: int, left: float = 0.0, length: float = 1.0) -> Array:
    return left + length * (np.arange(cells) + 0.5) / cells


def orders(errors: list[float]) -> list[float]:
    """Of errors on grids, or with steps, each half as long as the last."""
    return [float(np.log2(coarse / fine)) for coarse, fine in pairwise(errors)]


def derivative(u: Array, length: float = 1.0) -> Array:
    """Spectral."""
    k = 2j * np.pi / length * np.arange(u.shape[-1] // 2 + 1)
    k[-1] = 0
    return np.fft.irfft(k * np.fft.rfft(u), u.shape[-1])


# --- advection ---


def test_advection_is_of_second_order() -> None:
    errors = []
    for cells in (64, 128, 256):
        x = points(cells)
        moved = advection.advect(np.sin(2 * np.pi * x)[None], 2.0)[0]
        errors.append(np.abs(moved - np.sin(2 * np.pi * (x - 0.8))).mean())
    assert orders(errors)[-1] > 1.9


def test_advection_keeps_mass_and_makes_no_new_extremes() -> None:
    start, end = advection.solve(0, 30, 128)
    np.testing.assert_allclose(start.mean(2), end.mean(2), atol=1e-14)
    wraps = (np.abs(np.diff(u, axis=2, append=u[..., :1])).sum(2) for u in (start, end))
    before, after = wraps
    assert (after <= before + 1e-12).all()
    assert (end.max(2) <= start.max(2) + 1e-12).all()


def test_advection_is_the_published_scheme() -> None:
    # Point by point: reconstruction, upwind edges, midpoint rule; 11 steps for each saved time.
    cells = 1024
    u = advection.solve(7, 1, cells)[0][0, 0]
    expected = u.copy()

    def update(of: Array, courant: float) -> Array:
        def edge(i: int) -> float:
            back, ahead = of[i] - of[i - 1], of[(i + 1) % cells] - of[i]
            if back * ahead <= 0:
                return float(of[i])
            size = min(2 * abs(back), 2 * abs(ahead), abs(back + ahead) / 2)
            return float(of[i] + np.copysign(size / 2, back))

        edges = np.array([edge(i) for i in range(cells)])
        return expected - courant * (edges - np.roll(edges, 1))

    for _ in range(2):
        for dt in [0.4 * (1 / cells) / 0.4] * 10 + [0.01 - 10 / cells]:
            half = update(expected, 0.5 * 0.4 * dt * cells)
            expected = update(half, 0.4 * dt * cells)
    np.testing.assert_allclose(advection.advect(u[None], 0.02)[0], expected, atol=1e-13)


@pytest.mark.slow
def test_published_fields_are_not_shifted_exactly() -> None:
    _, end = advection.solve(0, 8, 1024)
    drawn = advection.draw(advection.FAMILY, advection.SEED)
    exact = drawn.at((points(1024) - 0.8) % 1, slice(0, 8))
    error = np.sqrt(((end[:, 0] - exact) ** 2).mean(1) / (exact**2).mean(1)).mean()
    assert 0.001 < error < 0.02


# --- Burgers' equation ---


def test_burgers_equals_an_exact_solution() -> None:
    nu, k, mean = burgers.VISCOSITY, 2 * np.pi, 0.3

    def exact(x: Array, time: float) -> Array:
        fade, x = np.exp(-nu * k**2 * time), x - mean * time
        return mean + 2 * nu * k * fade * np.sin(k * x) / (1.5 + fade * np.cos(k * x))

    x = points(32)
    found = burgers.evolve(exact(x, 0)[None], 0.05)[0]
    np.testing.assert_allclose(found, exact(x, 0.05), atol=1e-12)


def test_burgers_equals_scipy_on_its_own_initial_fields() -> None:
    # Smoothed first: SciPy's differences need a field that the grid resolves.
    start = burgers.evolve(burgers.solve(0, 4, 128)[0][:, 0], 0.003)

    def rate(_: float, u: Array) -> Array:
        return -u * derivative(u) + burgers.VISCOSITY * derivative(derivative(u))

    for u, found in zip(start, burgers.evolve(start, 0.02), strict=True):
        theirs = solve_ivp(rate, (0, 0.02), u, method="BDF", rtol=1e-9, atol=1e-11).y[:, -1]
        np.testing.assert_allclose(found, theirs, atol=2e-7)


def test_burgers_ends_at_the_mean() -> None:
    start, end = burgers.solve(0, 50, 1024)
    np.testing.assert_allclose(end, np.broadcast_to(start.mean(2)[..., None], end.shape), atol=1e-9)
    np.testing.assert_allclose(end.mean(2), start.mean(2), atol=1e-14)


# --- diffusion and reaction ---


def test_reaction_without_diffusion_is_the_logistic_curve() -> None:
    start = np.array([[0.1], [0.5], [1.0]]).repeat(8, 1)
    grown = np.exp(reaction.END)
    expected = start * grown / (1 + start * (grown - 1))
    np.testing.assert_allclose(reaction.evolve(start, reaction.END, 290), expected, atol=1e-12)


def test_reaction_is_of_fourth_order_and_equals_scipy() -> None:
    start = 0.5 + 0.4 * np.cos(2 * np.pi * points(32))[None]

    def rate(_: float, u: Array) -> Array:
        return reaction.DIFFUSION * derivative(derivative(u)) + reaction.RATE * u * (1 - u)

    theirs = solve_ivp(rate, (0, 0.29), start[0], method="BDF", rtol=1e-11, atol=1e-13).y[:, -1]
    errors = [np.abs(reaction.evolve(start, 0.29, n)[0] - theirs).max() for n in (8, 16, 32)]
    assert orders(errors)[-1] == pytest.approx(4, abs=0.3)
    assert np.abs(reaction.evolve(start, 0.29, 290)[0] - theirs).max() < 1e-9


def test_reaction_steps_are_short_enough_for_the_published_fields() -> None:
    start, end = reaction.solve(0, 10, 1024)
    shorter = reaction.evolve(start[:, 0], reaction.END, 4 * reaction.STEPS)
    assert np.abs(end[:, 0] - shorter).max() < 3e-7
    assert end[:, 0].std(1).max() < 2e-3  # the target is nearly constant in x


# --- diffusion and sorption ---


def test_sorption_equals_scipy_and_is_of_high_order() -> None:
    start = sorption.solve(0, 2, 32)[0][:, 0]
    theirs = [
        solve_ivp(
            lambda _, c: sorption.rate(c[None])[0][0],
            (0, sorption.END),
            c,
            method="BDF",
            rtol=1e-10,
            atol=1e-12,
        ).y[:, -1]
        for c in start
    ]
    errors = [
        np.abs(sorption.evolve(start, sorption.times(sorption.END, 1e-3, growth)) - theirs).max()
        for growth in (1.2, 1.2**0.5)
    ]
    assert orders(errors)[0] > 3
    assert errors[0] < 1e-5
    assert np.abs(sorption.evolve(start, sorption.times(sorption.END)) - theirs).max() < 3e-5


def test_sorption_rate_is_the_published_equation() -> None:
    c = np.array([0.7, 0.4, 0.2, 0.1, 0.15])
    dx, d = 1 / 5, 5e-4
    beyond = [1.0, *c, (c[-2] - c[-1]) / dx * d]
    expected = []
    for i in range(5):
        r = 1 + (1 - 0.29) / 0.29 * 2880 * 3.5e-4 * 0.874 * (c[i] + 1e-6) ** (0.874 - 1)
        expected.append(d / r * (beyond[i] - 2 * c[i] + beyond[i + 2]) / dx**2)
    np.testing.assert_allclose(sorption.rate(c[None])[0][0], expected, rtol=1e-12)


def test_sorption_keeps_its_mass() -> None:
    # What is dissolved and sorbed, against what flowed through both ends (trapezoidal rule).
    start = sorption.solve(3, 1, 64)[0][:, 0]
    ends, c, dx = sorption.times(50.0, 1e-4, 1.05), start, 1 / 64
    isotherm = sorption.SORBED / sorption.EXPONENT

    def mass(c: Array) -> float:
        return float((c + isotherm * (c + 1e-6) ** sorption.EXPONENT).sum() * dx)

    def inflow(c: Array) -> float:
        c = c[0]
        beyond = (c[-2] - c[-1]) * sorption.DIFFUSION / dx
        return float((1 - c[0] + beyond - c[-1]) * sorption.DIFFUSION / dx)

    flowed = 0.0
    for begin, end in pairwise(ends):
        before, c = c, sorption.evolve(c, [begin, end])
        flowed += (end - begin) * (inflow(before) + inflow(c)) / 2
    assert mass(c) - mass(start) == pytest.approx(flowed, rel=2e-3)


def test_sorption_starts_from_numpys_legacy_generator() -> None:
    start = sorption.solve(40, 3, 16)[0]
    for seed, field in enumerate(start[:, 0], start=40):
        np.random.seed(seed)
        assert (field == np.random.uniform(0, 0.2)).all()


def test_sorption_as_published_is_scipys_default_and_errs() -> None:
    start, end = sorption.solve_as_published(5, 2, 64)
    lap = (np.eye(64, k=1) - 2 * np.eye(64) + np.eye(64, k=-1)) * 64**2

    def rate(_: float, c: Array) -> Array:
        r = 1 + (1 - 0.29) / 0.29 * 2880 * 3.5e-4 * 0.874 * (c + 1e-6) ** (0.874 - 1)
        ends = np.zeros(64)
        ends[0], ends[-1] = 64**2, 64**2 * (c[-2] - c[-1]) * 64 * 5e-4
        return 5e-4 / r * (lap @ c + ends)

    for c, found in zip(start[:, 0], end[:, 0], strict=True):
        theirs = solve_ivp(rate, (0, 500.0), c).y[:, -1]
        np.testing.assert_allclose(found, theirs, atol=1e-6)
    accurate = sorption.solve(5, 2, 64)[1]
    error = np.sqrt(((end - accurate) ** 2).mean() / (accurate**2).mean())
    assert 1e-4 < error < 3e-3


# --- gas ---


def conserved(state: Array) -> Array:
    density, pressure, velocity = state.swapaxes(0, 1)
    energy = pressure / (gas.GAMMA - 1) + density * velocity**2 / 2
    return np.stack([density.mean(1), (density * velocity).mean(1), energy.mean(1)])


def test_gas_keeps_mass_momentum_and_energy() -> None:
    start, end = gas.solve(998, 4, 64)
    np.testing.assert_allclose(conserved(end), conserved(start), rtol=1e-12, atol=1e-12)


def test_gas_carries_density_with_second_order() -> None:
    errors = []
    for cells in (32, 64, 128):
        x = points(cells, -1, 2)
        start = np.stack([1 + 0.2 * np.sin(np.pi * x), np.ones(cells), np.ones(cells)])
        density, pressure, velocity = gas.evolve(start[None], 1.0)[0]
        np.testing.assert_allclose([pressure, velocity], np.ones((2, cells)), atol=1e-12)
        errors.append(np.abs(density - 1 - 0.2 * np.sin(np.pi * (x - 1))).mean())
    assert orders(errors)[-1] > 1.85


@pytest.mark.slow
def test_viscous_gas_equals_scipy_with_second_order() -> None:
    def smooth(cells: int) -> Array:
        x = np.pi * points(cells, -1, 2)
        fields = [2 + np.cos(x) / 2, 20 + 2.5 * np.sin(x), np.sin(x) + np.cos(2 * x) / 2]
        return np.stack(fields)

    cells, time = 32, 0.1
    density, pressure, velocity = smooth(cells)
    energy = pressure / (gas.GAMMA - 1) + density * velocity**2 / 2

    def rate(_: float, flat: Array) -> Array:
        d, m, e = flat.reshape(3, cells)
        v = m / d
        p = (gas.GAMMA - 1) * (e - m * v / 2)
        stress = gas.VISCOSITY * d * derivative(v, 2)
        flux = [m, m * v + p - stress, (e + p) * v - stress * v]
        return np.concatenate([-derivative(f, 2) for f in flux])

    exact = (
        solve_ivp(
            rate,
            (0, time),
            np.concatenate([density, density * velocity, energy]),
            method="BDF",
            rtol=1e-9,
            atol=1e-10,
        )
        .y[:, -1]
        .reshape(3, cells)
    )
    v = exact[1] / exact[0]
    exact = np.stack([exact[0], (gas.GAMMA - 1) * (exact[2] - exact[1] * v / 2), v])
    errors = []
    for finer in (1, 3, 9):
        found = gas.evolve(smooth(cells * finer)[None], time)[0]
        # Cell centres of the coarse grid are centres of every third fine cell.
        at = found[:, finer // 2 :: finer]
        errors.append(np.abs(at - exact).mean(1) / np.abs(exact).mean(1))
    assert (np.log(errors[1] / errors[2]) / np.log(3) > 1.9).all()
    assert (errors[2] < [1e-4, 1e-4, 5e-4]).all()


def test_gas_without_viscosity_has_the_shock_tube_of_riemann() -> None:
    # Two states meet at x = 0: the plateau between the waves against the exact solution.
    (d_l, p_l), (d_r, p_r), g = (1.0, 1.0), (0.125, 0.1), gas.GAMMA

    def jump(p: float, d: float, p_k: float) -> float:
        if p > p_k:  # a shock
            return (p - p_k) * np.sqrt(2 / (d * ((g + 1) * p + (g - 1) * p_k)))
        return 2 / (g - 1) * np.sqrt(g * p_k / d) * ((p / p_k) ** ((g - 1) / 2 / g) - 1)

    p_star = brentq(lambda p: jump(p, d_l, p_l) + jump(p, d_r, p_r), 0.1, 1.0)
    v_star = jump(p_star, d_r, p_r)
    x = points(400, -1, 2)
    left = np.abs(x) > 0.5  # periodic: the second tube, at the ends, runs the other way
    start = np.stack([np.where(left, d_r, d_l), np.where(left, p_r, p_l), np.zeros(400)])
    _, pressure, velocity = gas.evolve(start[None], 0.2, viscosity=0.0)[0]
    plateau = np.abs(x - 0.5 - 0.9 * v_star * 0.2) < 0.02
    np.testing.assert_allclose(pressure[plateau], p_star, rtol=2e-3)
    np.testing.assert_allclose(velocity[plateau], v_star, rtol=2e-3)
    np.testing.assert_allclose(pressure[::-1], pressure, atol=1e-9)


# --- all ---


@pytest.mark.parametrize("solver", [advection, burgers, reaction, sorption, gas])
def test_a_sample_depends_on_nothing_but_its_number(solver: Any) -> None:
    whole = solver.solve(995, 9, 16)
    for part, field in zip(solver.solve(999, 3, 16), whole, strict=True):
        assert part.shape == (3, 3 if solver is gas else 1, 16)
        assert np.array_equal(part.astype(np.float32), field[4:7].astype(np.float32))
