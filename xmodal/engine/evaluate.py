"""Scores a split, and looks at the tokens that a mixer keeps and takes.

Both run in evaluation mode, in fixed order, and leave every random stream as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.engine import distributed
from xmodal.engine.session import RunSession
from xmodal.ops import evaluating


@dataclass(frozen=True)
class SplitScore:
    """The metric and the mean loss of a split, and the predictions where they were asked for.

    ``smallest``: the least error above 0 that the metric could have shown.
    """

    metric: float
    loss: float
    predictions: Tensor | None = None
    smallest: float | None = None


@torch.no_grad()
def evaluate(session: RunSession, dataset: Dataset[Any], keep: bool = False) -> SplitScore:
    """Score ``dataset`` with the model as it is."""
    model, metric = session.model, session.metric
    metric.reset()
    total, count = 0.0, 0
    kept: list[Tensor] = []
    with evaluating(model):
        for prediction, y in _predicted(session, dataset):
            metric.update(prediction, y)
            total += float(model.loss(prediction, y).sum())
            count += len(y)
            if keep:
                kept.append(prediction.cpu())
    predictions = torch.cat(kept) if keep else None
    # Processes on different devices may differ in a last digit; they must choose the same epoch.
    found = (metric.compute(), total / max(1, count), metric.smallest())
    score, loss, smallest = distributed.of_the_first(found, session.world)
    return SplitScore(score, loss, predictions, smallest)


def _predicted(session: RunSession, dataset: Dataset[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Predictions and labels of all batches, in order, on the device.

    Several processes take the batches in turn and exchange what they predict, so that batches and
    numbers are the same as with one process.
    """
    pieces = torch.split(torch.arange(loader.count(dataset)), session.evaluation_batch)
    rank, world, device = session.rank, session.world, session.device
    stream = loader.batches(dataset, pieces[rank::world], session.workers)
    for start in range(0, len(pieces), world):
        own = []
        if start + rank < len(pieces):
            x, y = next(stream)
            with session.accelerator.autocast():
                prediction = session.model.predict(x.to(device))
            own = [(prediction if world == 1 else prediction.cpu(), y)]
        for prediction, y in session.gather(own):
            yield prediction.to(device), y.to(device)


PROBED_SAMPLES = 3


@torch.no_grad()
def look_at_tokens(session: RunSession, at: Progress) -> dict[str, Any]:
    """The origin of every token of the mixed view of the first training samples.

    Returns ``{"stage", "epoch", "k", "origin": int32 [SAMPLES, N]}``; no origin where nothing is
    mixed.
    """
    result: dict[str, Any] = {"stage": at.stage, "epoch": at.epoch}
    if not session.model.mixer.needs_source:
        return result
    before, model = session.random_state(), session.model
    try:
        x, y = (t.to(session.device) for t in loader.first(session.data.train, PROBED_SAMPLES))
        with evaluating(model), session.accelerator.autocast():
            views = model.views(Batch(x, y, *session.partners(len(x))), at)
    finally:
        session.set_random_state(*before)
    for view in views:
        if view.origin_BN is not None:
            result["origin"] = view.origin_BN.to(torch.int32).cpu()
            result["k"] = view.log.get("k", 0)
    return result
