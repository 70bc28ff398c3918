"""The fine-tuning stage: shuffled epochs, micro-batches, warm-up and decay, gradient clipping.

The released ORCA and PaRe code sums the gradients of micro-batches, but steps its schedule and
clips after every micro-batch. ``accumulate: sum`` reproduces the sum; here, schedule and clipping
are applied once per optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.interfaces import Session
from xmodal.optimize import (
    BatchSize,
    OptimizingStage,
    Schedule,
    StageSettings,
    make_optimizer,
    make_schedule,
)


class Finetune(OptimizingStage):
    """Trains the parameters that ``train`` selects, on the loss terms of the mixer's views."""

    divides = True

    class Config(StageSettings):
        """Settings of the fine-tuning stage."""

        epochs: int = Field(10, ge=1, description="Passes over the training split.")
        stretch: float = Field(
            1.0,
            gt=0,
            description="Multiplies epochs, warm-up and decay, whichever layer sets them. With 2, "
            "plain fine-tuning makes as many encoder passes as a method with two per sample.",
        )
        train: tuple[str, ...] = Field(
            ("*",),
            description="Patterns over parameter names; 'norms' selects every LayerNorm, "
            "'!pattern' leaves out what fits it.",
        )
        batch: BatchSize = Field(BatchSize(), description="Samples per step, and how many at once.")
        accumulate: Literal["mean", "sum"] = Field(
            "mean", description="How micro-batches combine; the released code sums."
        )
        lr_factors: dict[str, float] = Field(
            {}, description="Learning-rate factors by parameter pattern, such as backbone.*: 0.1."
        )

    @classmethod
    def planned_epochs(cls, config: Any) -> int:
        """Passes over the training split, times ``stretch``."""
        return max(1, round(float(config.epochs * config.stretch)))

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per epoch, including the last, smaller batch."""
        return self.at_most(math.ceil(loader.count(session.data.train) / self.config.batch.size))

    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer; parameters with their own learning-rate factor form groups."""
        return make_optimizer(self.config.optimizer, named, self.config.lr_factors)

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warm-up and decay, as a factor on each group's learning rate."""
        settings: Schedule = self.config.schedule
        stretched = settings.model_copy(
            update={
                "warmup_epochs": settings.warmup_epochs * self.config.stretch,
                "decay_epochs": settings.decay_epochs
                and settings.decay_epochs * self.config.stretch,
            }
        )
        return make_schedule(stretched, optimizer, self.epochs, steps_per_epoch)

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterator[Batch]]:
        """This process's micro-batches of every step from ``progress.step`` on."""
        return session.batches(progress, self.config.batch.size, self.config.batch.micro)

    def loss(
        self, session: Session, micro: Batch, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The model's loss on one micro-batch, times the micro-batch's share of the step."""
        with session.autocast():
            loss, log = session.model(micro, progress)
        summed = self.config.accumulate == "sum"
        share = session.world * micro.part if summed else micro.share
        return loss if share == 1 else loss * share, log
