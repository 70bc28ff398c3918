"""The residuals of the one-dimensional equations: zero on solutions known otherwise, only there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.plugins.pdebench.published import config
from xmodal.data.store import Store
from xmodal.interfaces import Equation
from xmodal_pdebench import advection, equations, sorption
from xmodal_pdebench.one_dimensional import Advection, DiffusionSorption, NavierStokes

Function = Callable[[Tensor, Tensor], Tensor]
NU = 1 / torch.pi


def travelling(x: Tensor, t: Tensor) -> Tensor:
    """A wave that goes 0.4 in a unit of time."""
    return torch.sin(6 * torch.pi * (x - 0.4 * t)) + 0.3 * torch.cos(2 * torch.pi * (x - 0.4 * t))


def cole_hopf(x: Tensor, t: Tensor) -> Tensor:
    """u = c - 2 nu phi_x / phi, with phi a solution of the heat equation in the moving frame."""
    k, c = 2 * torch.pi, 0.7
    amplitude = 0.8 * torch.exp(-NU * k**2 * t)
    angle = k * (x - c * t)
    return c + 2 * NU * k * amplitude * angle.sin() / (1 + amplitude * angle.cos())


def logistic(x: Tensor, t: Tensor) -> Tensor:
    """Growth from 0.2, everywhere the same."""
    return 0.2 / (0.2 + 0.8 * torch.exp(-t)) + 0 * x**2


def fisher(x: Tensor, t: Tensor) -> Tensor:
    """The front of Ablowitz and Zeppetella (1979), of u_t = D u_xx + u (1 - u) with D = 0.5."""
    z = x / 0.5**0.5 - 5 / 6**0.5 * t
    return (1 + torch.exp(z / 6**0.5)) ** -2


def residual(equation: Equation, u: Function) -> Tensor:
    """At random points, with derivatives by autograd."""
    generator = torch.Generator().manual_seed(0)
    x, t = torch.rand(2, 200, generator=generator, dtype=torch.float64).requires_grad_()
    # Early: later, diffusion leaves little.
    t = 0.1 * t
    value = u(x, t)

    def by(y: Tensor, z: Tensor) -> Tensor:
        return torch.autograd.grad(y.sum(), z, create_graph=True)[0]

    u_x = by(value, x)
    return equation.residual(value, by(value, t), u_x, by(u_x, x)).detach()


@pytest.mark.parametrize(
    ("equation", "solutions", "wrong"),
    [
        (equations.advection, (travelling,), lambda x, t: travelling(x, 1.1 * t)),
        (equations.burgers, (cole_hopf,), lambda x, t: 1.1 * cole_hopf(x, t)),
        (equations.diffusion_reaction, (logistic, fisher), lambda x, t: fisher(1.5 * x, t)),
    ],
)
def test_zero_on_exact_solutions_alone(
    equation: Callable[[int], Equation], solutions: tuple[Function, ...], wrong: Function
) -> None:
    found = equation(32)
    for solution in solutions:
        assert residual(found, solution).abs().max() < 1e-6
    assert residual(found, wrong).abs().max() > 1e-2


def test_sorption_is_what_the_solver_integrates() -> None:
    """With the solver's rate of change as c_t, and its second difference as c_xx."""
    cells = 40
    c = np.random.default_rng(0).uniform(0.05, 1, (3, cells))
    c_t = sorption.rate(c)[0][:, 1:-1]
    c_xx = (c[:, 2:] - 2 * c[:, 1:-1] + c[:, :-2]) * cells**2
    equation = equations.diffusion_sorption(cells)
    value, by_t, by_xx = (torch.from_numpy(array) for array in (c[:, 1:-1], c_t, c_xx))
    size = (sorption.DIFFUSION * by_xx).abs().max()
    assert equation.residual(value, by_t, 0 * value, by_xx).abs().max() < 1e-12 * size
    assert equation.residual(value, 1.01 * by_t, 0 * value, by_xx).abs().max() > 1e-3 * size
    # Below 0 it stays a number.
    assert equation.residual(-value, by_t, 0 * value, by_xx).isfinite().all()


def test_sorption_holds_its_ends() -> None:
    """A late solution of the solver, continued to the cells beyond the ends as it does."""
    cells = 200
    start = np.full((1, cells), 0.1)
    (c,) = sorption.evolve(start, sorption.times(sorption.END))
    equation = equations.diffusion_sorption(cells)
    assert equation.ends is not None
    inlet, outlet = equation.ends
    zero = torch.zeros(())
    assert inlet(torch.tensor(1.0), zero) == 0
    assert inlet(torch.tensor(0.9), zero) == pytest.approx(-0.1)
    slope = torch.tensor((c[-1] - c[-2]) * cells)
    beyond = (c[-2] - c[-1]) * sorption.DIFFUSION * cells
    assert outlet(torch.tensor(beyond), slope).abs() < 1e-12
    assert equation.domain == (-0.5 / cells, 1 + 0.5 / cells)


def test_places_of_whole_and_thinned_samples() -> None:
    """The released loader keeps the first of every 4 cells."""
    whole = Advection.equation(config(Advection), 1024)
    thinned = Advection.equation(config(Advection, loader="released"), 256)
    np.testing.assert_allclose(whole.places_X, advection.FAMILY.centres(1024))
    np.testing.assert_array_equal(thinned.places_X, whole.places_X[::4])
    assert (whole.domain, whole.end, whole.ends) == ((0, 1), 2, None)


def test_facts_say_which_tasks_have_one() -> None:
    store = Store()
    assert DiffusionSorption.describe(config(DiffusionSorption, samples=10), store).equation
    assert not NavierStokes.describe(config(NavierStokes, samples=10), store).equation
    with pytest.raises(NotImplementedError, match="NavierStokes gives no residual"):
        NavierStokes.equation(config(NavierStokes), 32)
