"""Shared code of the stages that prepare a model for fine-tuning.

These stages call the parts of the model themselves. Their data depend only on seed, stage, epoch
and step, so every process computes the same update.
"""

from __future__ import annotations

from torch import nn

from xmodal.errors import UsageError
from xmodal.interfaces import Session
from xmodal.optimize import OptimizingStage


class Prepare(OptimizingStage):
    """A stage that reads the source, is not scored, and fails if it would train nothing."""

    citation = (
        "Tran, Dao, Nguyen, Truong, Hoang: Rethinking Cross-Modal Fine-Tuning: Optimizing the "
        "Interaction between Feature Alignment and Target Fitting (RECRAFT), AISTATS 2026, "
        "arXiv 2601.18231"
    )
    needs_source = True
    evaluates = False

    def begin(self, session: Session) -> None:
        """Raise UsageError if the patterns of ``train`` match no parameter."""
        if is_frozen(session.model):
            raise UsageError(
                f"this stage would train nothing: no parameter matches {list(self.train)}; with "
                "'source_head: target' the source head is called predictor.*"
            )


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter of the module trains in the current stage."""
    return not any(parameter.requires_grad for parameter in module.parameters())
