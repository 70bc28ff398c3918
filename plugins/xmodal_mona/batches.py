"""What one step of MoNA's stage is made of, and where its samples come from.

Which samples a step sees is a function of seed, stage, epoch and step, so nothing needs saving.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal import randomness
from xmodal.batch import Batch
from xmodal.data import loader
from xmodal.interfaces import Session

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BilevelStep:
    """One step: micro-batches of target samples, and source samples (or none).

    Without source samples only L_inner is minimised.
    """

    target: tuple[Batch, ...]
    source: Labelled | None


def problem(target: Iterator[Batch], source: Iterator[Labelled] | None) -> Iterator[BilevelStep]:
    """The one piece of a step; reads its samples when it is asked for."""
    yield BilevelStep(tuple(target), None if source is None else next(source))


def draw(session: Session, dataset: Dataset[Any], indices: Iterable[Tensor]) -> Iterator[Labelled]:
    """The batches, on the device."""
    for x, y in loader.batches(dataset, indices, session.workers):
        yield x.to(session.device, non_blocking=True), y.to(session.device, non_blocking=True)


def source_order(
    count: int, size: int, first: int, number: int, seed: int, *names: str | int
) -> Iterator[Tensor]:
    """Indices of the batches ``first .. first + number`` over ``count`` source samples.

    Every pass over the source has an order of its own. A batch never holds a sample twice, which
    would be its own positive: what a pass leaves over is dropped, and a source smaller than
    ``size`` is read whole.
    """
    size = min(size, count)
    each = count // size
    for turn in range(first // each, (first + number - 1) // each + 1):
        order = randomness.permutation(count, seed, *names, turn)
        for place in range(each):
            if first <= turn * each + place < first + number:
                yield order[place * size : (place + 1) * size]


def mean_over_processes(session: Session, tensors: list[Tensor]) -> list[Tensor]:
    """What the gradients are over all processes' samples."""
    if session.world == 1:
        return tensors
    reduced: list[Tensor] = [session.average(tensor) for tensor in tensors]
    return reduced


def rows_of_all(session: Session, z_BF: Tensor, y: Tensor) -> Labelled:
    """The features and labels of all processes; those of others come without a gradient."""
    found = session.gather([(z_BF.detach().cpu(), y.cpu())])
    rows = [z.to(z_BF.device) for z, _ in found]
    rows[session.rank] = z_BF
    return torch.cat(rows), torch.cat([labels for _, labels in found]).to(y.device)


def own_part(value: Tensor, world: int) -> Tensor:
    """The same value with ``world`` times its gradient.

    Each process differentiates one value of all rows through its own ones alone: the whole
    gradient is the sum over the processes, where ``mean_over_processes`` will take the mean.
    """
    return value.detach() + world * (value - value.detach())
