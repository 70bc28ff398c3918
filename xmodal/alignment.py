"""A stage that brings the embedded target near the embedded source, for plugins to build on.

It trains the embedder alone, on a distance between sets of mean tokens; the encoder is not run and
nothing is predicted. What is fixed (the source's points, the target's sets) is worked out once in
``begin``, the same way when a run resumes.

Shapes: B samples of a batch, M of a set, N source samples (or tokens, in ``x_BND``), D width.
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
"""Only learning rates up to this one are multiplied."""
FEWEST = 2
"""Smaller sets are left out."""


class Decay(Settings):
    """A learning rate that falls in steps."""

    after: tuple[NonNegativeInt, ...] = Field(
        (20, 40, 60), description="Epochs (from 0) after which the rate falls."
    )
    factor: float = Field(0.2, gt=0, le=1, description="What it is multiplied by each time.")


@dataclass(frozen=True)
class SetPart:
    """The samples drawn of one set: its share of the loss, and where to fetch them."""

    share: float
    batches: int
    stream: Iterator[tuple[Tensor, Tensor]]


class AlignmentSettings(Settings):
    """Settings of an alignment stage; the stage names its default ``distance``."""

    epochs: int = Field(60, ge=0, description="Optimizer steps; 0 leaves the stage out.")
    distance: Use[Distance] = Field(description="The distance between source and target features.")
    samples: int = Field(128, ge=FEWEST, description="Samples of a set in a step, at most.")
    source_samples: int = Field(5000, ge=1, description="Source samples, at most.")
    optimizer: OptimizerSettings = Field(
        AdamW(), description="adam, adamw or sgd, with its own settings."
    )
    lr_factor: float = Field(10.0, gt=0, description="Multiplies learning rates of at most 1e-3.")
    decay: Decay = Field(Decay(), description="Steps in which the learning rate falls.")
    train: tuple[str, ...] = Field(
        ("embedder.*",), description="Patterns over parameter names; only the embedder is used."
    )


class AlignmentStage(Stage):
    """Minimises the distance between the source and sets of target samples in the embedding.

    A sample is the mean of its tokens. One optimizer step an epoch: the sum over sets of their
    share of the samples times distance(source, samples of the set). As it stands all samples are
    one set, and no labels are looked at; ``sets`` says otherwise. ``labelled``: whether points have
    classes, those of a set one and the same. ``title`` is what the stage is called in notes,
    ``stream`` what its random numbers are drawn under.
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
        """A backbone without tokens of its own, and what the distance finds wrong."""
        if facts.backbone.width == 0:
            yield (
                f"stage '{cls.title}' needs a backbone with an embedding of its own; "
                f"'{facts.backbone.name}' has none"
            )
        distance = config.distance
        for line in distance.component.problems(distance.config, facts):
            yield f"distance '{distance.name}': {line}"

    @classmethod
    def learning_rate(cls, config: AlignmentSettings) -> float:
        """The learning rate as the settings say it, before it is multiplied."""
        return config.optimizer.lr

    def sets(self, session: Session) -> list[Tensor]:
        """The indices of the training samples of each set; by default all are one set."""
        return [torch.arange(loader.count(session.data.train))]

    def sets_text(self, count: int) -> str:
        """So many sets in words, for a note."""
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
        """The optimizer, with a larger learning rate where that is small."""
        settings = self.config.optimizer
        factor = self.config.lr_factor if settings.lr <= GENTLE else 1.0
        return make_optimizer(settings.model_copy(update={"lr": settings.lr * factor}), named)

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The rate times factor^m after m of the epochs in ``decay.after``."""
        decay: Decay = self.config.decay
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: decay.factor ** sum(epoch > after for after in decay.after)
        )

    def steps(self, session: Session, progress: Progress) -> Iterator[list[SetPart]]:
        """The one step of the epoch: a part for each set, in random order."""
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
        stream = loader.batches(session.data.train, pieces, session.workers)
        yield [SetPart(s, len(parts), stream) for s, parts in zip(shares, pieces_of, strict=True)]

    def loss(
        self, session: Session, micro: SetPart, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The share of one set times its distance, and the distance itself."""
        batches = [next(micro.stream)[0] for _ in range(micro.batches)]
        x_MD = target_features(session, batches)
        classes_M = None
        if self.labelled:
            classes_M = torch.zeros(len(x_MD), dtype=torch.int64, device=x_MD.device)
        distance = self.distance(Points(x_MD, classes_M))
        return micro.share * distance, {"distance": distance.detach()}


def drawn(index: Tensor, most: int, seed: int, *names: str | int) -> Tensor:
    """At most ``most`` entries of ``index``, without repetition, in their order there."""
    if len(index) <= most:
        return index
    chosen = randomness.permutation(len(index), seed, *names)[:most]
    return index[chosen.sort().values]


def target_features(session: Session, batches: list[Tensor]) -> Tensor:
    """The mean tokens ``[M, D]`` of raw target samples, with a gradient to the embedder.

    Of several batches each is embedded again for the backward pass, so that the tokens of one batch
    at most are in memory. The encoder is not run, so half precision would save nothing: the whole
    stage computes in single precision.
    """
    embedder, device = session.model.embedder, session.device

    def embed(x: Tensor) -> Tensor:
        return mean_tokens(embedder(x.to(device, non_blocking=True)).x_BND)

    if len(batches) == 1:
        return embed(batches[0])
    return torch.cat([checkpoint(embed, x, use_reentrant=False) for x in batches])


def source_points(session: Session, most: int, stream: str) -> Points:
    """The mean tokens of at most ``most`` source samples, with their classes where they have any.

    Other labels of the source are not made into pseudo-classes: with a target of one label they
    would only add a constant to the distance.
    """
    assert session.source is not None
    assert session.facts.source is not None
    everything = torch.arange(loader.count(session.source))
    index = drawn(everything, most, session.seed, stream, "source")
    features, labels = [], []
    # A source embedded with drop-out would be another one after a resume.
    with evaluating(session.model):
        pieces = torch.split(index, session.evaluation_batch)
        for x, y in loader.batches(session.source, pieces, session.workers):
            features.append(mean_tokens(session.model.embed_source(x.to(session.device)).x_BND))
            labels.append(y)
    has_classes = session.facts.source.target.kind == "classification"
    classes_N = torch.cat(labels).to(session.device) if has_classes else None
    return Points(torch.cat(features), classes_N)
