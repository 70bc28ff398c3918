"""A loss and a metric for tasks that a test only reads: ``Config(**PARTS)``."""

from __future__ import annotations

from typing import Any

from xmodal.interfaces import Loss, Metric
from xmodal.settings import Use


class AnyLoss(Loss):
    """Stands for the loss of a task that is only read."""

    def forward(self, prediction: Any, y: Any) -> Any:
        """Is not called."""
        raise NotImplementedError


class AnyMetric(Metric):
    """Stands for the metric of a task that is only read."""

    def reset(self) -> None:
        """Nothing is kept."""

    def update(self, prediction: Any, y: Any) -> None:
        """Is not called."""

    def compute(self) -> float:
        """Is not called."""
        return 0.0


PARTS: dict[str, Any] = {
    "loss": Use("any", AnyLoss, AnyLoss.Config()),
    "metric": Use("any", AnyMetric, AnyMetric.Config()),
}
