"""The phases of a run and the services around it: stages, launchers, trackers, exporters.

Stages and exporters receive a ``Model``, ``Session`` or ``Trained``; the engine implements them.
"""

from __future__ import annotations

import time
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
        prediction = self.predictor(self.backbone(self.embedder(x))).float()
        offset = self.predictor.from_samples(x)
        decoded: Tensor = self.decode(prediction if offset is None else prediction + offset)
        return decoded


class Model(ABC, nn.Module):
    """The model of a run: embedder, backbone, heads and mixer.

    Its heads are called "target" and "source". ``frozen`` holds the ids of parameters that never
    train. ``helpers``: what stages train beside the model and nothing else uses, by "stage0" etc.
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
    helpers: nn.ModuleDict

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of one micro-batch, and numbers to log."""

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Predict in the unit of the labels."""

    @abstractmethod
    def embed_source(self, x: Tensor) -> Tokens:
        """The frozen pretrained embedding of source samples."""

    @abstractmethod
    def views(self, batch: Batch, progress: Progress) -> tuple[View, ...]:
        """Embed and mix a batch."""

    @abstractmethod
    def encode(self, views: tuple[View, ...]) -> list[Tokens]:
        """Pass all views through the backbone; views of equal shape go together."""

    @abstractmethod
    def apply_head(self, head: str, features: Tokens) -> Tensor:
        """The prediction of one head; the target head predicts in the unit of its labels.

        Raises UsageError for a target head that ``reads_samples``, which features do not tell.
        """

    @abstractmethod
    def loss_of(self, head: str) -> Loss:
        """The loss of one head."""

    @abstractmethod
    def select_trainable(self, patterns: tuple[str, ...]) -> list[tuple[str, nn.Parameter]]:
        """Set ``requires_grad`` by name patterns and return the parameters that train.

        The pattern ``norms`` selects every LayerNorm; ``!pattern`` leaves out what fits it. Helpers
        are never selected: each trains in its own stage.
        """


class Session(Protocol):
    """A run in memory, as a stage sees it."""

    seed: int
    workers: int
    evaluation_batch: int
    stages: tuple[Stage, ...]
    source: Dataset[Any] | None

    @property
    def model(self) -> Model:
        """The model to train."""

    @property
    def data(self) -> TaskData:
        """The task's splits."""

    @property
    def facts(self) -> Facts:
        """The facts that were known before loading."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def world(self) -> int:
        """The number of processes that train this model."""

    def evaluation_split(self) -> Dataset[Any]:
        """The split that chooses the best epoch: validation, or test under ``published``."""

    def note(self, line: str) -> None:
        """Record one line for the user; repeated lines are recorded once."""

    def autocast(self) -> AbstractContextManager[Any]:
        """A context manager for code in the precision of the run."""

    def interruptible(self) -> AbstractContextManager[None]:
        """A block that a signal ends at once, because nothing of it could be saved.

        Anywhere else a signal waits for the end of the step, and the run saves its state.
        """

    def fetch(
        self, dataset: Dataset[Any], indices: Iterable[Tensor], exact: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch of every index tensor on the device, in order.

        A batch stays as it is until the next one is asked for. Labels in float64 become float32,
        unless ``exact``.
        """

    def first(self, dataset: Dataset[Any], number: int) -> tuple[Tensor, Tensor]:
        """The first ``number`` samples on the device, or all if there are fewer."""

    def batches(
        self,
        progress: Progress,
        size: int,
        micro: int | None = None,
        mixed: bool = True,
        unlabelled: bool = False,
    ) -> Iterator[Iterator[Batch]]:
        """This process's micro-batches of every step of the epoch, from ``progress.step`` on.

        Shuffles the training split and takes ``size`` samples per step, at most ``micro`` of them
        at once. ``mixed`` adds the source and unlabelled samples that the mixer needs.
        ``unlabelled`` shuffles the samples without labels among the others; labels then mean
        nothing. Data are read only when a micro-batch is requested.
        """

    def partners(self, number: int) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """Source and unlabelled samples for ``number`` target samples: always the first ones.

        Each is None if the mixer does not need it.
        """

    def gather(self, own: Sequence[Any]) -> list[Any]:
        """The entries of all processes, in the order of their ranks."""

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes of the run."""


class Trained(Protocol):
    """A trained model for predictions: raw samples in, predictions in the unit of the labels out.

    ``recipe`` is the resolved recipe, ``raw`` describes a raw sample, ``classes`` names classes or
    labels, and ``run`` is the run directory of the model (``run.path``, ``run.state``).
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
        """Raw samples as the model reads them, float32; messages count rows from ``first``."""

    def forward(self, x: Tensor) -> Tensor:
        """The outputs for prepared samples, in the precision and with the arithmetic of the run."""

    def outputs(self, x: Any, batch: int | None = None) -> Tensor:
        """The outputs for raw samples: ``[n, K]`` or ``[n, K, *shape]``, on the CPU."""

    def predict(self, x: Any, batch: int | None = None, names: bool = False) -> Any:
        """Predictions of raw samples, in the unit and the shape of the labels."""

    def samples(self) -> Any:
        """A few raw test samples that the run kept; an empty array if it kept none."""


class Stage(Component):
    """One phase of a run. Yields optimizer steps, each an iterable of micro-batches.

    Its ``Config`` has ``epochs`` and ``train``, unless the class overrides ``planned_epochs`` and
    ``train``. ``needs_source`` asks for the recipe's source in ``session.source``;
    ``needs_source_head`` asks for a head that predicts source labels. ``evaluates``: whether its
    epochs are scored and can be the best of the run; False for a stage that prepares another stage.
    ``divides``: whether ``steps`` divides the work among the processes of a run (as
    ``session.batches`` does); otherwise every process does all of it.
    """

    kind = "stage"
    needs_source: ClassVar[bool] = False
    needs_source_head: ClassVar[bool] = False
    evaluates: ClassVar[bool] = True
    divides: ClassVar[bool] = False

    @classmethod
    def planned_epochs(cls, config: Any) -> int:
        """The number of epochs of a stage with these settings, known before it is built."""
        return int(getattr(config, "epochs", 1))

    @classmethod
    def epochs_for(cls, config: Any, samples: int) -> int:
        """The same where it depends on the number of training samples; by default it does not."""
        return cls.planned_epochs(config)

    @classmethod
    def learning_rate(cls, config: Any) -> float | None:
        """The peak learning rate in the settings; None if the stage takes no optimizer steps."""
        return None

    @property
    def epochs(self) -> int:
        """How often the engine calls ``steps``."""
        return self.planned_epochs(self.config)

    @property
    def train(self) -> tuple[str, ...]:
        """Name patterns of the parameters to train, as for ``Model.select_trainable``."""
        return tuple(self.config.train)

    def helper(self, session: Session) -> nn.Module | None:
        """Parameters and buffers of the stage's own, such as a head that is thrown away afterwards.

        Called once when a run is built, before the model is on its device; a resumed run then loads
        what was saved. All parameters train in this stage, whatever ``train`` says, and in no
        other. ``loss`` finds the module where it is returned, so the stage keeps it.
        """
        return None

    def meet(self, session: Session) -> None:
        """Called once, when data and model are loaded, before anything else is asked."""
        return

    def begin(self, session: Session) -> None:
        """Called once when the stage starts, and again when a run resumes inside it."""
        return

    @abstractmethod
    def steps_per_epoch(self, session: Session) -> int:
        """The number of optimizer steps in an epoch."""

    @abstractmethod
    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer | None:
        """The optimizer of the trainable parameters, or None if there is nothing to step.

        Must accept an empty list: a resumed run asks whether a finished stage takes any steps.
        """

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """The learning-rate schedule, stepped after every optimizer step."""
        return None

    def clip(self) -> float | None:
        """The gradient norm to clip to before every optimizer step."""
        return None

    def averaging(self) -> float | None:
        """The decay of an average of the weights over the steps of the stage; None for none.

        The average is then what epochs are scored by and what the stage leaves (``ema``).
        """
        return None

    @abstractmethod
    def steps(self, session: Session, progress: Progress) -> Iterator[Iterable[Any]]:
        """The optimizer steps of ``progress.epoch`` from ``progress.step`` on.

        Reads data only when a micro-batch is requested, so that a resumed run can skip steps fast.
        May change attributes of the stage or of the model before the first step of an epoch, but
        not between its steps: a captured step would not notice.
        """

    @abstractmethod
    def loss(
        self, session: Session, micro: Any, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The loss of one micro-batch, weighted by its share of the step, and numbers to log.

        The engine averages loss and gradient over the processes of a run.
        """


@dataclass(frozen=True)
class Job:
    """One process to run: a name, the command, and the file to which its output is appended."""

    name: str
    command: tuple[str, ...]
    log: Path


class Launcher(Component):
    """Runs jobs somewhere, and reports which of them have not ended yet.

    A launcher does not belong to a run (``Context.outside``). A job reports in its own directory
    how it ended. ``default``: comparisons use this launcher unless the user names another.
    """

    kind = "launcher"
    default: ClassVar[bool] = False

    @property
    @abstractmethod
    def slots(self) -> int:
        """The number of jobs to hold at a time, including waiting jobs if it queues them."""

    @property
    def packs(self) -> int:
        """The largest number of cells in one job, which then take turns; by default one."""
        return 1

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs, or queue them.

        A job that ``unfinished`` lists is not started again, but ``stop`` will stop it too.
        """

    @abstractmethod
    def unfinished(self) -> Mapping[str, str]:
        """The jobs that have not ended, by name: ``queued`` or ``running``.

        May list jobs that an earlier process left behind; names are unique.
        """

    def wait(self, seconds: float) -> None:
        """Wait at most this long for a job to end. By default, wait all of the time."""
        time.sleep(seconds)

    def withdraw(self, names: Sequence[str]) -> None:
        """Take back jobs that have not begun; running jobs go on. By default, all jobs go on.

        ``unfinished`` need not show this at once, and ``withdraw`` may be called again meanwhile.
        """

    @abstractmethod
    def stop(self) -> None:
        """End all jobs gently, so that they save and can be resumed, and wait for them."""


@dataclass(frozen=True)
class Tracked:
    """The description of a run that a tracker receives before the first number.

    ``name`` is for people, such as ``pare on darcy, cpu, seed 0``; several runs may share it.
    ``recipe`` is the resolved recipe; ``tags`` are a few words to find the run by. ``memory`` is
    the value that ``start`` returned when this run began, or None if the run is new to the tracker.
    ``step`` is the last optimizer step that was sent to the tracker.
    """

    name: str
    directory: Path
    recipe: Mapping[str, Any]
    tags: Mapping[str, str]
    memory: Mapping[str, str] | None = None
    step: int = 0


class Tracker(Component):
    """Sends the numbers of a run to another program, while the run lasts.

    The tracker is built when a run starts; its ``__init__`` imports the packages it needs.
    ``start``, ``log`` and ``finish`` are then called in this order by a separate thread, so that
    the run never waits for them. An exception in one of them becomes a note and ends the tracking,
    not the run. A tracker must not print or use the global random generators. Its ``Config`` has
    ``every_steps``, unless the class overrides the property.
    """

    kind = "tracker"

    @property
    def every_steps(self) -> int | None:
        """Send every so many optimizer steps; None sends only epochs, which are always sent."""
        every: int | None = self.config.every_steps
        return every

    @abstractmethod
    def start(self, run: Tracked) -> Mapping[str, str]:
        """Begin a run, or continue the run that ``run.memory`` identifies.

        Returns the values needed to find the run again, such as an identifier. ``look`` among them
        is what a person opens or types to see it; commands print it at the end of a run.
        """

    @abstractmethod
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers at an optimizer step. Steps never decrease, not even after a resume."""

    @abstractmethod
    def finish(self, state: str, result: Mapping[str, float] | None) -> None:
        """End the tracking; called once, even if ``start`` or ``log`` failed.

        ``state`` is ``done``, ``interrupted``, ``stopped`` or ``failed``. Only a run that is done
        has a ``result``: test score, parameters, time, memory.
        """


@dataclass(frozen=True)
class Exported:
    """The result of an export: ``usage`` explains the files and how to use them, in Markdown.

    ``difference`` is the largest difference from the model's own outputs on ``samples`` real
    samples.
    """

    usage: str
    difference: float
    samples: int
    notes: tuple[str, ...] = ()


class Exporter(Component):
    """Writes a trained model in a form that other programs read.

    An exporter does not belong to a run in progress (``Context.outside``).
    """

    kind = "exporter"

    @abstractmethod
    def export(self, trained: Trained, folder: Path) -> Exported:
        """Write into an empty folder, and compare the result with the model.

        Raises DataError or UsageError with the reason if the export fails or does not agree with
        the model; the folder is then removed.
        """
