"""Random changes of training samples, new in every pass over them.

A changed sample depends on the run's seed, the pass and the sample's index, and on nothing else: a
resumed run, any number of workers and any number of processes meet the same. A task marks the
splits that may be changed by making them ``Augmented`` (or any data set with a method ``in_pass``).
Everything but training reads them unchanged.

A task may also state an exact symmetry (``Symmetry``). With ``augment: true`` in a recipe, every
method gets it: networks see each sample moved by another element in every pass, and models that are
fitted once get copies of all samples (``for_fit``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from xmodal import randomness
from xmodal.data import loader

COPIES = 8
"""How many times as many samples a model that is fitted once gets at most."""

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


@dataclass(frozen=True)
class Symmetry:
    """A finite group of moves of samples under which labels are known exactly.

    ``size``: how many there are. ``move(x, y, element)`` moves one sample and its label, as they
    are in the task's data sets; elements are 0 to ``size`` - 1, and 0 changes nothing. ``name``
    says in words what they are, as ``TaskFacts.symmetry`` does.
    """

    name: str
    size: int
    move: Callable[[Tensor, Tensor, int], Pair]

    def __call__(self, x: Tensor, y: Tensor, element: int) -> Pair:
        """Move a sample; element 0 hands it on as it is."""
        return (x, y) if element == 0 else self.move(x, y, element)


def turned(field: Tensor, element: int) -> Tensor:
    """``[..., n, n]`` under one of the square's eight symmetries.

    Elements 0 to 3 turn by as many quarters, 4 to 7 then swap left and right.
    """
    moved = torch.rot90(field, element % 4, (-2, -1))
    return moved.flip(-1) if element >= 4 else moved


def shifted(field: Tensor, element: int, axis: int = -1) -> Tensor:
    """``[..., n]`` moved on by ``element`` places along an axis that is a ring."""
    return torch.roll(field, element, axis)


class Symmetric(Augmented):
    """The samples of ``plain``; in a pass of training, each is moved by a random element."""

    def __init__(self, plain: Dataset[Pair], symmetry: Symmetry, seed: int) -> None:
        super().__init__(plain, self._moved)
        self.symmetry, self.seed = symmetry, seed

    def in_pass(self, seed: int) -> Dataset[Pair]:
        """The samples as one pass sees them; if they change by themselves, they do that first."""
        inner = in_pass(self.plain, randomness.derive(seed, "inner"))
        return Augmented(inner, self._moved).in_pass(seed)

    def _moved(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Pair:
        element = int(torch.randint(self.symmetry.size, (), generator=generator))
        return self.symmetry(x, y, element)

    @property
    def copies(self) -> int:
        """How many copies of each sample ``Copies`` holds, the sample itself included."""
        return min(self.symmetry.size, COPIES)


class Copies(Dataset[Pair]):
    """All samples of a ``Symmetric``, then all of them moved, ``COPIES`` times in all at most.

    A small group is taken as a whole. Of a larger one each sample gets elements of its own, without
    repetition, drawn from the seed of the run and its index.
    """

    def __init__(self, of: Symmetric) -> None:
        self.of = of

    def __len__(self) -> int:
        return self.of.copies * len(self.of)

    def __getitem__(self, index: int) -> Pair:
        copy, place = divmod(int(index), len(self.of))
        x, y = self.of[place]
        return self.of.symmetry(x, y, self.element(copy, place))

    def element(self, copy: int, place: int) -> int:
        """By which element a copy of a sample is moved."""
        size = self.of.symmetry.size
        if copy == 0 or size <= COPIES:
            return copy
        order = randomness.permutation(size - 1, self.of.seed, "copies", place)
        return 1 + int(order[copy - 1])


def for_fit(dataset: Dataset[Any]) -> Dataset[Any]:
    """A training split as a model gets it that is fitted once: with copies, where it has any."""
    return Copies(dataset) if isinstance(dataset, Symmetric) else dataset


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
