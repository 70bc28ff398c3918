"""Scores a split: metric and mean loss over the whole of it, in fixed order, without randomness."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal.data import loader
from xmodal.engine.session import Session


@dataclass(frozen=True)
class Score:
    """The metric and the mean loss of a split, and the predictions if they were asked for.

    ``smallest``: the least error above 0 that the metric could have shown.
    """

    metric: float
    loss: float
    predictions: Tensor | None = None
    smallest: float | None = None


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, without drop-out, inside the block; the modes from before after it."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)


@torch.no_grad()
def evaluate(session: Session, dataset: Dataset[Any], keep: bool = False) -> Score:
    """Score ``dataset`` with the model as it is."""
    model, metric = session.model, session.metric
    metric.reset()
    total, count = 0.0, 0
    kept: list[Tensor] = []
    with evaluating(model):
        for x, y in loader.in_order(dataset, session.evaluation_batch, session.workers):
            x, y = x.to(session.device), y.to(session.device)
            with session.accelerator.autocast():
                prediction = model.predict(x)
            metric.update(prediction, y)
            total += float(model.loss(prediction, y).sum())
            count += len(x)
            if keep:
                kept.append(prediction.cpu())
    predictions = torch.cat(kept) if keep else None
    return Score(metric.compute(), total / max(1, count), predictions, metric.smallest())
