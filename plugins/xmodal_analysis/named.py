"""Finds a data set by its name on the command line: a task's recipe, a task, a source or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodal import randomness, workbench
from xmodal.data import Store, loader
from xmodal.errors import DataError, UsageError, did_you_mean
from xmodal.interfaces import (
    NO_FACTS,
    Context,
    Facts,
    Source,
    SourceFacts,
    SourceRequest,
    Target,
    Task,
    TaskFacts,
)
from xmodal.settings import Use
from xmodal.text import MOST_KNOWN, shortlist
from xmodal.workbench import Registry, chosen

FILES = (".npz", ".npy", ".csv", ".parquet", ".h5", ".hdf5")
_ARRAYS = "arrays"


@dataclass(frozen=True)
class Named:
    """A data set that was found, a task or a source, but not loaded."""

    name: str
    task: Use[Task] | None = None
    source: Use[Source] | None = None


@dataclass(frozen=True)
class LoadedSamples:
    """Loaded samples of a task (in its own shape) or of a source (in the requested shape)."""

    name: str
    x: Tensor
    classes_N: Tensor | None
    task: TaskFacts | None = None
    source: SourceFacts | None = None


def find(name: str, registry: Registry, scale: str | None = None) -> Named:
    """The data set ``name``: a file, a recipe with a task, a task or a source, tried in this order.

    Raises UsageError with the nearest existing name.
    """
    path = Path(name).expanduser()
    if path.suffix in FILES:
        if not path.is_file():
            near = [str(p) for p in path.parent.glob("*") if p.suffix in FILES]
            raise UsageError(f"no file '{name}'{did_you_mean(name, near)}")
        block = {"use": _ARRAYS, "path": str(path), "normalize": "none"}
        return Named(name, task=chosen("task", block, registry, name))
    recipes = workbench.recipe_names(registry)
    for recipe in (name, f"tasks/{name}"):
        if recipe in recipes or (recipe == name and workbench.looks_like_path(name)):
            found: Any = workbench.compose([recipe], registry, (), scale).get("task")
            if found is None:
                raise UsageError(f"recipe '{recipe}' has no task, so it has no data")
            return Named(name, task=chosen("task", found, registry, name))
    if name in registry.names("task"):
        return Named(name, task=chosen("task", name, registry, name))
    if name in registry.names("source"):
        return Named(name, source=chosen("source", name, registry, name))
    tasks = [r.removeprefix("tasks/") for r in recipes if r.startswith("tasks/")]
    known = sorted({*tasks, *registry.names("source")})
    raise UsageError(
        f"no data set '{name}'{did_you_mean(name, [*known, *recipes])}\n"
        f"tasks: {shortlist(sorted(tasks), MOST_KNOWN)}\n"
        f"sources: {shortlist(registry.names('source'), MOST_KNOWN)}\n"
        f"or a file: {', '.join(FILES)}"
    )


def load_task(named: Named, samples: int, store: Store, seed: int) -> LoadedSamples:
    """The first training samples of a task, in a random order that depends only on ``seed``."""
    use = named.task
    assert use is not None
    _available(use, store)
    facts = use.component.describe(use.config, store)
    given = Context.outside(store, "task", seed, Facts(facts, NO_FACTS.backbone))
    with randomness.seeded(seed, "initialise", "task"):
        data = use.build(given).load(seed)
    x, y = _drawn(data.train, samples, seed)
    return LoadedSamples(named.name, x, _classes(y, facts.target), task=facts)


def load_source(
    named: Named, samples: int, store: Store, seed: int, request: SourceRequest
) -> LoadedSamples:
    """Samples of a source, made according to ``request``."""
    use = named.source
    assert use is not None
    _available(use, store)
    facts = use.component.describe(use.config)
    given = Context.outside(store, "source", seed, replace(NO_FACTS, source=facts))
    if "samples" in type(use.config).model_fields:
        # Sources make all their samples at once; thousands of large images would fill the memory.
        use = Use(use.name, use.component, use.config.model_copy(update={"samples": samples}))
    with randomness.seeded(seed, "initialise", "source"):
        dataset = use.build(given).load(request, randomness.derive(seed, "source") % 2**31)
    x, y = _drawn(dataset, samples, seed)
    return LoadedSamples(named.name, x, _classes(y, facts.target), source=facts)


def _available(use: Use[Any], store: Store) -> None:
    absent = list(use.component.missing(use.config, store))
    if absent:
        raise DataError("\n".join(absent))


def _drawn(dataset: Any, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    order = randomness.permutation(loader.count(dataset), seed, "analysis", "data set")
    pieces: Sequence[Tensor] = torch.split(order[:samples], 256)
    batches = list(loader.batches(dataset, pieces))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _classes(y: Tensor, target: Target) -> Tensor | None:
    return y.long() if target.kind == "classification" else None
