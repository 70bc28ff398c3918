"""The fine-tuning stage: shuffled epochs, micro-batches, warm-up and decay, gradient clipping.

The released ORCA and PaRe code sums the gradients of micro-batches, but steps its schedule and
clips after every micro-batch. ``accumulate: sum`` reproduces the sum; here, schedule and clipping
are applied once per optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.interfaces import Session
from xmodal.optimize import (
    BatchSize,
    OptimizingStage,
    Schedule,
    StageSettings,
    layer_depths,
    make_optimizer,
    make_schedule,
)

STEPS, LEAST_PASSES, MOST_PASSES = 1000, 3, 30
"""What ``steps: auto`` wants: so many steps, but not fewer or more passes than these."""


class Finetune(OptimizingStage):
    """Trains the parameters that ``train`` selects, on the loss terms of the mixer's views."""

    divides = True

    class Config(StageSettings):
        """Settings of the fine-tuning stage."""

        epochs: int = Field(10, ge=1, description="Passes over the training split.")
        steps: PositiveInt | Literal["auto"] | None = Field(
            None,
            description="Optimizer steps in all, instead of 'epochs': then a small data set is "
            "passed more often than a large one. 'auto': 1000, but 3 to 30 passes.",
        )
        stretch: float = Field(
            1.0,
            gt=0,
            description="Multiplies epochs or steps, warm-up and decay, whichever layer sets them. "
            "With 2, "
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
        lr_decay: float = Field(
            1.0,
            gt=0,
            le=1,
            description="Factor on the learning rate from each layer of the backbone to the next, "
            "besides 'lr_factors'.",
        )
        lr_decay_from: Literal["output", "input"] = Field(
            "output",
            description="Where the full rate is. output: at the head; lower layers learn more "
            "slowly. input: at the embedder and the first layer; higher ones learn more slowly, "
            "but for the head, which is new.",
        )

        ema: float | None = Field(
            None,
            gt=0,
            lt=1,
            description="Decay of an exponential moving average of the weights, such as 0.99. "
            "Epochs are scored by the average, which is also what is saved.",
        )

    _samples: int | None = None
    _depths: Mapping[str, int] | None = None
    _layers = 0

    @classmethod
    def planned_epochs(cls, config: Any) -> int:
        """Passes over the training split, times ``stretch``."""
        return max(1, round(float(config.epochs * config.stretch)))

    @classmethod
    def epochs_for(cls, config: Any, samples: int) -> int:
        """As many passes as ``steps`` need; the last one counts whole."""
        wanted = _steps(config, samples)
        if wanted is None:
            return cls.planned_epochs(config)
        return max(1, math.ceil(wanted / _steps_in_pass(config, samples)))

    @property
    def epochs(self) -> int:
        """How often the engine calls ``steps``."""
        return self.epochs_for(self.config, self._samples or 0)

    def meet(self, session: Session) -> None:
        """Count the samples, and find the layers of the parameters."""
        self._samples = loader.count(session.data.train)
        if self.config.lr_decay < 1:
            self._depths, self._layers = layer_depths(session.model)

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per epoch, including the last, smaller batch.

        With ``steps`` in all, the same in every epoch: their sum is off by less than an epoch has.
        """
        samples = loader.count(session.data.train)
        wanted, most = _steps(self.config, samples), _steps_in_pass(self.config, samples)
        if wanted is None:
            return most
        return min(most, math.ceil(wanted / self.epochs_for(self.config, samples)))

    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer; parameters with their own learning-rate factor form groups."""
        factors = self.config.lr_factors
        if self._depths is not None:
            factors = {name: self._factor(name, self._depths[name]) for name, _ in named}
        return make_optimizer(self.config.optimizer, named, factors)

    def _factor(self, name: str, depth: int) -> float:
        """The factor of a parameter, by its depth and by the patterns that it fits."""
        fitting = [f for p, f in self.config.lr_factors.items() if fnmatchcase(name, p)]
        own: float = fitting[-1] if fitting else 1.0
        last = self._layers + 1
        if self.config.lr_decay_from == "output":
            steps = last - depth
        else:
            steps = 0 if depth == last else max(0, depth - 1)
        return own * float(self.config.lr_decay**steps)

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

    def averaging(self) -> float | None:
        """The decay of the average of the weights."""
        decay: float | None = self.config.ema
        return decay

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


def _steps_in_pass(config: Any, samples: int) -> int:
    """Steps of a whole epoch: a pass over so many samples, or ``max_steps`` of it."""
    whole = max(1, math.ceil(samples / int(config.batch.size)))
    return min(whole, int(config.max_steps or whole))


def _steps(config: Any, samples: int) -> int | None:
    """Steps in all; None where epochs are counted."""
    if config.steps is None:
        return None
    wanted = config.steps
    if wanted == "auto":
        whole = _steps_in_pass(config, samples)
        wanted = min(max(STEPS, LEAST_PASSES * whole), MOST_PASSES * whole)
    return max(1, round(float(wanted * config.stretch)))
