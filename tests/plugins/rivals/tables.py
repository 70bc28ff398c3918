"""A small table with numbers, categories and missing values, and predictors on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import (
    BackboneFacts,
    Context,
    Facts,
    FitData,
    FittedPredictor,
    Target,
    TaskFacts,
)

LEVELS = (0, 4, 0)
NONE: Any = SimpleNamespace()


def context(
    output: Target,
    shape: tuple[int, ...] = (3,),
    levels: tuple[int, ...] = LEVELS,
    samples: int = 120,
    family: str = "",
    store: Any = NONE,
) -> Context:
    task = TaskFacts("toy", shape, output, {"train": samples}, levels, family)
    facts = Facts(task, BackboneFacts("identity", "any", 0, 0), grid=(1,))
    return Context(facts, torch.Generator().manual_seed(0), store=store, output=output)


def build(component: type[FittedPredictor], output: Target, **settings: Any) -> Any:
    return component(component.Config(**settings), context(output))


def table(seed: int = 0, samples: int = 120) -> tuple[Tensor, Tensor]:
    """Samples ``[n, 3]`` and classes 0 or 1 that depend on a category and a number."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=random)
    x[:, 1] = torch.randint(4, (samples,), generator=random)
    y = ((x[:, 1] == 2) | (x[:, 0] > 1)).long()
    x[::7, 0] = float("nan")
    x[::11, 1] = -1
    return x, y


def data(labels: Any = None) -> FitData:
    """A training and a validation table; ``labels`` makes other labels of ``(x, y)``."""
    x, y = table()
    more_x, more_y = table(seed=1, samples=60)
    if labels is not None:
        y, more_y = labels(x, y), labels(more_x, more_y)
    return FitData(x, y, more_x, more_y)


def tokens(x: Tensor) -> Tokens:
    return Tokens(x.flatten(1)[:, None], (1,))


def predict(predictor: Any, x: Tensor) -> Tensor:
    prediction: Tensor = predictor(tokens(x))
    return prediction
