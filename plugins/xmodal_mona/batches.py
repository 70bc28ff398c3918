"""One step of MoNA's stage, and where its samples come from.

Seed, stage, epoch and step decide which samples a step sees, so checkpoints need no extra state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal import randomness
from xmodal.batch import Batch
from xmodal.data import loader

if TYPE_CHECKING:
    from xmodal.interfaces import Session

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BilevelStep:
    """One step: micro-batches of target samples, and source samples if any.

    Without source samples, the step minimises only L_inner.
    """

    target: tuple[Batch, ...]
    source: Labelled | None


def problem(target: Iterator[Batch], source: Iterator[Labelled] | None) -> Iterator[BilevelStep]:
    """The single piece of a step; reads its samples when the engine asks for the piece."""
    yield BilevelStep(tuple(target), None if source is None else next(source))


def draw(session: Session, dataset: Dataset[Any], indices: Iterable[Tensor]) -> Iterator[Labelled]:
    """The batches at ``indices``, on the device."""
    for x, y in loader.batches(dataset, indices, session.workers):
        yield x.to(session.device, non_blocking=True), y.to(session.device, non_blocking=True)


def source_order(
    count: int, size: int, first: int, number: int, seed: int, *names: str | int
) -> Iterator[Tensor]:
    """Indices of the batches ``first .. first + number`` over ``count`` source samples.

    Every pass over the source has its own order. A batch never holds a sample twice, because the
    sample would form a positive pair with itself: the incomplete batch at the end of a pass is
    dropped, and a source smaller than ``size`` is read whole.
    """
    size = min(size, count)
    each = count // size
    for turn in range(first // each, (first + number - 1) // each + 1):
        order = randomness.permutation(count, seed, *names, turn)
        for place in range(each):
            if first <= turn * each + place < first + number:
                yield order[place * size : (place + 1) * size]


def mean_over_processes(session: Session, tensors: list[Tensor]) -> list[Tensor]:
    """The gradients averaged over the samples of all processes."""
    if session.world == 1:
        return tensors
    reduced: list[Tensor] = [session.average(tensor) for tensor in tensors]
    return reduced


def rows_of_all(session: Session, z_BF: Tensor, y: Tensor) -> Labelled:
    """The features and labels of all processes; only this process's features carry a gradient."""
    found = session.gather([(z_BF.detach().cpu(), y.cpu())])
    rows = [z.to(z_BF.device) for z, _ in found]
    rows[session.rank] = z_BF
    return torch.cat(rows), torch.cat([labels for _, labels in found]).to(y.device)


def own_part(value: Tensor, world: int) -> Tensor:
    """The same value with ``world`` times its gradient.

    Every process computes the same value from all rows but differentiates only through its own
    rows. The full gradient is the sum over processes; ``mean_over_processes`` takes the mean, so
    this factor makes up for it.
    """
    return value.detach() + world * (value - value.detach())
