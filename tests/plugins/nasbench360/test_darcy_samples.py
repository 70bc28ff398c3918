"""The distribution of the generated Darcy samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.fft import dctn

from xmodal_nasbench360 import darcy_samples
from xmodal_nasbench360.darcy_samples import (
    HIGH,
    LOW,
    MODES,
    Grid,
    Placement,
    draw,
    gaussian_field,
    mode_scales,
)


def fields(grid: Grid, count: int) -> np.ndarray:
    return np.stack([gaussian_field(np.random.default_rng(i), grid) for i in range(count)])


@pytest.mark.parametrize("placement", ["node", "published"])
def test_spectrum_is_the_analytic_one(
    placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recover the cosine modes of many fields and compare their spread with the eigenvalues."""
    n, count = 21, 3000
    monkeypatch.setattr(darcy_samples, "MODES", n)
    drawn = fields(Grid(n, n, placement), count)
    weight = np.full(n, np.sqrt(0.5))
    weight[0] = 1.0
    if placement == "node":
        weight[-1] = np.sqrt(2.0)
        modes = dctn(drawn, type=1, axes=(1, 2)) / (2 * (n - 1)) ** 2
    else:
        modes = dctn(drawn, type=2, axes=(1, 2)) / (2 * n) ** 2
    recovered = modes / (weight[:, None] * weight)
    expected = mode_scales(n)
    ratio = recovered.std(axis=0)[expected > 0] / expected[expected > 0]
    assert np.abs(recovered[:, 0, 0]).max() < 1e-12
    # One standard error of each of the 440 ratios is 1.3 %.
    assert np.abs(ratio - 1).max() < 0.06
    assert abs(ratio.mean() - 1) < 0.003


def test_covariance_at_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariance of two points against the series over the eigenfunctions."""
    n, count = 17, 4000
    monkeypatch.setattr(darcy_samples, "MODES", n)
    drawn = fields(Grid(n, n), count)
    variance = mode_scales(n) ** 2
    x = np.linspace(0, 1, n)
    basis = np.cos(np.pi * np.outer(x, np.arange(n))) * np.r_[1.0, np.full(n - 1, np.sqrt(2))]
    for p, q in (((4, 4), (4, 4)), ((4, 4), (4, 10)), ((0, 0), (0, 0)), ((8, 8), (16, 2))):
        expected = (basis[p[0]] * basis[q[0]]) @ variance @ (basis[p[1]] * basis[q[1]])
        products = drawn[:, p[0], p[1]] * drawn[:, q[0], q[1]]
        error = products.std() / np.sqrt(count)
        assert abs(products.mean() - expected) < 4 * error


def test_a_sample_does_not_depend_on_the_grid() -> None:
    """Grids share nodes, and there the field is the same up to the modes a coarse grid lacks."""
    rough = gaussian_field(np.random.default_rng(3), Grid(43, 85))
    fine = gaussian_field(np.random.default_rng(3), Grid(43, 337))
    assert np.abs(fine[::4, ::4] - rough).std() < 0.02 * fine.std()
    assert MODES == 421


@pytest.mark.parametrize("placement", ["node", "published"])
def test_samples(placement: Placement) -> None:
    grid = Grid(43, 85, placement)
    drawn = [draw(0, 0, index, grid) for index in range(20)]
    a = np.stack([sample[0] for sample in drawn])
    u = np.stack([sample[1] for sample in drawn])
    assert a.shape == u.shape == (20, 43, 43)
    assert set(np.unique(a)) == {LOW, HIGH}
    assert abs((a == HIGH).mean() - 0.5) < 0.1
    assert (u[:, 1:-1, 1:-1] > 0).all()
    assert (u[:, 0] == 0).all() == (placement == "node")
    assert np.abs(u[:, 0]).max() < 0.15 * u.max()


def test_seeds_streams_and_indices_are_independent() -> None:
    grid = Grid(22, 43)
    one = draw(0, 0, 0, grid)
    again = draw(0, 0, 0, grid)
    assert np.array_equal(one[0], again[0])
    assert np.array_equal(one[1], again[1])
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert (draw(*other, grid)[0] != one[0]).mean() > 0.1


def test_published_placement_stays_close_to_the_nodes() -> None:
    """Both solve one problem; the published one shifts by half a cell and smooths the jumps."""
    node = draw(0, 0, 5, Grid(22, 337))[1]
    published = draw(0, 0, 5, Grid(22, 337, "published"))[1]
    assert np.linalg.norm(node - published) < 0.03 * np.linalg.norm(node)
