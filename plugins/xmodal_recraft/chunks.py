"""Division of the target samples into chunks of one class."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.data import members


def class_chunks(classes: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of chunks of ``size`` samples of one class each, a class's spread over the list.

    Samples of a negative class are in no class and in no chunk.
    A class's rest is a chunk if it is at least half of one, or if the class has no other: the mean
    of very few predictions says little about the class. How many chunks there are does not depend
    on ``generator``.
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
