"""What the stages that prepare for fine-tuning share: their optimizer settings.

They call the parts of the model themselves. Their data depend on nothing but seed, stage, epoch and
step, so of several processes each computes the same update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import nn

from xmodal.errors import UsageError
from xmodal.interfaces import Settings, Stage
from xmodal.optimize import AdamW, OptimizerSettings, Schedule, make_optimizer, make_schedule

if TYPE_CHECKING:
    from xmodal.engine.session import Session


class Preparing(Settings):
    """Settings of every stage here, under the names they have in fine-tuning."""

    optimizer: OptimizerSettings = Field(
        AdamW(), description="adam, adamw or sgd, with its own settings."
    )
    schedule: Schedule = Field(Schedule(), description="Warm-up and decay of the rate.")
    clip: float | None = Field(None, gt=0, description="Gradient norm, once an optimizer step.")
    max_steps: int | None = Field(None, ge=1, description="Steps an epoch, at most.")


class Prepare(Stage):
    """A stage that reads the source, is not scored, and says so where it would train nothing."""

    Config = Preparing
    needs_source = True
    evaluates = False

    def begin(self, session: Session) -> None:
        """Raises UsageError where the patterns of ``train`` fit no parameter."""
        if is_frozen(session.model):
            raise UsageError(
                f"a stage that prepares trains nothing: no parameter fits {list(self.train)}; with "
                "'source_head: target' the head of the source is called predictor.*"
            )

    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer."""
        return make_optimizer(self.config.optimizer, named)

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warm-up and decay over the stage."""
        return make_schedule(self.config.schedule, optimizer, self.epochs, steps_per_epoch)

    def clip(self) -> float | None:
        """The gradient norm to clip to."""
        limit: float | None = self.config.clip
        return limit

    def _at_most(self, steps: int) -> int:
        return min(steps, self.config.max_steps or steps)


def is_frozen(module: nn.Module) -> bool:
    """Whether nothing of a module trains in the current stage."""
    return not any(parameter.requires_grad for parameter in module.parameters())
