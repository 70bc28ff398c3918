"""The stage ``bridge``: the body learns random labels of the target's samples, before fine-tuning.

Random labels say nothing about the task. What they teach a body is the target's kind of input, so
the stage is a control for what a source or real labels teach beside that.

Shapes: B samples, F width of the features, K random classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from xmodal import randomness
from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.interfaces import Facts, Session
from xmodal.optimize import BatchSize, OptimizingStage, StageSettings


class Bridge(OptimizingStage):
    """Cross-entropy of labels that were drawn once, by a linear head on the mean feature.

    Labels are independent of each other and of the sample, uniform over the classes, and the same
    in every epoch. The head is thrown away.
    """

    citation = (
        "Luo, Shen: Language-Pretraining-Induced Bias: A Strong Foundation for General Vision "
        "Tasks, TMLR 2026, arXiv 2604.01833"
    )
    evaluates = False

    class Config(StageSettings):
        """Settings of ``bridge``."""

        epochs: int = Field(10, ge=1, description="Passes over the training split.")
        classes: int = Field(10, ge=2, description="K, the number of random classes.")
        train: tuple[str, ...] = Field(
            ("embedder.*", "backbone.*"),
            description="Patterns over parameter names; those of the first layers for a partial "
            "bridge.",
        )
        batch: BatchSize = Field(BatchSize(), description="Samples per step, and how many at once.")

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """There must be a body."""
        if facts.backbone.feature_width == 0:
            yield f"backbone '{facts.backbone.name}' has nothing to train"

    def helper(self, session: Session) -> nn.Module:
        """The head."""
        self._head = nn.Linear(session.facts.backbone.feature_width, self.config.classes)
        return self._head

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per epoch, including the last, smaller batch."""
        return self.at_most(math.ceil(loader.count(session.data.train) / self.config.batch.size))

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterator[Batch]]:
        """Micro-batches of every step from ``progress.step`` on, with their random labels."""
        train, batch = session.data.train, self.config.batch
        count = loader.count(train)
        label_N = random_labels(count, self.config.classes, session.seed).to(session.device)
        order = randomness.permutation(
            count, session.seed, "bridge", progress.stage, progress.epoch
        )
        steps = torch.split(order, batch.size)[progress.step : progress.steps]
        parts = [torch.split(step, batch.micro or batch.size) for step in steps]
        stream = session.fetch(train, [part for pieces in parts for part in pieces])
        for step, pieces in zip(steps, parts, strict=True):
            # Bound now: the generator runs while the loop stands here.
            yield (
                Batch(next(stream)[0], label_N[piece.to(label_N.device)], share=len(piece) / size)
                for piece, size in ((piece, len(step)) for piece in pieces)
            )

    def loss(
        self, session: Session, micro: Batch, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The cross-entropy of the random labels, times the micro-batch's share of the step."""
        model = session.model
        with session.autocast():
            features = model.backbone(model.embedder(micro.x))
        logits_BK = self._head(features.x_BND.float().mean(1))
        loss = functional.cross_entropy(logits_BK, micro.y)
        return loss * micro.share, {"random labels": loss.detach()}


def random_labels(count: int, classes: int, seed: int) -> Tensor:
    """A label for every training sample, a function of the seed and its place alone."""
    generator = randomness.generator(seed, "random labels")
    return torch.randint(classes, (count,), generator=generator)
