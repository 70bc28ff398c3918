"""Random changes of training samples, new in every pass over them.

A changed sample depends on the run's seed, the pass and the sample's index, and on nothing else: a
resumed run, any number of workers and any number of processes meet the same. A task marks the
splits that may be changed by making them ``Augmented`` (or any data set with a method ``in_pass``).
Everything but training reads them unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from xmodal import randomness
from xmodal.data import loader

Pair = tuple[Tensor, Tensor]
Change = Callable[..., Pair]
"""``change(x, y, generator)`` makes a new sample and label of ``x`` and ``y``, not writing to them.

The generator is the only source of chance. With ``Augmented.each``, a fourth argument is its entry
for the sample."""


@runtime_checkable
class Changing(Protocol):
    """A data set whose samples differ from pass to pass."""

    def in_pass(self, seed: int) -> Dataset[Pair]:
        """The samples of one pass: a function of ``seed`` and the index."""


class Augmented(Dataset[Pair]):
    """The samples of ``plain``; in a pass of training, each is changed by ``change``.

    ``each`` holds what ``change`` has to know of each sample beside it: the brightness of its sky.
    """

    def __init__(
        self, plain: Dataset[Pair], change: Change, each: Sequence[Any] | NDArray[Any] | None = None
    ) -> None:
        self.plain, self.change, self.each = plain, change, each

    def __len__(self) -> int:
        return loader.count(self.plain)

    def __getitem__(self, index: int) -> Pair:
        return self.plain[index]

    def labels(self, index_N: Tensor) -> Tensor:
        """The labels of some samples, unchanged."""
        return loader.labels_of(self.plain, index_N)

    def in_pass(self, seed: int) -> Dataset[Pair]:
        """The samples as one pass sees them; this data set itself never changes."""
        return _Pass(self, seed)


class AddMultiple:
    """Adds ``low`` to ``high`` times what ``each`` says of a sample, such as its sky's brightness.

    That is in the unit of the samples as the model reads them.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator, level: float) -> Pair:
        factor = self.low + (self.high - self.low) * float(torch.rand((), generator=generator))
        return x + level * factor, y


class _Pass(Dataset[Pair]):
    def __init__(self, of: Augmented, seed: int) -> None:
        self.of, self.seed = of, seed

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> Pair:
        x, y = self.of[index]
        each = () if self.of.each is None else (self.of.each[index],)
        return self.of.change(x, y, randomness.generator(self.seed, int(index)), *each)


def in_pass(dataset: Dataset[Any], seed: int) -> Dataset[Any]:
    """A data set as one pass sees it; the same object if nothing in it ever changes.

    ``seed`` is that of the pass. Parts of a joined data set get a seed each.
    """
    if isinstance(dataset, Changing):
        return dataset.in_pass(seed)
    if type(dataset) is Subset:
        whole = in_pass(dataset.dataset, seed)
        return dataset if whole is dataset.dataset else Subset(whole, dataset.indices)
    if type(dataset) is ConcatDataset:
        parts = dataset.datasets
        now = [in_pass(p, randomness.derive(seed, "part", n)) for n, p in enumerate(parts)]
        changed = any(new is not old for new, old in zip(now, parts, strict=True))
        return ConcatDataset(now) if changed else dataset
    return dataset
