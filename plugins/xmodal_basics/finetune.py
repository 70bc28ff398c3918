"""The fine-tuning stage: shuffled epochs, micro-batches, warm-up and decay, one clip an optimizer
step.

The released ORCA and PaRe code steps its schedule every micro-batch, sums the gradients of
micro-batches and clips partial sums; ``accumulate: sum`` reproduces the sum, the rest is done once
an optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from xmodal.batch import Progress
from xmodal.interfaces import Settings, Stage

if TYPE_CHECKING:
    from xmodal.engine.session import Micro, Session


class Batch(Settings):
    """Samples an optimizer step, and how many of them go through the model at once."""

    size: int = Field(32, ge=1, description="Samples an optimizer step.")
    micro: int | None = Field(None, ge=1, description="Samples at once (default: all of them).")

    @model_validator(mode="after")
    def _micro_fits(self) -> Batch:
        if self.micro is not None and self.micro > self.size:
            raise ValueError(f"micro ({self.micro}) is larger than size ({self.size})")
        return self


class _Optimizer(Settings):
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0)


class Adam(_Optimizer):
    """Adam, weight decay added to the gradient."""

    use: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.98)


class AdamW(_Optimizer):
    """Adam with decoupled weight decay."""

    use: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum."""

    use: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)


class Schedule(Settings):
    """Linear warm-up from 0, then decay, both counted in optimizer steps."""

    warmup_epochs: float = Field(0.0, ge=0)
    decay: Literal["none", "linear", "cosine"] = "linear"
    decay_epochs: float | None = Field(
        None, gt=0, description="Where the decay reaches 0 (default: the end of the stage)."
    )


class Finetune(Stage):
    """Trains whatever ``train`` selects on the terms of the mixer's views."""

    class Config(Settings):
        """Settings of the fine-tuning stage."""

        epochs: int = Field(10, ge=1, description="Passes over the training split.")
        train: tuple[str, ...] = Field(
            ("*",), description="Patterns over parameter names; 'norms' means every LayerNorm."
        )
        batch: Batch = Field(Batch(), description="Samples a step, and how many at once.")
        optimizer: Annotated[Adam | AdamW | SGD, Field(discriminator="use")] = Field(
            AdamW(), description="adam, adamw or sgd, with its own settings."
        )
        schedule: Schedule = Field(Schedule(), description="Warm-up and decay of the rate.")
        clip: float | None = Field(None, gt=0, description="Gradient norm, once an optimizer step.")
        accumulate: Literal["mean", "sum"] = Field(
            "mean", description="How micro-batches combine; the released code sums."
        )
        lr_factors: dict[str, float] = Field(
            {}, description="Learning-rate factors by parameter pattern, such as backbone.*: 0.1."
        )
        max_steps: int | None = Field(None, ge=1, description="Steps an epoch, at most.")

    def _size(self) -> tuple[int, int]:
        batch = self.config.batch
        return batch.size, batch.micro or batch.size

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps an epoch; the last, smaller batch counts."""
        steps: int = math.ceil(session.train_size / self.config.batch.size)
        return min(steps, self.config.max_steps or steps)

    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer; parameters with a factor of their own form their own groups."""
        settings = self.config.optimizer
        groups: dict[float, list[nn.Parameter]] = {1.0: []}
        for name, parameter in named:
            factors = [f for p, f in self.config.lr_factors.items() if fnmatchcase(name, p)]
            groups.setdefault(factors[-1] if factors else 1.0, []).append(parameter)
        parameters = [
            {"params": members, "lr": settings.lr * factor} for factor, members in groups.items()
        ]
        # One pass over memory instead of a dozen: at small batches the update is a large share.
        common: dict[str, Any] = {
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
            "fused": True,
        }
        if isinstance(settings, SGD):
            return torch.optim.SGD(parameters, momentum=settings.momentum, **common)
        kind = torch.optim.AdamW if isinstance(settings, AdamW) else torch.optim.Adam
        return kind(parameters, betas=settings.betas, **common)

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warm-up and decay as a factor of each group's learning rate."""
        config: Schedule = self.config.schedule
        warmup = round(config.warmup_epochs * steps_per_epoch)
        end = round((config.decay_epochs or self.config.epochs) * steps_per_epoch)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if config.decay == "none" or end <= warmup:
                return 1.0
            share = min(1.0, (step - warmup) / (end - warmup))
            if config.decay == "linear":
                return 1.0 - share
            return 0.5 * (1 + math.cos(math.pi * share))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def clip(self) -> float | None:
        """The gradient norm to clip to."""
        limit: float | None = self.config.clip
        return limit

    def steps(
        self, session: Session, progress: Progress
    ) -> Iterator[Iterator[tuple[Micro, float]]]:
        """Micro-batches of every step from ``progress.step`` on, each with its share."""
        size, micro = self._size()
        steps = torch.split(session.order(progress), size)[progress.step : progress.steps]
        parts = [torch.split(step, micro) for step in steps]
        drawn = progress.epoch * session.train_size + progress.step * size
        stream = session.micro_batches([p for step in parts for p in step], drawn)
        for step, pieces in zip(steps, parts, strict=True):
            yield self._step(stream, [len(piece) / len(step) for piece in pieces])

    def _step(self, stream: Iterator[Micro], shares: list[float]) -> Iterator[tuple[Micro, float]]:
        for share in shares:
            yield next(stream), 1.0 if self.config.accumulate == "sum" else share

    def loss(
        self, session: Session, micro: Any, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The model's loss on one micro-batch times its share of the step."""
        (x, y, source), share = micro
        loss, log = session.forward(x, y, source, progress)
        return loss * share, log
