"""What a stage works with: the model, the data, and the micro-batches of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from xmodal import randomness
from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.data.augment import in_pass
from xmodal.data.feed import Feed
from xmodal.engine import distributed
from xmodal.engine.model import TrainingModel
from xmodal.engine.process import StopRequest
from xmodal.interfaces import Facts, Metric, Stage, TaskData
from xmodal.steps import on_device


@dataclass
class RunSession:
    """A run in memory: the ``interfaces.Session`` that ``engine.build`` makes."""

    model: TrainingModel
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
    source_norm: float | None = None
    target_norm: float | None = None
    most_at_once: int | None = None
    at_once: int = 0
    shared: bool = False
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.accelerator.device
        # accelerate numbers the processes, and the CPU has no numbers.
        return torch.device("cpu") if device.type == "cpu" else device

    def note(self, line: str) -> None:
        """Record one line for the user, once."""
        if line not in self.notes:
            self.notes.append(line)
            self.on_note(line)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """How many processes train this model."""
        return int(self.accelerator.num_processes)

    def prepare(self) -> None:
        """Move the model to its device, and give every process the first one's weights."""
        self.model.to(self.device)
        distributed.overwrite(self.model.parameters(), self.world)
        distributed.overwrite(self.model.buffers(), self.world)

    def autocast(self) -> AbstractContextManager[Any]:
        """A block in the precision of the run."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    @cached_property
    def feed(self) -> Feed:
        """Brings the samples of every data set to the device."""
        return Feed(self.device)

    def fetch(
        self, dataset: Dataset[Any], indices: Iterable[Tensor], exact: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch of every index tensor on the device, in order; see ``Feed.batches``."""
        return self.feed.batches(dataset, indices, self.workers, exact)

    def batches(
        self,
        progress: Progress,
        size: int,
        micro: int | None = None,
        mixed: bool = True,
        unlabelled: bool = False,
    ) -> Iterator[Iterator[Batch]]:
        """This process's micro-batches of every step of the epoch, from ``progress.step`` on.

        Shuffles the training split and takes ``size`` samples a step, at most ``micro`` of them at
        once, or ``most_at_once``, if memory ran out. ``mixed``: with the source and unlabelled
        samples that the mixer wants. ``unlabelled``: those without labels are among the others.
        """
        samples, order = self.now(progress), self.order(progress)
        further = self.data.unlabelled if unlabelled else None
        if further is not None:
            samples = ConcatDataset([samples, further])
            order = self.order(progress, loader.count(samples))
        starts = range(0, len(order), size)[progress.step : progress.steps]
        self.at_once = min(micro or size, self.most_at_once or size)
        own = [
            distributed.portions(min(size, len(order) - at), self.at_once, self.rank, self.world)
            for at in starts
        ]
        pieces = [at + p.places for at, portions in zip(starts, own, strict=True) for p in portions]
        places = torch.cat(pieces) if pieces else torch.arange(0)
        sizes = [len(piece) for piece in pieces]
        stream = self.micro_batches(
            samples,
            torch.split(order[places], sizes),
            progress.epoch * len(order) + places,
            mixed,
        )
        for portions in own:
            yield (replace(next(stream), share=p.share, part=p.part) for p in portions)

    def order(self, progress: Progress, count: int | None = None) -> Tensor:
        """The order of the training samples in this epoch: a function of seed, stage and epoch.

        The n-th stage that takes steps and is scored has the same order in every recipe, whatever
        prepares it: comparisons pair methods by seed. Samples with weights occur in proportion to
        them; those without labels as often as the average.
        """
        weight_N = self.data.weights_of(self.data.train)
        count = count or loader.count(self.data.train)
        at = self._pass("order", progress)
        if weight_N is None:
            return randomness.permutation(count, self.seed, *at)
        others_N = weight_N.mean().expand(count - len(weight_N))
        return randomness.weighted_order(torch.cat([weight_N, others_N]), self.seed, *at)

    def now(self, progress: Progress) -> Dataset[Any]:
        """The training split as this epoch sees it: changed at random, if the task says so.

        A function of seed, stage and epoch, like ``order``.
        """
        seed = randomness.derive(self.seed, *self._pass("augmentation", progress))
        return in_pass(self.data.train, seed)

    def _pass(self, purpose: str, progress: Progress) -> tuple[str | int, ...]:
        name, stage = f"{purpose} of preparation", progress.stage
        if self.stages[stage].evaluates:
            before = [one for one in self.stages[:stage] if one.optimizer([]) is not None]
            name, stage = purpose, sum(earlier.evaluates for earlier in before)
        return name, stage, progress.epoch

    def micro_batches(
        self, train: Dataset[Any], indices: Sequence[Tensor], places: Tensor, mixed: bool = True
    ) -> Iterator[Batch]:
        """Fetch micro-batches of ``train``, and the samples that the mixer wants beside them.

        ``places`` counts the samples of all ``indices`` among the target samples drawn in this
        stage.
        Source and unlabelled samples come in endless streams of their own, one beside each target
        sample, so they depend on nothing but its place.
        """
        mixer, sizes = self.model.mixer, [len(index) for index in indices]
        source = further = None
        if mixed and mixer.needs_source and self.source is not None:
            source = self._stream(self.source, places, sizes, "source order")
        if mixed and mixer.needs_unlabelled and self.data.unlabelled is not None:
            further = self._stream(self.data.unlabelled, places, sizes, "unlabelled order")
        told = self.model.predictor.reads_samples
        for (x, y), index in zip(self.fetch(train, indices), indices, strict=True):
            yield Batch(
                x,
                y,
                None if source is None else next(source),
                None if further is None else next(further)[0],
                index=on_device(index, self.device) if told else None,
            )

    def partners(self, number: int) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """The source and unlabelled samples for a look at ``number`` target samples: the first."""
        mixer, source, further = self.model.mixer, None, None
        if mixer.needs_source and self.source is not None:
            source = self.first(self.source, number)
        if mixer.needs_unlabelled and self.data.unlabelled is not None:
            further = self.first(self.data.unlabelled, number)[0]
        return source, further

    @property
    def log_odds(self) -> bool:
        """Whether predictions are fields of log-odds: of labels that the loss reads as 0 and 1."""
        return self.facts.task.target.kind == "dense" and not self.model.loss.standardises

    def readable(self, prediction: Tensor) -> Tensor:
        """Predictions as pictures and errors take them: probabilities in place of log-odds."""
        return prediction.sigmoid() if self.log_odds else prediction

    def first(self, dataset: Dataset[Any], number: int) -> tuple[Tensor, Tensor]:
        """The first ``number`` samples on the device, or all if there are fewer."""
        index = torch.arange(min(number, loader.count(dataset)))
        return next(self.fetch(dataset, [index]))

    def _stream(
        self, dataset: Dataset[Any], places: Tensor, sizes: Sequence[int], name: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if not len(places):
            return iter(())
        first, last = int(places.min()), int(places.max())
        count = loader.count(dataset)
        order = randomness.endless(count, first, last - first + 1, self.seed, name)
        return self.fetch(dataset, torch.split(order[places - first], list(sizes)))

    def agree(self, value: float) -> float:
        """The largest ``value`` of all processes, so that all stop when one must."""
        return float(max(self.gather([value])))

    def gather(self, own: Sequence[Any]) -> list[Any]:
        """The entries of all processes, in the order of the processes."""
        return distributed.gather(own, self.world)

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes of the run."""
        mean: Tensor = self.accelerator.reduce(value, reduction="mean")
        return mean

    def random_state(self) -> tuple[dict[str, Tensor], Any]:
        """The state of every random stream: those of the parts by name, and the global one."""
        own = {name: generator.get_state() for name, generator in self.generators.items()}
        return own, randomness.global_state()

    def set_random_state(self, own: Mapping[str, Tensor], outer: Any) -> None:
        """Put every random stream into the state that ``random_state`` gave."""
        for name, generator in self.generators.items():
            generator.set_state(own[name])
        randomness.set_global_state(outer)

    def share_randomness(self) -> None:
        """Give every random stream the state that it has in the first process."""
        if self.world > 1:
            self.set_random_state(*distributed.of_the_first(self.random_state(), self.world))

    def draw_apart(self, step: int) -> None:
        """Give every process except the first random streams of its own for one step.

        They depend on process and step alone, so a checkpoint holds only those of the first one.
        """
        if self.rank == 0:
            return
        seed = randomness.derive(self.seed, "process", self.rank, step)
        for name, generator in self.generators.items():
            generator.manual_seed(randomness.derive(seed, name))
        randomness.seed_everything(seed)

    def interruptible(self) -> AbstractContextManager[None]:
        """A block that a signal ends at once, because nothing of it could be saved."""
        return self.stop.at_once()

    def evaluation_split(self) -> Dataset[Any]:
        """The split that selects the best epoch: validation, or test if published."""
        return self.data.test if self.protocol == "published" else self.data.validation
