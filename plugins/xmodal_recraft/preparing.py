"""What the stages that prepare for fine-tuning share.

They call the parts of the model themselves. Their data depend on nothing but seed, stage, epoch and
step, so of several processes each computes the same update.
"""

from __future__ import annotations

from torch import nn

from xmodal.errors import UsageError
from xmodal.interfaces import Session
from xmodal.optimize import OptimizingStage


class Prepare(OptimizingStage):
    """A stage that reads the source, is not scored, and says so where it would train nothing."""

    citation = (
        "Tran, Dao, Nguyen, Truong, Hoang: Rethinking Cross-Modal Fine-Tuning: Optimizing the "
        "Interaction between Feature Alignment and Target Fitting (RECRAFT), AISTATS 2026, "
        "arXiv 2601.18231"
    )
    needs_source = True
    evaluates = False

    def begin(self, session: Session) -> None:
        """Raises UsageError where the patterns of ``train`` fit no parameter."""
        if is_frozen(session.model):
            raise UsageError(
                f"a stage that prepares trains nothing: no parameter fits {list(self.train)}; with "
                "'source_head: target' the head of the source is called predictor.*"
            )


def is_frozen(module: nn.Module) -> bool:
    """Whether nothing of a module trains in the current stage."""
    return not any(parameter.requires_grad for parameter in module.parameters())
