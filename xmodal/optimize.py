"""Settings that stages share: batch size, optimizer and learning-rate schedule.

If the ``Config`` of a stage has the fields ``batch``, ``optimizer`` and ``schedule``, they take the
settings under ``training:`` in a recipe. ``StageSettings`` has all of them except ``batch``, and
``OptimizingStage`` applies them. This module builds optimizers; the engine takes the steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from xmodal.interfaces import Model, Settings, Stage


class BatchSize(Settings):
    """Samples per optimizer step, and how many of them go through the model at once."""

    size: int = Field(32, ge=1, description="Samples per optimizer step.")
    micro: int | None = Field(None, ge=1, description="Samples at once; default: all of them.")

    @model_validator(mode="after")
    def _micro_fits(self) -> BatchSize:
        if self.micro is not None and self.micro > self.size:
            raise ValueError(f"micro ({self.micro}) is larger than size ({self.size})")
        return self


class _Settings(Settings):
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0)


class Adam(_Settings):
    """Adam, with weight decay added to the gradient."""

    use: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.98)


class AdamW(_Settings):
    """Adam with decoupled weight decay."""

    use: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)


class SGD(_Settings):
    """Stochastic gradient descent with momentum."""

    use: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)


OptimizerSettings = Annotated[Adam | AdamW | SGD, Field(discriminator="use")]
"""adam, adamw or sgd, with its own settings."""


class Schedule(Settings):
    """Linear warm-up from 0, then decay, both counted in optimizer steps."""

    warmup_epochs: float = Field(0.0, ge=0)
    decay: Literal["none", "linear", "cosine"] = "linear"
    decay_epochs: float | None = Field(
        None, gt=0, description="Where the decay reaches 0; default: the end of the stage."
    )


def layer_depths(model: Model) -> tuple[dict[str, int], int]:
    """How deep every parameter lies, by name, and the number L of the backbone's layers.

    0: the embedder, and what the backbone has before its first layer. l = 1 .. L: its l-th layer
    (``Backbone.recomputable``), and what follows it. L + 1: heads and everything else.
    """
    layers = list(model.backbone.recomputable())
    own = {id(p): n for n, layer in enumerate(layers, 1) for p in layer.parameters()}
    depths, deepest = {}, 0
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            deepest = max(deepest, own.get(id(parameter), 0))
            depths[name] = own.get(id(parameter), deepest)
        else:
            depths[name] = 0 if name.startswith("embedder.") else len(layers) + 1
    return depths, len(layers)


def make_optimizer(
    settings: Adam | AdamW | SGD,
    named: Sequence[tuple[str, nn.Parameter]],
    factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer; parameters whose name matches a pattern in ``factors`` form groups."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in named:
        fitting = [f for p, f in (factors or {}).items() if fnmatchcase(name, p)]
        groups.setdefault(fitting[-1] if fitting else 1.0, []).append(parameter)
    parameters = [
        {"params": members, "lr": settings.lr * factor} for factor, members in groups.items()
    ]
    # One pass over memory instead of a dozen: with small batches, the update takes a large share.
    common: dict[str, Any] = {
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "fused": True,
    }
    if isinstance(settings, SGD):
        return torch.optim.SGD(parameters, momentum=settings.momentum, **common)
    kind = torch.optim.AdamW if isinstance(settings, AdamW) else torch.optim.Adam
    return kind(parameters, betas=settings.betas, **common)


def make_schedule(
    settings: Schedule, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm-up and decay as a factor of each group's learning rate, stepped every step."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    end = round((settings.decay_epochs or epochs) * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if settings.decay == "none" or end <= warmup:
            return 1.0
        share = min(1.0, (step - warmup) / (end - warmup))
        if settings.decay == "linear":
            return 1.0 - share
        return 0.5 * (1 + math.cos(math.pi * share))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class StageSettings(Settings):
    """How a stage takes its steps, with the same names as under ``training:``."""

    optimizer: OptimizerSettings = Field(
        AdamW(), description="adam, adamw or sgd, with its own settings."
    )
    schedule: Schedule = Field(Schedule(), description="Warm-up and decay of the learning rate.")
    clip: float | None = Field(None, gt=0, description="Gradient norm to clip to in every step.")
    max_steps: int | None = Field(None, ge=1, description="Largest number of steps per epoch.")


class OptimizingStage(Stage):
    """A stage that takes steps according to its ``StageSettings``."""

    Config = StageSettings

    @classmethod
    def learning_rate(cls, config: Any) -> float:
        """The peak learning rate."""
        return float(config.optimizer.lr)

    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters."""
        return make_optimizer(self.config.optimizer, named)

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warm-up and decay over all epochs of the stage."""
        return make_schedule(self.config.schedule, optimizer, self.epochs, steps_per_epoch)

    def clip(self) -> float | None:
        """The gradient norm to clip to."""
        limit: float | None = self.config.clip
        return limit

    def at_most(self, steps: int) -> int:
        """The smaller of ``steps`` and ``max_steps``."""
        return min(steps, self.config.max_steps or steps)
