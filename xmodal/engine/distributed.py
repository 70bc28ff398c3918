"""What the processes of one run do together: divide a step, agree, and average their gradients.

Gradients are averaged once a step, after the last micro-batch, for whatever trains in the current
stage and however many micro-batches each process had; torch's own wrapper fixes both when it is
made. With one process nothing here moves or copies anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

BUCKET = 2**24
"""Numbers that travel at once: few enough to need little memory, enough to hide the latency."""


@dataclass(frozen=True)
class Portion:
    """A micro-batch, or the part of one, that a process takes of a step.

    ``places`` counts the samples from the start of the step; ``part`` and ``share`` are those of
    its ``Batch``.
    """

    places: Tensor
    part: float
    share: float


@lru_cache(maxsize=64)  # the steps of an epoch are alike, except the last
def portions(count: int, micro: int, rank: int, world: int) -> tuple[Portion, ...]:
    """What process ``rank`` of ``world`` takes of a step of ``count`` samples, ``micro`` at once.

    Processes take whole micro-batches in turn where there are enough, and a part of each otherwise;
    a process can be left with nothing.
    """
    whole = torch.split(torch.arange(count), micro)
    if len(whole) >= world:
        own = [(places, 1.0) for places in whole[rank::world]]
    else:
        divided = [(places[rank::world], len(places)) for places in whole]
        own = [(places, len(places) / size) for places, size in divided if len(places)]
    return tuple(Portion(places, part, world * len(places) / count) for places, part in own)


def gather(own: Sequence[Any], world: int) -> list[Any]:
    """The entries of all processes, in the order of the processes."""
    return list(own) if world == 1 else list(gather_object(list(own)))


def of_the_first(value: Any, world: int) -> Any:
    """The value that the first process has."""
    return value if world == 1 else broadcast_object_list([value])[0]


def overwrite(tensors: Iterable[Tensor], world: int) -> None:
    """Write the first process's values into the tensors of the others."""
    if world == 1:
        return
    for tensor in tensors:
        if tensor.numel():
            # Not every backend sends booleans.
            sent = (
                tensor.detach().to(torch.uint8) if tensor.dtype == torch.bool else tensor.detach()
            )
            sent = sent.contiguous()
            torch.distributed.broadcast(sent, src=0)
            tensor.detach().copy_(sent)


def average_gradients(parameters: Sequence[nn.Parameter], world: int) -> None:
    """Replace every gradient by its mean over the processes; a missing one counts as 0.

    A parameter that has no gradient in any process keeps none.
    """
    if world == 1:
        return
    present = gather([[p.grad is not None for p in parameters]], world)
    found = [p for p, has in zip(parameters, zip(*present, strict=True), strict=True) if any(has)]
    for parameter in found:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in found if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        torch.distributed.all_reduce(flat)
        flat /= world
        for gradient, part in zip(
            bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of neighbouring gradients of one type, each of about ``BUCKET`` numbers."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(g.numel() for g in bucket) + gradient.numel() > BUCKET
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
