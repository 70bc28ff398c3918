"""The rival ``pinn``: what its networks learn, that a sample is predicted for itself, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.plugins.pdebench.published import config
from xmodal import api
from xmodal.batch import Tokens
from xmodal.data.store import Store
from xmodal.engine.plan import compose_plan
from xmodal.errors import DataError, RecipeError
from xmodal.interfaces import FitData
from xmodal.plugins import registry
from xmodal.settings import Use
from xmodal.testing.tiny import tiny_context, tiny_facts
from xmodal_pdebench import equations, sorption
from xmodal_pdebench.one_dimensional import Advection
from xmodal_rivals.pinn import PINN, Networks, train

TINY = PINN.Config(width=16, depth=2, harmonics=2, steps=20, points=30, learning_rate=5e-3)


def rival(settings: PINN.Config = TINY, seed: int = 0, notes: list[str] | None = None) -> PINN:
    """For advection on 24 points."""
    task = config(Advection, samples=10, resolution=24)
    facts = replace(tiny_facts(), task=Advection.describe(task, Store()))
    context = tiny_context(facts, {"task": Use("task", Advection, task)}, seed=seed)
    if notes is not None:
        context = replace(context, note=notes.append)
    return PINN(settings, context)


def fitted(settings: PINN.Config = TINY, seed: int = 0, notes: list[str] | None = None) -> PINN:
    predictor, y = rival(settings, seed, notes), torch.zeros(2, 1, 24)
    x = samples(2).flatten(1)
    predictor.fit(FitData(x, y, x[:0], y[:0]))
    return predictor


def samples(count: int) -> Tensor:
    return torch.randn(count, 1, 24, generator=torch.Generator().manual_seed(1))


def tokens(x: Tensor) -> Tokens:
    return Tokens(x.flatten(1)[:, None], (1,))


@pytest.mark.parametrize("name", ["burgers", "diffusion_sorption"])
def test_derivatives_are_those_of_autograd(name: str) -> None:
    """With waves of x, and with x itself on a domain of its own."""
    equation = getattr(equations, name)(16)
    networks = Networks(TINY, equation, 3, 0, torch.device("cpu"))
    for parameter in networks.parameters():
        # Different networks, and biases that are not 0.
        noise = torch.randn(parameter.shape, generator=networks.generator)
        parameter.data = (parameter.data + 0.3 * noise).double()
    places, times = torch.rand(2, 10, dtype=torch.float64, generator=networks.generator)
    x, t = places.requires_grad_(), (times * equation.end).requires_grad_()
    found = networks.derivatives(x, t)
    u = networks.values(x, t)
    assert torch.allclose(found[0], u)
    for network in range(3):
        (u_x, u_t) = torch.autograd.grad(u[network].sum(), (x, t), create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x.sum(), x, retain_graph=True)
        for value, expected in zip(found[1:], (u_t, u_x, u_xx), strict=True):
            torch.testing.assert_close(value[network], expected)


@pytest.mark.long
def test_it_moves_a_sine_by_the_exact_distance() -> None:
    equation = equations.advection(32)
    x = torch.from_numpy(equation.places_X)
    start = torch.stack([torch.sin(2 * torch.pi * x), 0.5 + torch.cos(2 * torch.pi * x)])
    moved = torch.stack(
        [torch.sin(2 * torch.pi * (x - 0.8)), 0.5 + torch.cos(2 * torch.pi * (x - 0.8))]
    )
    settings = PINN.Config(width=16, depth=2, harmonics=1, steps=800, points=64, learning_rate=2e-2)
    found = train(settings, equation, start.float(), 0, settings.steps).at_end()
    error = (found - moved).square().mean(1).sqrt() / moved.square().mean(1).sqrt()
    assert error.max() < 0.25, error
    still = (start - moved).square().mean(1).sqrt() / moved.square().mean(1).sqrt()
    assert still.min() > 0.5


@pytest.mark.long
def test_ends_and_start_are_learned() -> None:
    """Sorption: 1 at the inlet, 0.1 at the start, and nearer to the solver's end than the start."""
    equation = equations.diffusion_sorption(32)
    start = np.full((2, 32), 0.1)
    expected = sorption.evolve(start, sorption.times(sorption.END))[0]
    settings = PINN.Config(width=16, depth=2, steps=400, points=64, learning_rate=2e-2)
    networks = train(settings, equation, torch.from_numpy(start).float(), 0, settings.steps)
    inlet = networks.values(torch.full((2,), equation.domain[0]), torch.tensor([300.0, 500]))
    assert (inlet - 1).abs().max() < 0.1
    error = np.linalg.norm(networks.at_end()[0].numpy() - expected) / np.linalg.norm(expected)
    assert error < 0.3 < np.linalg.norm(start[0] - expected) / np.linalg.norm(expected)


@torch.no_grad()
def test_a_prediction_depends_on_its_sample_alone() -> None:
    """To the last bit, whatever else is predicted with it; also beyond one group of networks."""
    predictor, x = fitted(), samples(19)
    together = predictor(tokens(x))
    assert together.shape == (19, 1, 24)
    for rows in (slice(0, 1), slice(3, 6), slice(5, 19), slice(18, 19)):
        assert torch.equal(predictor(tokens(x[rows])), together[rows])
    assert not torch.equal(together[0], together[1])


def test_the_seed_of_the_run_decides_and_is_restored() -> None:
    predictor, x = fitted(), tokens(samples(2))
    found = predictor(x)
    assert torch.equal(fitted()(x), found)
    assert not torch.equal(fitted(seed=1)(x), found)
    fresh = rival(seed=1)
    fresh.load_state_dict(predictor.state_dict())
    assert torch.equal(fresh(x), found)
    # Nothing but the normalisation and the seed is kept.
    assert set(predictor.state_dict()) == {"mean", "scale", "offset", "slope", "seed"}


def test_it_says_what_a_sample_costs() -> None:
    notes: list[str] = []
    fitted(notes=notes)
    (note,) = notes
    assert note.startswith("pinn: 20 steps, about ")
    assert note.endswith(" s of processor time a sample")


def test_networks_that_diverge_are_an_error() -> None:
    predictor = fitted(TINY.model_copy(update={"learning_rate": 1e30}))
    with pytest.raises(DataError, match=r"set a smaller predictor\.learning_rate than 1e\+30"):
        predictor(tokens(samples(1)))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("navier-stokes", "one field on a line without shocks; use the method 'coarse-solve'"),
        ("darcy-pdebench", "gives no residual to train 'pinn' on"),
        ("shallow-water", "gives no residual to train 'pinn' on"),
        ("darcy", "gives no residual to train 'pinn' on"),
        ("car", "has no equation; 'pinn' is for tasks such as pdebench/advection"),
    ],
)
def test_other_tasks_are_refused(task: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        api.run("methods/pinn", f"tasks/{task}", scale="smoke", root=tmp_path)


def test_too_many_samples_are_refused(tmp_path: Path) -> None:
    names = ["methods/pinn", "tasks/burgers"]
    with pytest.raises(RecipeError, match=r"each of 4 samples .* set predictor.most_samples=4 if"):
        compose_plan(
            names, registry(), Store(tmp_path), ["predictor.most_samples=3"], scale="smoke"
        )
    compose_plan(names, registry(), Store(tmp_path))  # the paper's size is allowed


def test_a_run_and_its_restored_model(tmp_path: Path) -> None:
    run: Any = api.run(
        "methods/pinn", "tasks/diffusion-reaction", scale="smoke", root=tmp_path, report=False
    )
    assert 0 < run.result["test"]["metric"] < 2
    assert any("s of processor time a sample" in note for note in run.result["notes"])
    model = api.load(run.run.path)
    x = torch.rand(3, 32, generator=torch.Generator().manual_seed(0)).numpy()
    assert np.array_equal(model.predict(x)[1:2], model.predict(x[1:2]))
