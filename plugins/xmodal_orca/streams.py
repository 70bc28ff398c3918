"""Streams for alignment: labels batch by batch, index lists of classes, and draws from them.

Nothing here holds more of a data set than one batch, and every draw is a function of the run's seed
and a name, so a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import loader
from xmodal.engine import randomness
from xmodal.interfaces import TaskFacts

BATCH_BYTES = 64 * 2**20
"""What is read at a time where labels are streamed."""
LARGEST_BATCH = 1024


def label_batches(dataset: Dataset[Any], task: TaskFacts, workers: int = 0) -> Iterator[Tensor]:
    """Every label once, in order, at most 64 MB of samples at a time (one sample if larger)."""
    numbers = prod(task.target.shape) * task.target.size
    if isinstance(dataset, TensorDataset):
        yield from torch.split(dataset.tensors[1], _batch(numbers))
        return
    # Such data sets give a label only together with its sample.
    for _, y in loader.in_order(dataset, _batch(numbers + prod(task.shape)), workers):
        yield y


def _batch(numbers: int) -> int:
    return min(LARGEST_BATCH, max(1, BATCH_BYTES // (4 * numbers)))


def members(classes_N: Tensor) -> list[Tensor]:
    """The ascending indices of each class that occurs, by class; negative classes are no class."""
    order_N = torch.argsort(classes_N, stable=True)
    found, counts = torch.unique_consecutive(classes_N[order_N], return_counts=True)
    parts = torch.split(order_N, counts.tolist())
    return [part for label, part in zip(found.tolist(), parts, strict=True) if label >= 0]


def draw(index: Tensor, most: int, seed: int, *names: str | int) -> Tensor:
    """At most ``most`` entries of ``index``, without repetition, in their order there."""
    if len(index) <= most:
        return index
    chosen = randomness.permutation(len(index), seed, *names)[:most]
    return index[chosen.sort().values]
