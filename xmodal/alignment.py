"""A base for stages that move the embedded target close to the embedded source.

Such a stage trains only the embedder, on a distance between sets of mean tokens; it does not run
the encoder or predict. ``begin`` computes everything that is fixed (the source points, the target
sets) once, and again in the same way when a run resumes.

Shapes: B samples of a batch, M samples of a set, N source samples (or tokens, in ``x_BND``), D
width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xmodal import randomness
from xmodal.batch import Points, Progress
from xmodal.data import loader
from xmodal.interfaces import Context, Distance, Facts, Session, Settings, Stage, Use
from xmodal.ops import evaluating, mean_tokens
from xmodal.optimize import AdamW, OptimizerSettings, make_optimizer

__all__ = ["FEWEST", "AlignmentSettings", "AlignmentStage", "Decay", "SetPart"]

GENTLE = 1e-3
"""The largest learning rate that is multiplied."""
FEWEST = 2
"""The size of the smallest set; smaller sets are left out."""


class Decay(Settings):
    """A learning rate that falls in steps."""

    after: tuple[NonNegativeInt, ...] = Field(
        (20, 40, 60), description="Epochs, counted from 0, after which the rate falls."
    )
    factor: float = Field(0.2, gt=0, le=1, description="The factor applied each time.")


@dataclass(frozen=True)
class SetPart:
    """The samples drawn from one set: the set's share of the loss, and the sample indices."""

    share: float
    batches: int
    stream: Iterator[tuple[Tensor, Tensor]]


class AlignmentSettings(Settings):
    """Settings of an alignment stage; a stage sets its own default ``distance``."""

    epochs: int = Field(60, ge=0, description="Optimizer steps; 0 skips the stage.")
    distance: Use[Distance] = Field(description="The distance between source and target features.")
    samples: int = Field(128, ge=FEWEST, description="Largest number of samples per set and step.")
    source_samples: int = Field(5000, ge=1, description="Largest number of source samples.")
    optimizer: OptimizerSettings = Field(
        AdamW(), description="adam, adamw or sgd, with its own settings."
    )
    lr_factor: float = Field(10.0, gt=0, description="Multiplies learning rates of at most 1e-3.")
    decay: Decay = Field(Decay(), description="When and by how much the learning rate falls.")
    train: tuple[str, ...] = Field(
        ("embedder.*",), description="Patterns over parameter names; only the embedder is used."
    )


class AlignmentStage(Stage):
    """Minimises the distance between the source and sets of target samples in the embedding.

    A sample is the mean of its tokens. Each epoch is one optimizer step on the sum over sets of the
    set's share of the samples times distance(source, samples of the set). By default, all samples
    form one set and labels are ignored; override ``sets`` to change this. ``labelled``: whether
    points have classes (all points of a set have the same class). ``title`` names the stage in
    notes, ``stream`` names its random stream.
    """

    needs_source = True
    evaluates = False
    title: ClassVar[str]
    stream: ClassVar[str]
    labelled: ClassVar[bool] = False
    Config = AlignmentSettings

    def __init__(self, config: AlignmentSettings, context: Context) -> None:
        super().__init__(config, context)
        self.distance: Distance = config.distance.build(context)
        self._members: list[Tensor] = []
        self._total = 1

    @classmethod
    def problems(cls, config: AlignmentSettings, facts: Facts) -> Iterable[str]:
        """Report a backbone without its own embedding, and problems of the distance."""
        if facts.backbone.width == 0:
            yield (
                f"stage '{cls.title}' needs a backbone with its own embedding; "
                f"'{facts.backbone.name}' has none"
            )
        distance = config.distance
        for line in distance.component.problems(distance.config, facts):
            yield f"distance '{distance.name}': {line}"

    @classmethod
    def learning_rate(cls, config: AlignmentSettings) -> float:
        """The learning rate in the settings, before ``lr_factor``."""
        return config.optimizer.lr

    def sets(self, session: Session) -> list[Tensor]:
        """The indices of the training samples of each set; by default all are one set."""
        return [torch.arange(loader.count(session.data.train))]

    def sets_text(self, count: int) -> str:
        """The number of sets in words, for a note."""
        return "one set"

    def begin(self, session: Session) -> None:
        """Embed the source once, and list the target samples of every set."""
        if self.epochs == 0:
            return
        found = self.sets(session)
        self._total = max(1, sum(len(index) for index in found))
        self._members = [index for index in found if len(index) >= FEWEST]
        source = source_points(session, self.config.source_samples, self.stream)
        self.distance.fit(source if self.labelled else Points(source.x_ND))
        session.note(
            f"{self.title}: {self.sets_text(len(self._members))} of {self._total} training "
            f"samples, {len(source.x_ND)} source samples"
        )

    def steps_per_epoch(self, session: Session) -> int:
        """One."""
        return 1

    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer; a small learning rate is multiplied by ``lr_factor``."""
        settings = self.config.optimizer
        factor = self.config.lr_factor if settings.lr <= GENTLE else 1.0
        return make_optimizer(settings.model_copy(update={"lr": settings.lr * factor}), named)

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate times factor^m, after m of the epochs in ``decay.after``."""
        decay: Decay = self.config.decay
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: decay.factor ** sum(epoch > after for after in decay.after)
        )

    def steps(self, session: Session, progress: Progress) -> Iterator[list[SetPart]]:
        """The single step of the epoch: one part per set, in random order."""
        if progress.step:
            return
        at = (session.seed, self.stream, progress.stage, progress.epoch)
        pieces_of, shares = [], []
        for number in randomness.permutation(len(self._members), *at, "order").tolist():
            index = self._members[number]
            shares.append(len(index) / self._total)
            chosen = drawn(index, self.config.samples, *at, number)
            pieces_of.append(torch.split(chosen, session.evaluation_batch))
        pieces = [piece for parts in pieces_of for piece in parts]
        stream = session.fetch(session.data.train, pieces)
        yield [SetPart(s, len(parts), stream) for s, parts in zip(shares, pieces_of, strict=True)]

    def loss(
        self, session: Session, micro: SetPart, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The share of one set times its distance, and the distance to log."""
        batches = [next(micro.stream)[0] for _ in range(micro.batches)]
        x_MD = target_features(session, batches)
        classes_M = None
        if self.labelled:
            classes_M = torch.zeros(len(x_MD), dtype=torch.int64, device=x_MD.device)
        distance = self.distance(Points(x_MD, classes_M))
        return micro.share * distance, {"distance": distance.detach()}


def drawn(index: Tensor, most: int, seed: int, *names: str | int) -> Tensor:
    """At most ``most`` entries of ``index``, drawn without repetition, in their original order."""
    if len(index) <= most:
        return index
    chosen = randomness.permutation(len(index), seed, *names)[:most]
    return index[chosen.sort().values]


def target_features(session: Session, batches: list[Tensor]) -> Tensor:
    """The mean tokens ``[M, D]`` of raw target samples, with a gradient to the embedder.

    With several batches, each is embedded again in the backward pass, so that memory holds the
    tokens of only one batch. The stage computes in single precision: it does not run the encoder,
    so half precision would save nothing.
    """
    embedder = session.model.embedder

    def embed(x: Tensor) -> Tensor:
        return mean_tokens(embedder(x).x_BND)

    if len(batches) == 1:
        return embed(batches[0])
    return torch.cat([checkpoint(embed, x, use_reentrant=False) for x in batches])


def source_points(session: Session, most: int, stream: str) -> Points:
    """The mean tokens of at most ``most`` source samples, with their classes if they have any.

    Other source labels do not become pseudo-classes: if the target has a single class, they would
    only add a constant to the distance.
    """
    assert session.source is not None
    assert session.facts.source is not None
    everything = torch.arange(loader.count(session.source))
    index = drawn(everything, most, session.seed, stream, "source")
    features, labels = [], []
    # With dropout, the embedded source would differ after a resume.
    with evaluating(session.model):
        pieces = torch.split(index, session.evaluation_batch)
        for x, y in session.fetch(session.source, pieces):
            features.append(mean_tokens(session.model.embed_source(x).x_BND))
            labels.append(y)
    has_classes = session.facts.source.target.kind == "classification"
    classes_N = torch.cat(labels) if has_classes else None
    return Points(torch.cat(features), classes_N)
