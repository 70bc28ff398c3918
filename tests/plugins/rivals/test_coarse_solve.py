"""The rival ``coarse-solve``: what it sees, what it refuses, and that a run of it is restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xmodal import api
from xmodal.batch import Tokens
from xmodal.data import RawForm
from xmodal.data.store import Store
from xmodal.engine.plan import compose_plan
from xmodal.errors import DataError, RecipeError, UsageError
from xmodal.interfaces import FitData, Settings, Target, Task, TaskData, TaskFacts
from xmodal.plugins import registry
from xmodal.settings import Use
from xmodal.testing.tiny import tiny_context, tiny_facts
from xmodal_nasbench360.darcy_samples import Grid, coarse_pressure, draw
from xmodal_rivals.coarse_solve import CoarseSolve

TASKS = (
    "darcy",
    "advection",
    "burgers",
    "diffusion-reaction",
    "diffusion-sorption",
    "navier-stokes",
    "darcy-pdebench",
    "shallow-water",
    "diffusion-reaction-2d",
)


class Cube(Task):
    """Its 'equation' is y = points x^3 of the first channel, on a line of 5."""

    @classmethod
    def describe(cls, config: Any, store: Any) -> TaskFacts:
        return TaskFacts("cube", (2, 5), Target("dense", 1, (5,)), {"train": 4}, coarse=6)

    def load(self, seed: int) -> TaskData:
        raise NotImplementedError

    @classmethod
    def coarse(cls, config: Any, x: np.ndarray, points: int, raw: RawForm) -> np.ndarray:
        if (x > 100).any():
            raise ArithmeticError("too wild")
        assert x.shape[1:] == (1, 5)
        return points * x**3


class Affine(nn.Module):
    """Outputs to standardised labels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("std", torch.tensor([1.0, 2.0, 0.0, 3.0, 0.5]))

    def forward(self, prediction: Tensor) -> Tensor:
        return prediction * self.std + 7


def rival(points: int | None = None, notes: list[str] | None = None) -> CoarseSolve:
    facts = replace(tiny_facts(), task=Cube.describe(None, None))
    context = tiny_context(facts, {"task": Use("cube", Cube, Settings())}, facts.task.target)
    if notes is not None:
        context = replace(context, note=notes.append)
    return CoarseSolve(CoarseSolve.Config(points=points), context)


def tokens(x: Tensor) -> Tokens:
    return Tokens(x.flatten(1)[:, None], (1,))


def fitted(points: int | None = None, notes: list[str] | None = None) -> tuple[Any, Any, Any]:
    """A predictor, raw samples and those of the model: standardised, and a channel more."""
    raw_x = torch.randn(4, 1, 5, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
    raw = RawForm(
        shape=(5,),
        laid=(1, 5),
        mean=torch.full((1, 5), 1.0),
        scale=torch.tensor([[3.0, 2.0, 3.0, 1.0, 3.0]]),
        extra=torch.arange(5.0)[None],
        label_mean=torch.tensor([[10.0]], dtype=torch.float64),
        label_scale=torch.tensor([[4.0]], dtype=torch.float64),
    )
    x = raw.apply(raw_x)
    predictor = rival(points, notes)
    y = torch.zeros(4, 1, 5)
    predictor.fit(FitData(x.flatten(1), y, x[:0], y[:0], raw=raw, decode=Affine()))
    return predictor, raw_x, (x, raw)


@pytest.mark.parametrize(("points", "used"), [(None, 6), (9, 9)])
def test_it_solves_raw_samples_and_answers_in_its_own_unit(points: int | None, used: int) -> None:
    predictor, raw_x, (x, raw) = fitted(points)
    labels = raw.restore_labels(Affine()(predictor(tokens(x))))
    kept = [0, 1, 3, 4]  # where decoding is constant, nothing can be said
    expected = used * raw_x**3
    np.testing.assert_allclose(labels[..., kept], expected[..., kept], rtol=1e-4, atol=1e-3)
    assert not predictor(tokens(x))[..., 2].any()


def test_a_checkpoint_restores_it() -> None:
    predictor, _, (x, _) = fitted()
    fresh = rival()
    assert not fresh.fitted
    with pytest.raises(UsageError, match="never fitted"):
        fresh(tokens(x))
    fresh.load_state_dict(predictor.state_dict())
    assert fresh.fitted
    assert torch.equal(fresh(tokens(x)), predictor(tokens(x)))


def test_it_says_what_a_sample_costs() -> None:
    notes: list[str] = []
    fitted(None, notes)
    assert len(notes) == 1
    assert notes[0].startswith("coarse-solve: 6 points a side, ")
    assert notes[0].endswith(" ms of processor time a sample")


def test_a_failed_solution_is_bad_data() -> None:
    predictor, _, (x, _) = fitted()
    with pytest.raises(DataError, match="coarse-solve: too wild"):
        predictor(tokens(x + 1000))


def test_tasks_without_an_equation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no equation to solve; 'coarse-solve' is for tasks"):
        api.run("methods/coarse-solve", "tasks/openml/car", scale="smoke", root=tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_every_equation_of_the_benchmarks_has_one(task: str, tmp_path: Path) -> None:
    names = ["methods/coarse-solve", f"tasks/{task}"]
    planned = compose_plan(names, registry(), Store(tmp_path), scale="smoke")
    assert planned.facts.task.coarse > 0


@pytest.mark.long
@pytest.mark.parametrize(("task", "error"), [("shallow-water", 0.05), ("navier-stokes", 0.2)])
def test_runs_on_pdebench(task: str, error: float, tmp_path: Path) -> None:
    """Also where the labels are standardised as the samples are (Navier-Stokes)."""
    run = api.run("methods/coarse-solve", f"tasks/{task}", scale="smoke", root=tmp_path)
    assert 0 < run.result["test"]["metric"] < error


def test_a_run_on_darcy(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    """The score is that of the function by itself; the trained run predicts raw samples."""
    run = tiny_run("predictor.points=15", recipe="methods/coarse-solve")
    grid = Grid(22, 22)
    pairs = [draw(0, 1, index, grid) for index in range(4)]
    a, u = (np.stack(parts).astype(np.float32) for parts in zip(*pairs, strict=True))
    solved = coarse_pressure(a[:, None].astype(np.float64), grid.positions(), 15)[:, 0]
    errors = np.linalg.norm((solved - u).reshape(4, -1), axis=1)
    expected = (errors / np.linalg.norm(u.reshape(4, -1), axis=1)).mean()
    assert run.result["test"]["metric"] == pytest.approx(expected, rel=1e-3)
    assert any("15 points a side" in note for note in run.result["notes"])
    model = api.load(run.run.path)
    np.testing.assert_allclose(model.predict(a), solved, rtol=1e-3, atol=1e-6)
