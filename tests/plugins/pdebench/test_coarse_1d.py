"""Coarse answers in one dimension against the tasks' own solvers on all points."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.plugins.pdebench.published import config
from xmodal.data import RawForm
from xmodal_pdebench import advection, burgers, coarse_1d, gas, reaction, sorption
from xmodal_pdebench.grids import averaging
from xmodal_pdebench.one_dimensional import NavierStokes


def nrmse(found: np.ndarray, y: np.ndarray) -> float:
    error, size = (np.sqrt((part**2).mean((1, 2))) for part in (found - y, y))
    return float((error / size).mean())


@pytest.mark.parametrize(
    ("solver", "coarse", "cells", "points", "errors"),
    [
        # Below 0.01 only the numerical diffusion of the published scheme is left.
        (advection, coarse_1d.advection, 512, (16, 64), (0.15, 0.02)),
        (burgers, coarse_1d.burgers, 256, (8, 32), (1e-6, 1e-10)),
        (reaction, coarse_1d.diffusion_reaction, 256, (8, 32), (1e-3, 1e-3)),
        (sorption, coarse_1d.diffusion_sorption, 256, (16, 64), (0.1, 0.025)),
        (gas, coarse_1d.navier_stokes, 64, (16, 32), (0.05, 0.02)),
    ],
)
def test_closer_with_more_points(
    solver: ModuleType, coarse: Any, cells: int, points: tuple[int, int], errors: tuple[float, ...]
) -> None:
    x, y = solver.solve(0, 3, cells)
    gaps = [nrmse(coarse(x, count), y) for count in points]
    for gap, error in zip(gaps, errors, strict=True):
        assert gap < error, gaps


def test_thinned_samples_keep_their_places() -> None:
    """The released loader keeps the first of every 4 cells, not their middle."""
    x, y = advection.solve(0, 5, 1024)
    found = coarse_1d.advection(x[..., ::4], 256, 4)
    assert nrmse(found, y[..., ::4]) < 0.01
    assert nrmse(coarse_1d.advection(x[..., ::4], 256, 1), y[..., ::4]) < 0.01


def test_navier_stokes_answers_in_the_space_that_is_scored() -> None:
    x, y = gas.solve(0, 3, 32)
    mean, scale = x.mean(0).reshape(1, -1), x.std(0).reshape(1, -1) + 1e-5
    import torch

    raw = RawForm((3, 32), (1, 96), mean=torch.from_numpy(mean), scale=torch.from_numpy(scale))
    flat = x.reshape(3, 1, 96)
    solved = NavierStokes.coarse(config(NavierStokes), flat, 32, raw)
    np.testing.assert_allclose(solved, (y.reshape(3, 1, 96) - mean) / scale, atol=1e-9)
    physical = NavierStokes.coarse(config(NavierStokes, space="physical"), x, 32, raw)
    np.testing.assert_allclose(physical, y, rtol=1e-9, atol=1e-9)


def test_averaging_keeps_the_mean_between_any_two_grids() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(12)
    for cells in (3, 5, 12, 17):
        matrix = averaging(12, cells)
        np.testing.assert_allclose(matrix.sum(1), 1)
        assert (matrix @ values).mean() == pytest.approx(values.mean())
    np.testing.assert_allclose(averaging(12, 3) @ values, values.reshape(3, 4).mean(1))
