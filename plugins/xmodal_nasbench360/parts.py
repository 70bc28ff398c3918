"""What the tasks have in common whose data are published as arrays, split already.

A ready data set is ``{part}_x.npy`` and ``{part}_y.npy`` of every part (train, validation, test).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal import ready
from xmodal.data import Store
from xmodal.data.datasets import DataCard
from xmodal.data.mapped import Mapped
from xmodal.errors import DataError
from xmodal.interfaces import Pair, Settings, Target, Task, TaskData, TaskFacts
from xmodal_nasbench360.scored import limited, scored_field, sizes

MEMORY = 1 << 30
"""Bytes up to which a part is read at once: tensors are batched faster, and a GPU can keep them."""
PARTS = ("train", "validation", "test")
Array = NDArray[Any]


class PartsSettings(Settings):
    """Where the data are."""

    path: Path | None = Field(
        None, description="Folder of the published files, or a prepared folder; default: the cache."
    )
    partial: bool = Field(False, description="Accept fewer samples than published; reports say so.")
    scored: int | None = scored_field()


class Parts(Task):
    """A task of published arrays; a subclass reads the files (``prepare``) and the samples."""

    data: ClassVar[DataCard]
    facts: ClassVar[TaskFacts]
    """As published."""
    config: Any

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published files."""
        return cls.data

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; sizes are those published while the files are missing."""
        found = ready.look(cls, config, store)
        target: Target = cls.facts.target
        whole = cls.facts.samples if found is None else found.about["samples"]
        samples = sizes(whole, config.scored)
        return TaskFacts(cls.facts.name, cls.facts.shape, target, samples, (), cls.facts.family)

    def load(self, seed: int) -> TaskData:
        """Map the arrays. Nothing depends on ``seed``."""
        found = ready.get(type(self), self.config, self.store)
        data = TaskData(
            train=self.part(found, "train"),
            validation=self.part(found, "validation"),
            test=self.part(found, "test"),
            checksum=found.checksum(),
            notes=self.notes(found),
        )
        return limited(data, self.config.scored, self.facts.name)

    def part(self, found: ready.Ready, part: str) -> Dataset[Pair]:
        """The samples of one part."""
        return self.held(
            Mapped(found / f"{part}_x.npy", found / f"{part}_y.npy", None, self.reader())
        )

    def held(self, mapped: Mapped) -> Dataset[Pair]:
        """The samples in memory if that takes little, and on disk otherwise."""
        if 4 * prod(self.facts.shape) * len(mapped) > MEMORY:
            return mapped
        y = mapped.labels(torch.arange(len(mapped)))
        return cast("Dataset[Pair]", TensorDataset(self.reader()(mapped.x.array[mapped.rows]), y))

    @abstractmethod
    def reader(self) -> Callable[[Array], Tensor]:
        """Makes samples of the model, float32, of samples as they lie in the file: one or many."""

    def notes(self, found: ready.Ready) -> tuple[str, ...]:
        """Says if the data are not all."""
        sizes: Mapping[str, int] = found.about["samples"]
        if dict(sizes) == dict(self.facts.samples):
            return ()
        counts = ", ".join(f"{sizes[part]:,}" for part in PARTS)
        return (f"{self.facts.name}: {counts} samples to train, validate and test, not all",)


def check_count(found: int, what: str, published: int, partial: bool) -> None:
    """Raise DataError unless there are as many of ``what`` as published, or ``partial``."""
    if found != published and not partial:
        raise DataError(
            f"{found:,} {what}, {published:,} are published\n"
            "way out: fetch the whole files, or set partial: true to use what is there (reports "
            "say so)"
        )


def check_classes(path: Path, labels: Any, count: int, first: int, classes: int) -> Array:
    """Labels ``first`` .. as classes 0 .. ``classes`` - 1, uint8. Raises DataError."""
    y = np.asarray(labels)
    if y.dtype.kind == "f" and np.array_equal(y, np.round(y)):
        y = y.astype(np.int64)
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise DataError(f"{path}: expected {count:,} classes, got labels of {y.dtype} {y.shape}")
    low, high = int(y.min()), int(y.max())
    if low < first or high >= first + classes:
        wrong = low if low < first else high
        raise DataError(f"{path}: class {wrong}, not {first} .. {first + classes - 1}")
    return (y - first).astype(np.uint8)
