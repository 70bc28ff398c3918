"""Scores a split: metric and mean loss over the whole of it, in fixed order, without randomness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data import loader
from xmodal.engine.session import Session


@dataclass(frozen=True)
class Score:
    """The metric and the mean loss of a split, and the predictions if they were asked for."""

    metric: float
    loss: float
    predictions: Tensor | None = None


@torch.no_grad()
def evaluate(session: Session, dataset: Dataset[Any], keep: bool = False) -> Score:
    """Score ``dataset`` with the model as it is."""
    model, metric = session.model, session.metric
    was_training = model.training
    model.eval()
    metric.reset()
    total, count = 0.0, 0
    kept: list[Tensor] = []
    try:
        for x, y in loader.in_order(dataset, session.evaluation_batch, session.workers):
            x, y = x.to(session.device), y.to(session.device)
            with session.accelerator.autocast():
                prediction = model.predict(x)
            metric.update(prediction, y)
            total += float(model.loss(prediction, y).sum())
            count += len(x)
            if keep:
                kept.append(prediction.cpu())
    finally:
        model.train(was_training)
    predictions = torch.cat(kept) if keep else None
    return Score(metric.compute(), total / max(1, count), predictions)
