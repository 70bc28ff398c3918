"""Every task that has a recipe is built at smoke scale and takes two steps.

Tasks are found, not listed, so a new one is covered as soon as its recipe exists. What can be made
on the spot is the task's own data; the others get random samples of the form that the task states,
so that this needs no file. What a task reads from its files is for its own tests.
"""

from __future__ import annotations

import itertools
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from xmodal import plugins
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import Training
from xmodal.engine.plan import Plan, compose_plan
from xmodal.engine.step import StepRecord
from xmodal.interfaces import Target, TaskData, TaskFacts
from xmodal.recipe.datasets import NamedData, all_named

BENCHMARKS = {"NAS-Bench-360": 10, "PDEBench": 8, "OpenML-CC18": 30, "miniDomainNet": 4}
TASKS = [
    named
    for named in all_named(plugins.registry())
    if isinstance(named, NamedData) and named.recipe
]


def labels(target: Target, count: int, random: torch.Generator) -> Tensor:
    """All classes in turn, labels of 0 and 1, or numbers above 0 (no norm is 0)."""
    if target.kind == "classification":
        return torch.arange(count) % target.size
    y = torch.rand(count, target.size, *target.shape, generator=random)
    return (y > 0.5).float() if target.kind == "multi-label" else y + 0.1


def samples(facts: TaskFacts) -> TaskData:
    """Random samples of a task's form."""
    random = torch.Generator().manual_seed(0)
    parts, few = [], prod(facts.shape) > 10**6
    for count in (3, 1, 1) if few else (16, 4, 4):
        x = torch.randn(count, *facts.shape, generator=random)
        for column, levels in enumerate(facts.levels):
            if levels:
                x[:, column] = torch.randint(levels, (count,), generator=random).float()
        y = labels(facts.target, count, random)
        parts.append(TensorDataset(x, y.round() if facts.family == "astronomy" else y))
    return TaskData(*parts, checksum="random")


def planned(name: str, store: Store) -> Plan:
    return compose_plan(["methods/pare", f"tasks/{name}"], plugins.registry(), store, (), "smoke")


def marked(named: NamedData) -> object:
    """One table, one of each benchmark's others, and one stand-in are among the fast tests."""
    fast = ("credit-g", "ecg", "advection", "sketch", "crop")
    return pytest.param(named.name, marks=() if named.name in fast else pytest.mark.slow)


@pytest.mark.long
@pytest.mark.parametrize("name", map(marked, TASKS))
def test_two_steps(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = planned(name, store)
    builder = Builder(made, store, lambda line: None)
    ready = made.recipe.task.component.ready(made.recipe.task.config, store)
    data = builder.data() if ready else samples(made.facts.task)
    session = builder.session(data)
    steps = itertools.islice((r for r in Training(session).run() if isinstance(r, StepRecord)), 2)
    losses = [step.loss for step in steps]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("scale", ["paper", "cpu", "smoke"])
def test_a_coarse_solution_is_coarse(scale: str, tmp_path: Path) -> None:
    """On all points of the grid it would be the program that made the data."""
    equations = 0
    for named in TASKS:
        recipes = ["methods/pare", f"tasks/{named.name}"]
        facts = compose_plan(recipes, plugins.registry(), Store(tmp_path), (), scale).facts.task
        if facts.coarse:
            fields = 3 if named.name == "navier-stokes" else 1
            assert 2 * facts.coarse <= facts.target.shape[-1] // fields, named.name
            equations += 1
    assert equations == 9


def test_every_task_of_the_papers_has_a_recipe() -> None:
    cards = [named.card for named in TASKS]
    found = [card.benchmark for card in cards if card is not None]
    assert {name: found.count(name) for name in BENCHMARKS} == BENCHMARKS
    # Whatever a user may be unable to get has a way out, which is a task as well.
    names = {named.name for named in TASKS}
    for named, card in zip(TASKS, cards, strict=True):
        assert card is not None, named.name
        assert card.licence, named.name
        assert card.source, named.name
        generable = card.generable or card.generable_from
        if card.benchmark in ("NAS-Bench-360", "miniDomainNet") and not generable:
            # CIFAR-100 is on its author's own page.
            assert card.stand_in in names or named.name == "cifar100", named.name
