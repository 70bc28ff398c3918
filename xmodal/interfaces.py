"""The abstract parts of a cross-modal fine-tuning run.

Every part is one class with a nested pydantic ``Config``: the recipe block of that part *is* its
``Config``. A part learns about its surroundings from ``Facts`` (plain numbers, known before any
weight or sample is loaded) and receives run-time objects in a ``Context``.

Shapes: B samples, N tokens, D width of the tokens, F width of the features, C channels, K outputs.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError
from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal.batch import Points, Progress, Sample, Selection, Tokens, View
from xmodal.data.preparation import RawForm
from xmodal.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from xmodal.data.store import Store
    from xmodal.engine.session import Session
    from xmodal.inference.model import Trained

Pair = tuple[Tensor, Tensor]


class Settings(BaseModel):
    """Base of every ``Config``: unknown keys are errors that name the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="wrap")
    @classmethod
    def _name_nearest_key(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise _with_nearest_keys(cls, error) from None


def _with_nearest_keys(model: type[BaseModel], error: ValidationError) -> ValidationError:
    """Rewrite this model's own unknown-key errors; errors of nested parts pass unchanged."""
    known = sorted(field.alias or name for name, field in model.model_fields.items())
    details: list[InitErrorDetails] = []
    for item in error.errors(include_url=False):
        if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
            hint = did_you_mean(str(item["loc"][0]), known)
            context = {"hint": hint, "known": ", ".join(known)}
            kind = PydanticCustomError("unknown_key", "unknown setting{hint}", context)
        else:
            details.append(_same_error(item))
            continue
        details.append(InitErrorDetails(type=kind, loc=item["loc"], input=item["input"]))
    return ValidationError.from_exception_data(error.title, details)


def _same_error(item: Any) -> InitErrorDetails:
    """The error ``item`` describes, in the form pydantic wants errors made of."""
    details = InitErrorDetails(type=item["type"], loc=item["loc"], input=item["input"])
    if "ctx" in item:
        details["ctx"] = item["ctx"]
    try:
        PydanticKnownError(item["type"], item.get("ctx"))
    except KeyError:
        # Braces in a message (paths, types) would be read as fields of the template.
        message = item["msg"].replace("{", "(").replace("}", ")")
        details["type"] = PydanticCustomError(item["type"], message, item.get("ctx"))
    return details


# --- facts: what is known before anything is loaded ------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a label looks like.

    ``classification``: int64 ``[n]`` with ``size`` classes. ``multi-label``: float ``[n, size]`` of
    0/1. ``regression``: float ``[n, size]``. ``dense``: float ``[n, size, *shape]``, ``shape``
    being ``(H, W)`` or ``(L,)``.
    """

    kind: Literal["classification", "multi-label", "regression", "dense"]
    size: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskFacts:
    """A target task. ``shape`` is one sample's: ``(C, H, W)``, ``(C, L)`` or ``(F,)`` for a table
    row.

    ``levels`` has one entry a table column: 0 for a number, m for a category coded 0 .. m-1.
    ``samples`` counts the samples of each split.
    """

    name: str
    shape: tuple[int, ...]
    target: Target
    samples: Mapping[str, int]
    levels: tuple[int, ...] = ()

    @property
    def form(self) -> Literal["grid", "sequence", "row"]:
        """``grid`` for images and fields, ``sequence`` for series, ``row`` for tables."""
        forms: dict[int, Literal["grid", "sequence", "row"]] = {3: "grid", 2: "sequence", 1: "row"}
        return forms[len(self.shape)]


@dataclass(frozen=True)
class SourceFacts:
    """A proxy of the modality the backbone was pretrained on."""

    name: str
    modality: str
    target: Target


@dataclass(frozen=True)
class BackboneFacts:
    """A pretrained body.

    ``modality`` is what it was trained on (``image``, ``text`` or ``any``). ``patch`` is the side
    of its patches in pixels, ``grid`` the token grid it was trained with. ``max_tokens`` limits N.
    ``embedding_norm``: its embedding layer ends in a LayerNorm that an embedder can copy.
    ``reduction``: how many times coarser per axis the features' grid is than the tokens' (Swin: 8).
    """

    name: str
    modality: str
    width: int
    feature_width: int
    patch: int | None = None
    grid: tuple[int, ...] = ()
    max_tokens: int | None = None
    embedding_norm: bool = False
    reduction: int = 1


@dataclass(frozen=True)
class Facts:
    """What is known of a run before weights and samples are loaded. ``grid``: target tokens."""

    task: TaskFacts
    backbone: BackboneFacts
    source: SourceFacts | None = None
    grid: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """N, the number of target tokens (0 where it is not known)."""
        count = 1
        for side in self.grid:
            count *= side
        return count if self.grid else 0


@dataclass(frozen=True)
class Context:
    """What a component is built with.

    ``generator`` is the component's own source of randomness (on the CPU); its state is saved with
    every checkpoint. ``components`` holds the parts given to it (a mixer gets ``selector`` and
    ``scheduler``, an embedder gets ``backbone``). ``output`` is what a predictor must predict.
    ``note`` records one line for the user.
    """

    facts: Facts
    generator: torch.Generator
    store: Store
    components: Mapping[str, Any] = field(default_factory=dict)
    output: Target | None = None
    note: Callable[[str], None] = lambda line: None


# --- components ------------------------------------------------------------------------------


class Component(ABC):
    """A named, configurable part. Concrete classes nest a ``Config`` that derives from
    ``Settings``.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[Settings]] = Settings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not (inspect.isclass(cls.Config) and issubclass(cls.Config, Settings)):
            raise TypeError(
                f"{cls.__qualname__}.Config must derive from xmodal.interfaces.Settings"
            )

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """What is wrong with this choice here, knowable before any weight is loaded."""
        return ()

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """Files the user must fetch first: what, how large, from where, where to put them."""
        return ()


class Embedder(Component, nn.Module):
    """Turns raw target samples ``[B, *shape]`` into tokens of the backbone's width."""

    kind = "embedder"

    @classmethod
    @abstractmethod
    def grid(cls, config: Any, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """The token grid this embedder will produce. Raises ValueError with the reason if it
        cannot.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tokens:
        """Embed a batch."""

    def calibrate(self, x: Tensor, source_norm: float | None) -> None:
        """Adjust to a first batch of training samples, once, before training.

        ``source_norm`` is the mean Euclidean norm of the backbone's own tokens, or None where it is
        unknown. The default does nothing.
        """
        return


class Selector(Component, nn.Module):
    """Chooses the k most important tokens of every sample."""

    kind = "selector"

    @abstractmethod
    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        """Select ``k`` tokens a row; 0 <= k <= N."""


class Scheduler(Component):
    """Says how many tokens to replace."""

    kind = "scheduler"

    @abstractmethod
    def __call__(self, progress: Progress, num_tokens: int) -> int:
        """k at this point of the training, 0 <= k <= ``num_tokens``."""

    def observe(
        self, mix: Callable[[int], Tokens], target: Tokens, source: Tokens, progress: Progress
    ) -> None:
        """Look at a training batch before k is asked for; ``mix(k)`` gives its mixed tokens.

        For schedules that depend on the data. One with a state of its own must also be an
        ``nn.Module`` that keeps it in buffers. The default looks at nothing.
        """
        return


class Mixer(Component, nn.Module):
    """Builds the views a step trains on.

    ``needs_source`` asks the engine for source batches, ``needs_unlabelled`` for target samples
    without labels (a run may have none); ``uses`` names the parts it is given.
    """

    kind = "mixer"
    needs_source: ClassVar[bool] = False
    needs_unlabelled: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mix. ``source`` has as many samples as ``target``; its N may differ."""


class Predictor(Component, nn.Module):
    """Turns features into predictions of ``context.output``."""

    kind = "predictor"

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Whether this predictor can produce ``output``."""
        return True

    @abstractmethod
    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``, or ``[B, K, *shape]`` for dense outputs."""


@dataclass(frozen=True)
class LibraryModel:
    """A body as a model of a public library, for exports.

    ``config`` and ``state`` are the library's own. ``prefix`` ``[1, P, D]`` are tokens of the body
    that go in front of an embedder's, and whose features are dropped.
    """

    library: Literal["transformers", "timm"]
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    prefix: Tensor | None = None


class Backbone(Component, nn.Module):
    """A pretrained body: its own embedding of source samples, and its encoder.

    ``licence`` is that of the pretrained weights, as exports state it. A body whose ``Config`` has
    a field ``pretrained`` is built without its weights where a run's own replace them.
    """

    kind = "backbone"
    facts: BackboneFacts
    licence: ClassVar[str] = "that of the publisher of the weights"

    @classmethod
    @abstractmethod
    def describe(cls, config: Any, store: Store) -> BackboneFacts:
        """The body's facts, without loading weights."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tokens:
        """Encode tokens ``[B, N, D]`` into features ``[B, N', F]``."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tokens:
        """The pretrained embedding of source samples: what the encoder was trained to read."""

    def prepare_source(self, raw: Any) -> Tensor:
        """Make raw source samples what ``embed`` reads.

        Images: float ``[n, 3, H, W]`` in [0, 1], already of the wanted size. Text: a list of lists
        of words. The default returns ``raw`` unchanged.
        """
        return raw  # type: ignore[no-any-return]

    def embedding_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that only ``embed`` uses. They stay frozen: the source embedder is fixed."""
        return ()

    def tokenize(self, words: list[str]) -> list[list[int]]:
        """Word pieces of each word; only text bodies have them."""
        raise NotImplementedError(f"{type(self).__name__} does not read text")

    def reference_norm(self) -> float | None:
        """The mean norm of this body's own tokens, where it is known without source samples."""
        return None

    def patch_projection(self) -> nn.Conv2d | None:
        """The pretrained patch projection, for source initialisation of embedders."""
        return None

    def embedding_norm(self) -> nn.LayerNorm | None:
        """The LayerNorm at the end of the pretrained embedding, if there is one."""
        return None

    def positions(self, grid: tuple[int, ...]) -> Tensor | None:
        """Pretrained positions ``[N, D]`` interpolated to ``grid``; None where relative."""
        return None

    def library_model(self) -> LibraryModel | None:
        """This body as a model of a public library; None where no library has it."""
        return None


class Loss(Component, nn.Module):
    """A loss of predictions against labels."""

    kind = "loss"

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Whether this loss fits labels of that kind."""
        return True

    def fit(self, y: Tensor) -> None:
        """Look once at all training labels (for class weights). The default does nothing."""
        return

    @abstractmethod
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss of every sample, ``[B]``."""

    def agreement(self, prediction: Tensor, other: Tensor) -> Tensor:
        """How far a prediction is from another one of the same samples, ``[B]``; 0 where equal.

        The default is this loss with the other prediction as the label, which suits numbers.
        """
        disagreement: Tensor = self(prediction, other)
        return disagreement


class Adapter(Component):
    """Changes a pretrained body in place before anything trains, for example adds low-rank parts.

    Which of its parameters train is the stage's to say, by their names.
    """

    kind = "adapter"

    @abstractmethod
    def apply(self, backbone: Backbone) -> None:
        """Change the body. Must give the same parameter names every time."""


class Distance(Component):
    """A distance between two sets of points, the source's and the target's.

    ``fit`` is called once with the source and keeps whatever can be computed from it alone.
    """

    kind = "distance"

    @abstractmethod
    def fit(self, source: Points) -> None:
        """Remember the source ``[n, D]``; no gradient flows to it."""

    @abstractmethod
    def __call__(self, target: Points) -> Tensor:
        """The distance (a scalar) of ``target`` ``[m, D]``, differentiable in its points."""


@dataclass(frozen=True)
class Job:
    """One process to run: a name, the command, and the file that its output is added to."""

    name: str
    command: tuple[str, ...]
    log: Path


class Launcher(Component):
    """Runs jobs somewhere, and says which of them have not ended yet.

    Built outside of any run: ``context`` is None. A job that ends says in its own directory how.
    """

    kind = "launcher"

    def __init__(self, config: Any, context: None = None) -> None:
        self.config = config

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

    Built when a run starts, without a ``context``; ``__init__`` imports what it needs. ``start``,
    ``log`` and ``finish`` are then called in this order by a thread of the tracker's own, so that
    no run waits for them. What one of them raises becomes a note and ends the tracking, not the
    run. A tracker prints nothing and leaves the global random generators alone. Its ``Config`` has
    ``every_steps``, unless the class overrides the property.
    """

    kind = "tracker"

    def __init__(self, config: Any, context: None = None) -> None:
        self.config = config

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

    Built outside of any run: ``context`` is None.
    """

    kind = "exporter"

    def __init__(self, config: Any, context: None = None) -> None:
        self.config = config

    @abstractmethod
    def export(self, trained: Trained, folder: Path) -> Exported:
        """Write into an empty folder, and compare what was written with the model.

        Raises DataError or UsageError with the reason where that cannot be done or does not agree;
        the folder is then thrown away.
        """


class Metric(Component):
    """A score over a whole split, fed batch by batch. ``better`` is ``lower`` or ``higher``."""

    kind = "metric"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def update(self, prediction: Tensor, y: Tensor) -> None:
        """Add a batch of predictions (as the predictor and the task's decoding make them)."""

    @abstractmethod
    def compute(self) -> float:
        """The score of everything seen since ``reset``."""

    def smallest(self) -> float | None:
        """The least error above 0 that the labels seen since ``reset`` allow: one sample wrong.

        A comparison of ratios counts errors below half of it as half of it. None where an error is
        never 0 by luck (a mean of distances), or higher is better.
        """
        return None


@dataclass
class TaskData:
    """A loaded task. Every dataset maps an index to ``(x, y)``; training order is the engine's.

    ``decode`` turns a predictor's output into the unit of ``y`` (for example, it undoes a
    normalisation); losses and metrics see the decoded prediction. ``checksum`` identifies the data.
    ``unlabelled`` holds samples to train on whose labels must not be looked at. Where nothing is
    held out to test on, ``test`` is the same object as ``validation``, and results say so.
    ``images`` names channels worth drawing in a report: ``{"title": channel of x}``. ``raw`` says
    how samples were prepared, so that a trained model can prepare others; None where ``x`` is as
    it was in the files.
    """

    train: Dataset[Pair]
    validation: Dataset[Pair]
    test: Dataset[Pair]
    checksum: str
    decode: nn.Module = field(default_factory=nn.Identity)
    notes: tuple[str, ...] = ()
    images: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    unlabelled: Dataset[Pair] | None = None
    raw: RawForm | None = None


class Task(Component):
    """A target task. Its ``Config`` must have ``loss`` and ``metric`` fields."""

    kind = "task"

    @classmethod
    @abstractmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The task's facts; cheap. May read the user's own files. Raises DataError."""

    @abstractmethod
    def load(self, seed: int) -> TaskData:
        """Load, split and normalise. A random split is a function of ``seed``."""

    @classmethod
    def decoder(cls, config: Any, state: Mapping[str, Tensor]) -> nn.Module:
        """The ``decode`` of a finished run without its data; ``state`` is its state dict.

        The default knows only the identity, and raises DataError for anything else.
        """
        if state:
            raise DataError(
                f"{cls.__name__} cannot decode predictions without its data: it has no 'decoder'"
            )
        return nn.Identity()


@dataclass(frozen=True)
class SourceRequest:
    """What the run wants from a source.

    ``size``: image height and width, or ``(length,)`` in tokens. ``label_shape``: spatial shape for
    dense labels. ``prepare`` is the backbone's ``prepare_source``; ``tokenize``, of a text
    backbone, gives the word pieces of each word.
    """

    size: tuple[int, ...]
    label_shape: tuple[int, ...]
    prepare: Callable[[Any], Tensor]
    tokenize: Callable[[list[str]], list[list[int]]] | None = None


class Source(Component):
    """A labelled proxy of the modality the backbone was pretrained on.

    Its ``Config`` must have a ``loss`` field: the loss of the source head.
    """

    kind = "source"

    @classmethod
    @abstractmethod
    def describe(cls, config: Any) -> SourceFacts:
        """The source's facts; ``target.shape`` stays empty for dense labels."""

    @abstractmethod
    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Load model-ready samples. Everything that can be computed once is computed here."""


class Stage(Component):
    """One phase of a run. Yields optimizer steps, each an iterable of micro-batches.

    Its ``Config`` has ``epochs`` and ``train``, unless the class overrides the properties.
    ``needs_source`` asks for the recipe's source in ``session.source``, ``needs_source_head`` for a
    head that predicts its labels. ``evaluates``: whether its epochs are scored and can be the best
    of the run; a stage that prepares for another one says no. ``divides``: whether ``steps`` gives
    each process of a run a part of the work (``session.portions``); otherwise all do all of it.
    """

    kind = "stage"
    needs_source: ClassVar[bool] = False
    needs_source_head: ClassVar[bool] = False
    evaluates: ClassVar[bool] = True
    divides: ClassVar[bool] = False

    @property
    def epochs(self) -> int:
        """How many times ``steps`` is asked for."""
        return int(self.config.epochs)

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

    def part(self, micro: Any) -> float:
        """The part of a micro-batch that this process was given, by which its log counts."""
        return 1.0


INTERFACES: tuple[type[Component], ...] = (
    Embedder,
    Mixer,
    Selector,
    Scheduler,
    Predictor,
    Backbone,
    Adapter,
    Stage,
    Distance,
    Launcher,
    Tracker,
    Exporter,
    Task,
    Source,
    Loss,
    Metric,
)
"""Every kind of component this version knows, in the order a recipe names them."""
