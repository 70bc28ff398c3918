"""What a stage works with: the model, the data, and how to fetch and run a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.engine import randomness
from xmodal.engine.model import Model
from xmodal.interfaces import Facts, Metric, Stage, TaskData


@dataclass
class Session:
    """A run in memory. Built by ``engine.build``; stages read it and call ``forward``."""

    model: Model
    data: TaskData
    facts: Facts
    metric: Metric
    stages: tuple[Stage, ...]
    accelerator: Accelerator
    source: Dataset[Any] | None = None
    seed: int = 0
    workers: int = 0
    evaluation_batch: int = 64
    protocol: str = "clean"
    generators: dict[str, torch.Generator] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    on_note: Callable[[str], None] = lambda line: None
    wrapped: nn.Module | None = None
    source_norm: float | None = None
    target_norm: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.accelerator.device
        return device

    def note(self, line: str) -> None:
        """Record one line for the user, once."""
        if line not in self.notes:
            self.notes.append(line)
            self.on_note(line)

    @property
    def train_size(self) -> int:
        """The number of training samples."""
        return loader.count(self.data.train)

    def order(self, progress: Progress) -> Tensor:
        """The order of the training samples in this epoch: a function of seed, stage and epoch."""
        return randomness.permutation(
            self.train_size, self.seed, "order", progress.stage, progress.epoch
        )

    def prepare(self) -> None:
        """Move the model to its device and wrap it for several processes where there are some."""
        self.model.to(self.device)
        if self.accelerator.num_processes > 1:
            self.wrapped = self.accelerator.prepare_model(self.model)

    def forward(self, batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The training loss of one micro-batch, in the precision of the run."""
        with self.accelerator.autocast():
            result: tuple[Tensor, dict[str, Tensor | float]] = (self.wrapped or self.model)(
                batch, progress
            )
        return result

    def micro_batches(self, indices: list[Tensor], drawn: int) -> Iterator[Batch]:
        """Fetch target micro-batches with all that the mixer wants to them, on the device.

        ``drawn`` is the number of target samples drawn before ``indices`` in this stage; source and
        unlabelled samples come in endless streams of their own, as many as target samples, so they
        depend on nothing but that number.
        """
        indices = [self._own(index) for index in indices]
        sizes = [len(index) for index in indices]
        mixer = self.model.mixer
        source = further = None
        if mixer.needs_source and self.source is not None:
            source = self._stream(self.source, sizes, drawn, "source order")
        if mixer.needs_unlabelled and self.data.unlabelled is not None:
            further = self._stream(self.data.unlabelled, sizes, drawn, "unlabelled order")
        for x, y in loader.batches(self.data.train, indices, self.workers):
            yield Batch(
                self._move(x),
                self._move(y),
                None if source is None else next(source),
                None if further is None else next(further)[0],
            )

    def partners(self, number: int) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """What the mixer wants beside ``number`` labelled target samples: always the first ones."""
        mixer, source, further = self.model.mixer, None, None
        if mixer.needs_source and self.source is not None:
            x, y = loader.first(self.source, number)
            source = self._move(x), self._move(y)
        if mixer.needs_unlabelled and self.data.unlabelled is not None:
            further = self._move(loader.first(self.data.unlabelled, number)[0])
        return source, further

    def _own(self, index: Tensor) -> Tensor:
        """This process's share of a micro-batch (all of it where there is one process)."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        # A rank left without samples would hang the others in the gradient exchange.
        return index[rank::world] if len(index) >= world else index

    def _stream(
        self, dataset: Dataset[Any], sizes: list[int], start: int, name: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        world = self.accelerator.num_processes
        rank = self.accelerator.process_index
        order = randomness.endless(
            loader.count(dataset), start, max(1, sum(sizes) * world), self.seed, name
        )[rank::world]
        pieces = torch.split(order[: sum(sizes)], sizes)
        for x, y in loader.batches(dataset, pieces, self.workers):
            yield self._move(x), self._move(y)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def agree(self, value: float) -> float:
        """The largest ``value`` of all processes, so that all of them stop when one must."""
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.gather(torch.tensor([value], device=self.device)).max())

    def mean(self, value: float) -> float:
        """The mean of ``value`` over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.gather(torch.tensor([value], device=self.device)).mean())

    def evaluation_split(self) -> Dataset[Any]:
        """The split that selects the best epoch: validation, or test if published."""
        return self.data.test if self.protocol == "published" else self.data.validation
