"""Scores over a whole split. All are errors: lower is better.

Every score is computed from the whole split, never as a mean over batch scores. Dense labels that
are NaN are left out. An undefined score (a single class, no samples) is NaN.

Shapes: B samples, K outputs; dense predictions and labels are ``[B, K, *shape]``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from xmodal.interfaces import Context, Facts, Metric, Settings
from xmodal_basics.losses import filled, relative_l2

NUMBERS = ("regression", "dense")


class Error(Metric):
    """A metric for some kinds of labels."""

    kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.target = context.output or context.facts.task.target
        self.reset()

    @classmethod
    def problems(cls, config: Settings, facts: Facts) -> Iterable[str]:
        """Report labels of a kind that this metric cannot score."""
        kind = facts.task.target.kind
        if kind not in cls.kinds:
            able = " or ".join(cls.kinds)
            yield f"scores {able} labels; task '{facts.task.name}' has {kind} labels"

    def update(self, prediction: Tensor, y: Tensor) -> None:
        """Add a batch."""
        prediction, y = prediction.detach().cpu(), y.detach().cpu()
        self.add(prediction.double(), y.double() if y.is_floating_point() else y)

    @abstractmethod
    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Add a batch, already on the CPU and in double precision."""


class _Mean(Error):
    """A mean over samples or over numbers."""

    def reset(self) -> None:
        """Forget everything."""
        self.total, self.count = 0.0, 0

    @abstractmethod
    def values(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The values to average, 1-D."""

    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Add to the sum."""
        values = self.values(prediction, y)
        self.total += values.sum().item()
        self.count += len(values)

    def compute(self) -> float:
        """The mean."""
        return self.total / self.count if self.count else float("nan")


class ErrorRate(_Mean):
    """1 - top-1 accuracy."""

    kinds = ("classification",)

    def values(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Whether each sample is wrong."""
        return (prediction.argmax(1) != y).double()

    def smallest(self) -> float | None:
        """One wrong sample."""
        return 1 / self.count if self.count else None


class RelativeL2Error(_Mean):
    """The mean over samples of ||p - y|| / ||y||."""

    kinds = NUMBERS

    def values(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The relative error of each sample."""
        return relative_l2(prediction, y)


class NormalisedRMSE(RelativeL2Error):
    """The mean over samples of RMSE / RMS(y): the relative L2 error under PDEBench's name."""


class MeanAbsoluteError(_Mean):
    """The mean absolute error of all numbers."""

    kinds = NUMBERS

    def values(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The error of each known number."""
        y, known = filled(prediction, y)
        return (prediction - y).abs()[known]


class RootMeanSquaredError(_Mean):
    """The root of the mean squared error of all numbers."""

    kinds = NUMBERS

    def values(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The squared error of each known number."""
        y, known = filled(prediction, y)
        return (prediction - y).square()[known]

    def compute(self) -> float:
        """The root of the mean."""
        return super().compute() ** 0.5  # type: ignore[no-any-return]


class R2Error(Error):
    """1 - R^2: the residual over the total sum of squares, averaged over outputs."""

    kinds = NUMBERS

    def reset(self) -> None:
        """Forget everything."""
        self.origin_K: Tensor | None = None
        self.residual_K = self.first_K = self.second_K = self.count_K = torch.zeros(())

    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Add to the sums; a fixed origin avoids losing digits if the mean is large."""
        y, known = filled(prediction, y)
        error_KS, y_KS, known_KS = (
            (t.movedim(1, 0).flatten(1)) for t in (prediction - y, y, known)
        )
        count_K = known_KS.sum(1)
        if self.origin_K is None:
            y_known_KS = torch.where(known_KS, y_KS, 0.0)
            self.origin_K = y_known_KS.sum(1) / count_K.clamp_min(1)
        shifted_KS = torch.where(known_KS, y_KS - self.origin_K[:, None], 0.0)
        self.residual_K = self.residual_K + error_KS.square().sum(1)
        self.first_K = self.first_K + shifted_KS.sum(1)
        self.second_K = self.second_K + shifted_KS.square().sum(1)
        self.count_K = self.count_K + count_K

    def compute(self) -> float:
        """The mean over outputs whose labels vary."""
        total_K = self.second_K - self.first_K.square() / self.count_K
        return float((self.residual_K / total_K)[total_K > 0].mean())
