"""Contract checks of tasks, sources and stages: parts that read data or need a whole run.

This module checks only the settings of a stage; run a recipe to exercise its steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xmodal.data.store import Store
from xmodal.interfaces import (
    Source,
    SourceFacts,
    SourceRequest,
    Stage,
    Target,
    Task,
    TaskData,
    TaskFacts,
)
from xmodal.testing.tiny import (
    Given,
    build,
    check_class,
    expect,
    finite,
    shaped,
    tiny_context,
    tiny_facts,
)

SPLITS = ("train", "validation", "test")


def check_task(component: type[Task], given: Given = None, store: Store | None = None) -> None:
    """A task's data have the form given in its facts, and the same seed gives the same split."""
    (name, config), store = check_class(component, Task, given), store or Store()
    for key in ("loss", "metric"):
        expect(key in component.Config.model_fields, f"{name}.Config needs a field '{key}'")
    facts = component.describe(config, store)
    expect(isinstance(facts, TaskFacts), f"{name}.describe must give TaskFacts")
    context = replace(tiny_context(replace(tiny_facts(), task=facts)), store=store)
    data, again = (build(component, given, context).load(0) for _ in range(2))
    expect(isinstance(data, TaskData), f"{name}.load must give TaskData")
    expect(bool(data.checksum), f"{name}: the data have no checksum")
    expect(data.checksum == again.checksum, f"{name}: the checksum differs between two loads")
    for split in SPLITS:
        dataset, other = getattr(data, split), getattr(again, split)
        size = facts.samples.get(split)
        expect(len(dataset) == size, f"{name}: {len(dataset)} {split} samples, facts say {size}")
        for index in (0, len(dataset) - 1):
            where = f"{name}: {split} sample {index}"
            x, y = dataset[index]
            _pair(x, y, facts.shape, facts.target, where)
            message = f"{where} differs between two loads with one seed"
            expect(torch.equal(x, other[index][0]), message)


def check_source(
    component: type[Source],
    given: Given = None,
    store: Store | None = None,
    request: SourceRequest | None = None,
) -> None:
    """A source's samples have the requested form, and the same seed gives the same data set."""
    name, config = check_class(component, Source, given)
    facts = component.describe(config)
    expect(isinstance(facts, SourceFacts), f"{name}.describe must give SourceFacts")
    expect(facts.target.shape == (), f"{name}: the label shape in the facts must be empty")
    shape = (8, 12) if facts.target.kind == "dense" else ()
    request = request or SourceRequest((16, 24), shape, _as_tensor)
    context = replace(tiny_context(), store=store or Store())
    data, again = (build(component, given, context).load(request, 0) for _ in range(2))
    expect(len(data) == len(again), f"{name}: the size differs between two loads")
    target = replace(facts.target, shape=request.label_shape)
    for index in (0, 1):
        where = f"{name}: sample {index}"
        (x, y), (x_again, _) = data[index], again[index]
        channels = (3,) if facts.modality == "image" else ()
        _pair(x, y, (*channels, *request.size), target, where)
        expect(torch.equal(x, x_again), f"{where} differs between two loads with one seed")


def _as_tensor(raw: Any) -> Tensor:
    return torch.as_tensor(raw)


def _pair(x: Tensor, y: Tensor, shape: tuple[int, ...], target: Target, where: str) -> None:
    shaped(x, shape, f"{where}: x")
    if x.is_floating_point():
        finite(x, f"{where}: x")
    y = torch.as_tensor(y)
    if target.kind == "classification":
        expect(y.ndim == 0 and y.dtype == torch.int64, f"{where}: y must be one int64")
        expect(0 <= int(y) < target.size, f"{where}: class {int(y)} of {target.size}")
        return
    shaped(y, (target.size, *target.shape), f"{where}: y")
    expect(y.is_floating_point(), f"{where}: y must be floating point")


def check_stage(component: type[Stage], given: Given = None) -> None:
    """A stage tells its number of epochs, what it trains and how it clips gradients."""
    (name, _), stage = check_class(component, Stage, given), build(component, given)
    try:
        epochs, train = stage.epochs, stage.train
    except AttributeError as error:
        raise AssertionError(f"{name} has neither the setting nor the property: {error}") from error
    expect(type(epochs) is int and epochs >= 0, f"{name}.epochs must be an int, not {epochs!r}")
    # A pattern of one letter other than * comes from a string that was mistaken for a list.
    lonely = [p for p in train if len(p) == 1 and p != "*"]
    patterns = isinstance(train, tuple) and all(isinstance(p, str) for p in train) and not lonely
    expect(patterns, f"{name}.train must be a tuple of patterns, not {train!r}")
    clip = stage.clip()
    expect(clip is None or clip > 0, f"{name}.clip() must be None or positive, not {clip}")
