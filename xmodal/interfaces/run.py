"""What a run goes through and what surrounds it: stages, launchers, trackers, exporters.

``Model``, ``Session`` and ``Trained`` are what stages and exporters are given; the engine has the
classes behind them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal.batch import Batch, Progress, Tokens, View
from xmodal.data.preparation import RawForm
from xmodal.facts import Facts
from xmodal.interfaces.component import Component
from xmodal.interfaces.data import TaskData
from xmodal.interfaces.model import Backbone, Embedder, Loss, Mixer, Predictor


class Network(nn.Module):
    """Embedder, backbone, head and decoding: samples to predictions in the unit of the labels."""

    def __init__(
        self, embedder: Embedder, backbone: Backbone, predictor: Predictor, decode: nn.Module
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.backbone = backbone
        self.predictor = predictor
        self.decode = decode

    def forward(self, x: Tensor) -> Tensor:
        """Predict ``[B, K]`` or ``[B, K, *shape]`` from standardised samples, float32."""
        prediction = self.predictor(self.backbone(self.embedder(x)))
        decoded: Tensor = self.decode(prediction.float())
        return decoded


class Model(ABC, nn.Module):
    """The model of a run: embedder, backbone, heads and mixer.

    It knows heads only as "target" and "source". ``frozen``: ids of what never trains.
    """

    embedder: Embedder
    backbone: Backbone
    mixer: Mixer
    predictor: Predictor
    loss: Loss
    decode: nn.Module
    source_predictor: Predictor | None
    source_loss: Loss | None
    share_head: bool
    frozen: set[int]

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of one micro-batch and what to log about it."""

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Predict in the unit of the labels."""

    @abstractmethod
    def embed_source(self, x: Tensor) -> Tokens:
        """The frozen pretrained embedding of source samples."""

    @abstractmethod
    def views(self, batch: Batch, progress: Progress) -> tuple[View, ...]:
        """Embed and mix."""

    @abstractmethod
    def encode(self, views: tuple[View, ...]) -> list[Tokens]:
        """Push all views through the backbone, those of one shape together."""

    @abstractmethod
    def apply_head(self, head: str, features: Tokens) -> Tensor:
        """The prediction of one head, the target's in the unit of its labels."""

    @abstractmethod
    def loss_of(self, head: str) -> Loss:
        """The loss of one head."""

    @abstractmethod
    def select_trainable(self, patterns: tuple[str, ...]) -> list[tuple[str, nn.Parameter]]:
        """Set ``requires_grad`` by patterns and return what trains. ``norms``: every LayerNorm."""


class Session(Protocol):
    """A run in memory: what a stage works with."""

    seed: int
    workers: int
    evaluation_batch: int
    stages: tuple[Stage, ...]
    source: Dataset[Any] | None

    @property
    def model(self) -> Model:
        """What is trained."""

    @property
    def data(self) -> TaskData:
        """The task's splits."""

    @property
    def facts(self) -> Facts:
        """What was known before anything was loaded."""

    @property
    def device(self) -> torch.device:
        """Where the model lives."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def world(self) -> int:
        """How many processes train this model."""

    def note(self, line: str) -> None:
        """Record one line for the user, once."""

    def autocast(self) -> AbstractContextManager[Any]:
        """A block in the precision of the run."""

    def batches(
        self, progress: Progress, size: int, micro: int | None = None, mixed: bool = True
    ) -> Iterator[Iterator[Batch]]:
        """This process's micro-batches of every step of the epoch, from ``progress.step`` on.

        Shuffles the training split and takes ``size`` samples a step, at most ``micro`` of them at
        once. ``mixed``: with the source and unlabelled samples that the mixer wants. Reads no data
        before a micro-batch is asked for.
        """

    def partners(self, number: int) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """What the mixer wants beside ``number`` labelled target samples: always the first ones."""

    def gather(self, own: Sequence[Any]) -> list[Any]:
        """The entries of all processes, in the order of the processes."""

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes of the run."""


class Trained(Protocol):
    """A trained model that is used: raw samples in, predictions in the unit of the labels out.

    ``recipe`` is the resolved recipe, ``raw`` says what a raw sample is, ``classes`` names classes
    or labels, and ``run`` is the run directory it comes from (``run.path``, ``run.state``).
    """

    model: Network
    recipe: Any
    facts: Facts
    raw: RawForm
    classes: tuple[str, ...]
    run: Any
    device: torch.device
    note: Callable[[str], None]

    def prepare(self, x: Any, first: int = 0) -> Tensor:
        """Raw samples as the model reads them, float32; ``first`` numbers the first row."""

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of prepared samples, in the precision and with the arithmetic of the run."""

    def outputs(self, x: Any, batch: int | None = None) -> Tensor:
        """What the model gives for raw samples: ``[n, K]`` or ``[n, K, *shape]``, on the CPU."""

    def predict(self, x: Any, batch: int | None = None, names: bool = False) -> Any:
        """Predictions of raw samples, in the unit and the shape of the labels."""

    def samples(self) -> Any:
        """A few raw test samples that the run has kept (none: an empty array)."""


class Stage(Component):
    """One phase of a run. Yields optimizer steps, each an iterable of micro-batches.

    Its ``Config`` has ``epochs`` and ``train``, unless the class overrides ``planned_epochs`` and
    ``train``.
    ``needs_source`` asks for the recipe's source in ``session.source``, ``needs_source_head`` for a
    head that predicts its labels. ``evaluates``: whether its epochs are scored and can be the best
    of the run; a stage that prepares for another one says no. ``divides``: whether ``steps`` gives
    each process of a run a part of the work (``session.batches`` does); otherwise all do all of it.
    """

    kind = "stage"
    needs_source: ClassVar[bool] = False
    needs_source_head: ClassVar[bool] = False
    evaluates: ClassVar[bool] = True
    divides: ClassVar[bool] = False

    @classmethod
    def planned_epochs(cls, config: Any) -> int:
        """How many epochs a stage with these settings takes; known before anything is built."""
        return int(getattr(config, "epochs", 1))

    @classmethod
    def learning_rate(cls, config: Any) -> float | None:
        """The peak learning rate that the settings ask for; None where nothing is stepped."""
        return None

    @property
    def epochs(self) -> int:
        """How many times ``steps`` is asked for."""
        return self.planned_epochs(self.config)

    @property
    def train(self) -> tuple[str, ...]:
        """What trains: patterns over parameter names (``embedder.*``), or ``norms``: LayerNorms."""
        return tuple(self.config.train)

    def begin(self, session: Session) -> None:
        """Called once when the stage starts, and again when a run resumes inside it."""
        return

    @abstractmethod
    def steps_per_epoch(self, session: Session) -> int:
        """The number of optimizer steps in an epoch."""

    @abstractmethod
    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer | None:
        """The optimizer of the trainable parameters, or None if there is nothing to step.

        Must accept an empty list: a resumed run asks whether a finished stage takes steps at all.
        """

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """The learning-rate schedule, stepped once an optimizer step."""
        return None

    def clip(self) -> float | None:
        """The gradient norm to clip to, once an optimizer step."""
        return None

    @abstractmethod
    def steps(self, session: Session, progress: Progress) -> Iterator[Iterable[Any]]:
        """The optimizer steps of ``progress.epoch`` from ``progress.step`` on.

        Reads no data before a micro-batch is asked for, so a resumed run skips for free.
        """

    @abstractmethod
    def loss(
        self, session: Session, micro: Any, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The loss of one micro-batch, weighted by its share of the step, and what to log.

        Loss and gradient are averaged over the processes of a run.
        """


@dataclass(frozen=True)
class Job:
    """One process to run: a name, the command, and the file that its output is added to."""

    name: str
    command: tuple[str, ...]
    log: Path


class Launcher(Component):
    """Runs jobs somewhere, and says which of them have not ended yet.

    It belongs to no run (``Context.outside``). A job that ends says in its own directory how.
    ``default``: comparisons use this launcher unless another one is named.
    """

    kind = "launcher"
    default: ClassVar[bool] = False

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many jobs it wants to hold at a time, waiting ones included where it queues them."""

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs, or queue them.

        A job that ``unfinished`` lists is not started again; it becomes this launcher's to stop.
        """

    @abstractmethod
    def unfinished(self) -> Mapping[str, str]:
        """The jobs that have not ended, by name: ``queued`` or ``running``.

        May list jobs that an earlier process left behind; names are unique.
        """

    def withdraw(self, names: Sequence[str]) -> None:
        """Take back jobs that have not begun; those that run go on. By default all go on.

        ``unfinished`` need not show it at once, and this may be called again meanwhile.
        """

    @abstractmethod
    def stop(self) -> None:
        """End all jobs as softly as possible (they save and can be resumed), and wait for them."""


@dataclass(frozen=True)
class Tracked:
    """A run as it is told to a tracker, before the first number.

    ``recipe`` is the resolved recipe; ``tags`` are the few words by which runs are found again.
    ``memory`` is what ``start`` returned when this run began, None for a run that is new to the
    tracker; ``step`` is the last optimizer step that it was told of.
    """

    name: str
    directory: Path
    recipe: Mapping[str, Any]
    tags: Mapping[str, str]
    memory: Mapping[str, str] | None = None
    step: int = 0


class Tracker(Component):
    """Shows the numbers of a run somewhere else, while it lasts.

    Made when a run starts; its ``__init__`` imports what it needs. ``start``,
    ``log`` and ``finish`` are then called in this order by a thread of the tracker's own, so that
    no run waits for them. What one of them raises becomes a note and ends the tracking, not the
    run. A tracker prints nothing and leaves the global random generators alone. Its ``Config`` has
    ``every_steps``, unless the class overrides the property.
    """

    kind = "tracker"

    @property
    def every_steps(self) -> int | None:
        """How often it wants an optimizer step; None for epochs only, which it is always told."""
        every: int | None = self.config.every_steps
        return every

    @abstractmethod
    def start(self, run: Tracked) -> Mapping[str, str]:
        """Begin a run, or continue the one that ``run.memory`` names.

        Returns what it needs to find it again, such as an identifier.
        """

    @abstractmethod
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers at an optimizer step. Steps never go back, also after a resume."""

    @abstractmethod
    def finish(self, state: str, result: Mapping[str, float] | None) -> None:
        """End all that ``start`` began; called once, also where ``start`` or ``log`` failed.

        ``state`` is ``done``, ``interrupted``, ``stopped`` or ``failed``; only a run that is done
        has a ``result``: test score, parameters, time, memory.
        """


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote: ``usage`` explains the files and how to use them, in Markdown.

    ``difference`` is the largest one from the model's own outputs, on ``samples`` real samples.
    """

    usage: str
    difference: float
    samples: int
    notes: tuple[str, ...] = ()


class Exporter(Component):
    """Writes a trained model in a form that other programs read.

    It belongs to no run in progress (``Context.outside``).
    """

    kind = "exporter"

    @abstractmethod
    def export(self, trained: Trained, folder: Path) -> Exported:
        """Write into an empty folder, and compare what was written with the model.

        Raises DataError or UsageError with the reason where that cannot be done or does not agree;
        the folder is then thrown away.
        """
