"""Scores a split, and looks at the tokens that a mixer keeps and takes.

Both run in evaluation mode, in fixed order, and leave every random stream as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.batch import Batch, Progress
from xmodal.data import RawForm, loader
from xmodal.engine import distributed
from xmodal.engine.memory import is_out_of_memory, smaller_evaluation
from xmodal.engine.session import RunSession
from xmodal.interfaces import Loss
from xmodal.ops import evaluating


@dataclass(frozen=True)
class SplitScore:
    """The metric and the mean loss of a split, and the predictions where they were asked for.

    All are in the unit of the user's labels, except ``objective``, the mean loss as it is trained,
    of standardised labels. What is not a finite number is None: a metric that is undefined for
    these labels (the area under the curve of one class), a loss that float64 cannot hold in the
    unit (1e200 squared).
    ``smallest``: the least error above 0 that the metric could have shown.
    """

    metric: float | None
    objective: float | None
    loss: float | None
    predictions: Tensor | None = None
    smallest: float | None = None


def evaluate(session: RunSession, dataset: Dataset[Any], keep: bool = False) -> SplitScore:
    """Score ``dataset`` with the model as it is; in smaller batches if memory runs out."""
    while True:
        try:
            return _evaluate(session, dataset, keep)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Not above: the error holds on to everything that the failed attempt had made.
        smaller_evaluation(session)


@torch.no_grad()
def _evaluate(session: RunSession, dataset: Dataset[Any], keep: bool) -> SplitScore:
    model, metric, data = session.model, session.metric, session.data
    metric.reset()
    metric.group(data.groups_of(dataset))
    unit = LossUnit.of(model.loss, data.raw).on(session.device)
    total, own, count = 0.0, 0.0, 0
    kept: list[Tensor] = []
    with evaluating(model):
        for prediction, y, losses in _received(_scored(session, dataset, unit)):
            restored = data.in_unit(prediction)
            metric.update(restored, data.in_unit(y))
            own_loss, loss = losses.tolist()
            total, own, count = total + loss, own + own_loss, count + len(y)
            if keep:
                kept.append(restored)
    predictions = torch.cat(kept) if keep else None
    # Processes on different devices may differ in a last digit; they must choose the same epoch.
    count = max(1, count)
    found = (metric.compute(), total / count, unit.restored(own / count), metric.smallest())
    score, objective, loss, smallest = map(_known, distributed.of_the_first(found, session.world))
    return SplitScore(score, objective, loss, predictions, smallest)


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class LossUnit:
    """How a loss of standardised labels becomes that of the labels in the user's unit.

    ``size`` is the largest scale of an output, ``weight`` the scales as shares of it, ``even`` if
    all are 1. A loss that does not say its degree stays that of standardised labels.
    """

    size: float = 1.0
    degree: int = 0
    weight: Tensor | None = None
    even: bool = True

    @classmethod
    def of(cls, loss: Loss, raw: RawForm | None) -> LossUnit:
        """The unit of ``loss`` for labels prepared as ``raw`` says."""
        if raw is None or raw.label_scale is None or not loss.degree:
            return cls()
        size = raw.label_scale.max()
        weight = (raw.label_scale / size).float()
        return cls(float(size), loss.degree, weight, bool((weight == 1).all()))

    def on(self, device: torch.device) -> LossUnit:
        """The same, for tensors on a device."""
        return self if self.weight is None else replace(self, weight=self.weight.to(device))

    def weighted(self, loss: Loss, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss with each output in its share of the largest scale, ``[B]``."""
        assert self.weight is not None
        value: Tensor = loss(prediction * self.weight, y * self.weight)
        return value

    def restored(self, value: float) -> float | None:
        """A loss in units of ``size`` as one in the user's unit; None beyond float64."""
        restored = value
        for _ in range(self.degree):
            restored *= self.size
        return restored if math.isfinite(restored) and (restored or not value) else None


Scored = tuple[Tensor, Tensor, Tensor]
"""Predictions, labels, and two losses: the sum over the batch in the unit's shares, and as trained.
"""


def _scored(session: RunSession, dataset: Dataset[Any], unit: LossUnit) -> Iterator[Scored]:
    """All batches in order, on the device."""
    loss = session.model.loss
    for prediction, exact in _predicted(session, dataset):
        y = loader.single(exact).to(session.device)
        value = loss(prediction, y).sum()
        own = value if unit.even else unit.weighted(loss, prediction, y).sum()
        yield prediction, exact, torch.stack([own, value])


def _received(batches: Iterator[Scored]) -> Iterator[Scored]:
    """The same on the CPU; a GPU computes the next batch while the caller works on this one."""
    ready: Callable[[], Scored] | None = None
    for batch in batches:
        before, ready = ready, _receiving(*batch)
        if before is not None:
            yield before()
    if ready is not None:
        yield ready()


def _receiving(*batch: Tensor) -> Callable[[], Scored]:
    """Start to copy a batch to the CPU. The result waits until it is there."""
    on_gpu = any(tensor.is_cuda for tensor in batch)
    # Elsewhere nothing would tell when such a copy is done.
    prediction, y, losses = (tensor.to("cpu", non_blocking=on_gpu) for tensor in batch)
    copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
    if copied is not None:
        copied.record()

    def wait() -> Scored:
        if copied is not None:
            copied.synchronize()
        return prediction, y, losses

    return wait


def _predicted(session: RunSession, dataset: Dataset[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Predictions and exact labels on the device, batch by batch, in order.

    Several processes take the batches in turn and exchange what they predict, so that batches and
    numbers are the same as with one process.
    """
    pieces = torch.split(torch.arange(loader.count(dataset)), session.evaluation_batch)
    rank, world, device = session.rank, session.world, session.device
    stream = session.fetch(dataset, pieces[rank::world], exact=True)
    for start in range(0, len(pieces), world):
        own = []
        if start + rank < len(pieces):
            x, y = next(stream)
            with session.accelerator.autocast():
                prediction = session.model.predict(x)
            own = [(prediction, y) if world == 1 else (prediction.cpu(), y.cpu())]
        for prediction, y in session.gather(own):
            yield prediction.to(device), y


PROBED_SAMPLES = 3
PROBED_EPOCHS = 12


def is_probed(epoch: int, epochs: int) -> bool:
    """Whether to look at tokens after an epoch of a stage: about twelve, the first and the last."""
    return epoch % -(-epochs // PROBED_EPOCHS) == 0 or epoch + 1 == epochs


@torch.no_grad()
def look_at_tokens(session: RunSession, at: Progress) -> dict[str, Any]:
    """The origin of every token of the mixed view of the first training samples.

    Returns ``{"stage", "epoch", "k", "origin": int32 [SAMPLES, N]}``; no origin where nothing is
    mixed, or if this epoch is not one to look at.
    """
    result: dict[str, Any] = {"stage": at.stage, "epoch": at.epoch}
    if not session.model.mixer.needs_source or not is_probed(at.epoch, at.epochs):
        return result
    before, model = session.random_state(), session.model
    try:
        x, y = session.first(session.data.train, PROBED_SAMPLES)
        with evaluating(model), session.accelerator.autocast():
            views = model.views(Batch(x, y, *session.partners(len(x))), at)
    finally:
        session.set_random_state(*before)
    for view in views:
        if view.origin_BN is not None:
            result["origin"] = view.origin_BN.to(torch.int32).cpu()
            result["k"] = float(view.log.get("k", 0))
    return result
