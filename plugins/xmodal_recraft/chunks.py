"""Divides the target samples into chunks of one class each."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.data import members


def class_chunks(classes: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of chunks of ``size`` samples of one class; each class is spread over the list.

    Samples with a negative class are left out. The last, smaller chunk of a class is kept if it
    has at least half the size or is the only one: the mean of very few predictions says little
    about the class. The number of chunks does not depend on ``generator``.
    """
    placed: list[tuple[float, Tensor]] = []
    for index in members(classes):
        shuffled = index[torch.randperm(len(index), generator=generator)]
        chunks = list(torch.split(shuffled, size))
        if len(chunks) > 1 and 2 * len(chunks[-1]) < size:
            chunks.pop()
        start = float(torch.rand((), generator=generator))
        placed += [((start + i) / len(chunks), chunk) for i, chunk in enumerate(chunks)]
    return [chunk for _, chunk in sorted(placed, key=lambda place: place[0])]
