"""The elliptic solver against manufactured solutions, its own discrete equation and finer grids."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from xmodal_nasbench360.darcy_samples import HIGH, LOW, Grid, draw
from xmodal_nasbench360.elliptic import apply_operator, face_coefficients, solve


def manufactured(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, f and u of a smooth problem without symmetry; u vanishes on the boundary."""
    x, y = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")
    pi = np.pi
    a = 2 + np.sin(2 * x + y)
    a_x, a_y = 2 * np.cos(2 * x + y), np.cos(2 * x + y)
    sine, e = np.sin(2 * pi * y), np.exp(x)
    p = x * (1 - x) * e
    p_x = (1 - x - x**2) * e
    p_xx = (-3 * x - x**2) * e
    u = p * sine
    u_y = p * 2 * pi * np.cos(2 * pi * y)
    f = -(a_x * p_x * sine + a * p_xx * sine + a_y * u_y - a * 4 * pi**2 * u)
    return a, f, u


def two_phase(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, n)) < 0.5, HIGH, LOW)


def test_second_order_for_a_smooth_problem() -> None:
    errors = []
    for n in (33, 65, 129):
        a, f, u = manufactured(n)
        gap = solve(a, f) - u
        errors.append((np.abs(gap).max(), np.sqrt((gap**2).mean())))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert (orders > 1.9).all(), orders
    assert (orders < 2.1).all(), orders


def test_agrees_with_a_direct_solver() -> None:
    n = 23
    a = two_phase(n)
    faces = face_coefficients(a)
    size = (n - 2) ** 2
    columns = [apply_operator(faces, unit.reshape(n - 2, n - 2)).ravel() for unit in np.eye(size)]
    matrix = coo_matrix(np.array(columns).T)
    assert abs(matrix - matrix.T).max() < 1e-9
    direct = spsolve(matrix.tocsc(), np.ones(size)).reshape(n - 2, n - 2)
    assert np.abs(solve(a)[1:-1, 1:-1] - direct).max() < 1e-9 * direct.max()


def test_residual_sign_and_boundary() -> None:
    a = two_phase(85)
    u = solve(a)
    residual = apply_operator(face_coefficients(a), u[1:-1, 1:-1]) - 1
    assert np.linalg.norm(residual) < 2e-10 * 83
    assert (u[1:-1, 1:-1] > 0).all()
    assert not u[0].any()
    assert not u[-1].any()
    assert not u[:, 0].any()
    assert not u[:, -1].any()


def test_symmetries() -> None:
    a = two_phase(43)
    u = solve(a)
    for change in (np.transpose, np.flipud, np.fliplr):
        np.testing.assert_allclose(solve(change(a)), change(u), atol=1e-9 * u.max())
    # -div(a grad u) = 1 is linear in 1/a.
    np.testing.assert_allclose(solve(3 * a), u / 3, atol=1e-9 * u.max())


def test_bounds_from_constant_coefficients() -> None:
    """More permeability means less pressure everywhere, so u lies between the constant cases."""
    u = solve(two_phase(43))
    lower, upper = solve(np.full((43, 43), HIGH)), solve(np.full((43, 43), LOW))
    assert (u >= lower - 1e-12).all()
    assert (u <= upper + 1e-12).all()
    # The known maximum of the torsion function of the unit square.
    assert upper.max() * LOW == pytest.approx(0.0736713, rel=1e-3)


def test_first_order_for_the_piecewise_field() -> None:
    """Jumps cost an order: about 1, which the documentation says."""
    sizes = (43, 85, 169)
    errors = np.zeros(3)
    for index in range(4):
        fine = draw(0, 0, index, Grid(43, 421))[1]
        gaps = [draw(0, 0, index, Grid(43, n))[1] - fine for n in sizes]
        errors += [np.linalg.norm(gap) / np.linalg.norm(fine) for gap in gaps]
    orders = np.log2(errors[:-1] / errors[1:])
    assert errors[-1] / 4 < 0.02
    assert (orders > 0.5).all(), orders
