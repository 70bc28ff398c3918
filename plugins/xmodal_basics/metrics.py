"""Scores over a whole split. All are errors: lower is better.

Every score is computed from the whole split, never as a mean over batch scores. Dense labels that
are NaN are left out. An undefined score (a single class, no samples) is NaN. Numbers come in the
user's unit, whatever it is: before they are squared, they are divided by a power of two near the
largest of them, so that squares neither overflow nor vanish.

Shapes: B samples, K outputs; dense predictions and labels are ``[B, K, *shape]``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from xmodal.data import Moments
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
    """The mean over samples and outputs of ||p - y|| / ||y||, without labels that are all 0."""

    kinds = NUMBERS

    def values(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The relative error of each sample that has one."""
        y_BKS = y.unsqueeze(-1).flatten(2)
        unit = power_of_two(y_BKS.abs().nan_to_num(0.0).amax(2)).view(
            *y.shape[:2], *[1] * (y.ndim - 2)
        )
        ratio_B, has_B = relative_l2(prediction / unit, y / unit)
        return ratio_B[has_B]


class NormalisedRMSE(RelativeL2Error):
    """The mean over samples of RMSE / RMS(y): the relative L2 error under PDEBench's name."""


class MeanAbsoluteError(_Mean):
    """The mean absolute error of all numbers."""

    kinds = NUMBERS

    def values(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The error of each known number."""
        y, known = filled(prediction, y)
        return (prediction - y).abs()[known]


class RootMeanSquaredError(Error):
    """The root of the mean squared error of all numbers."""

    kinds = NUMBERS

    def reset(self) -> None:
        """Forget everything."""
        self.unit, self.total, self.count = torch.zeros((), dtype=torch.float64), 0.0, 0

    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Add the squares of the errors of known numbers."""
        y, known = filled(prediction, y)
        errors = (prediction - y)[known]
        if len(errors) == 0:
            return
        unit = power_of_two(torch.maximum(errors.abs().max(), self.unit))
        self.total *= float(self.unit / unit) ** 2
        self.total += float((errors / unit).square().sum())
        self.unit, self.count = unit, self.count + len(errors)

    def compute(self) -> float:
        """The root of the mean."""
        return float(self.unit) * (self.total / self.count) ** 0.5 if self.count else float("nan")


class R2Error(Error):
    """1 - R^2: the residual over the total sum of squares, averaged over outputs."""

    kinds = NUMBERS

    def reset(self) -> None:
        """Forget everything."""
        self.labels = Moments(self.target.size)
        self.unit_K = self.residual_K = torch.zeros(self.target.size, dtype=torch.float64)

    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Add to the sums of squares."""
        error_KS = (prediction - filled(prediction, y)[0]).movedim(1, 0).flatten(1)
        self.labels.add(y.numpy())
        unit_K = power_of_two(torch.maximum(error_KS.abs().amax(1), self.unit_K))
        self.residual_K = self.residual_K * (self.unit_K / unit_K) ** 2
        self.residual_K = self.residual_K + (error_KS / unit_K[:, None]).square().sum(1)
        self.unit_K = unit_K

    def compute(self) -> float:
        """The mean over outputs whose labels vary."""
        varying_K = ~self.labels.constant_C
        if not varying_K.any():
            return float("nan")
        share_K = self.unit_K.numpy()[varying_K] / self.labels.deviation_C[varying_K]
        mean_K = self.residual_K.numpy()[varying_K] / self.labels.count_C[varying_K]
        return float((mean_K * share_K**2).mean())


def power_of_two(size: Tensor) -> Tensor:
    """The next power of two above each number, and 1 for 0: to divide by it costs no digits."""
    power = torch.frexp(size)[1].clamp_max(1023)
    return torch.where(size > 0, torch.ldexp(torch.ones_like(size), power), 1.0)


# --- classes and 0/1 labels ---


class _Confusion(Error):
    """A score of the confusion matrix, rows the true classes."""

    kinds: ClassVar[tuple[str, ...]] = ("classification",)

    def reset(self) -> None:
        """Forget everything."""
        self.confusion_KK = torch.zeros(self.classes(), self.classes(), dtype=torch.int64)

    def classes(self) -> int:
        """The number of classes."""
        return self.target.size

    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Count a batch of logits ``[B, K]``."""
        self.tally(prediction.argmax(1), y)

    def tally(self, guess: Tensor, y: Tensor) -> None:
        """Count guessed against true classes."""
        size = self.classes()
        counts = torch.bincount(y.long() * size + guess.long(), minlength=size * size)
        self.confusion_KK += counts.view(size, size)


class F1Error(_Confusion):
    """1 - the mean F1 of the classes that occur among labels or predictions."""

    def compute(self) -> float:
        """F1 = 2 TP / (labelled + predicted)."""
        either_K = self.confusion_KK.sum(0) + self.confusion_KK.sum(1)
        f1_K = 2.0 * self.confusion_KK.diagonal().double() / either_K
        return 1.0 - float(f1_K[either_K > 0].mean())

    def smallest(self) -> float | None:
        """One sample of the largest class taken for one of the next: F1 = 1 - 1/(2n -+ 1) each."""
        count_K = self.confusion_KK.sum(1)
        largest: list[int] = [n for n in sorted(count_K.tolist(), reverse=True) if n]
        if len(largest) < 2:
            return None
        lost = 1 / (2 * largest[0] - 1) + 1 / (2 * largest[1] + 1)
        return lost / len(largest)


class BalancedError(_Confusion):
    """1 - the mean recall of the classes that occur; of 0/1 labels, at logit > 0.

    On binary maps this is what the published Cosmic code reports as "1 - AUROC": it thresholds the
    logits before it calls roc_auc. It also counts ignored pixels as true negatives, which is the
    setting ``ignored_as_negative``.
    """

    class Config(Settings):
        ignored_as_negative: bool = Field(
            False, description="Count ignored (NaN) pixels as true negatives, as published."
        )

    kinds = ("classification", "multi-label", "dense")

    def classes(self) -> int:
        """Two for 0/1 labels."""
        return self.target.size if self.target.kind == "classification" else 2

    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Count a batch."""
        if self.target.kind == "classification":
            super().add(prediction, y)
            return
        y, known = filled(prediction, y)
        self.tally((prediction > 0)[known], y[known])
        if self.config.ignored_as_negative:
            self.confusion_KK[0, 0] += (~known).sum()

    def compute(self) -> float:
        """Recalls of the rows that are not empty."""
        count_K = self.confusion_KK.sum(1)
        recall_K = self.confusion_KK.diagonal().double() / count_K
        return 1.0 - float(recall_K[count_K > 0].mean())

    def smallest(self) -> float | None:
        """One wrong sample of the largest class."""
        count_K = self.confusion_KK.sum(1)
        occurring = int((count_K > 0).sum())
        return 1 / (occurring * int(count_K.max())) if occurring else None


class _Ranking(Error):
    """A score of the order of all predictions, which must be kept."""

    kinds: ClassVar[tuple[str, ...]] = ("classification", "multi-label")

    def reset(self) -> None:
        """Forget everything."""
        self.kept: list[tuple[Tensor, Tensor]] = []

    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Keep a batch."""
        self.kept.append((prediction, y))

    def compute(self) -> float:
        """1 - the score."""
        if not self.kept:
            return float("nan")
        prediction_BK, y = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        if self.target.kind == "classification":
            prediction_BK = prediction_BK.softmax(1)
        if prediction_BK.isnan().any():
            return float("nan")  # they have no order
        return 1.0 - self.score(prediction_BK.numpy(), y.numpy())

    def splits(self) -> list[tuple[int, int]]:
        """Positives and negatives of each label, or of each class that occurs."""
        if not self.kept:
            return []
        y = torch.cat([y for _, y in self.kept])
        if self.target.kind == "classification":
            counts = np.unique(y.numpy(), return_counts=True)[1]
            return [(int(n), len(y) - int(n)) for n in counts]
        return [(int((y_B == 1).sum()), int((y_B == 0).sum())) for y_B in y.T]

    @abstractmethod
    def score(self, p_BK: NDArray[np.float64], y: NDArray[np.generic]) -> float:
        """The score of probabilities (classification) or logits (multi-label)."""


class AUROCError(_Ranking):
    """1 - the area under the ROC curve.

    Two classes: of the second one's probability; more: the mean over pairs of the classes that
    occur (one against one, Hand & Till 2001); labels: the mean over those that are both 0 and 1.
    """

    def score(self, p_BK: NDArray[np.float64], y: NDArray[np.generic]) -> float:
        """The area."""
        if self.target.kind == "multi-label":
            return _mean_over_columns(area, p_BK, y, both=True)
        classes = np.unique(y)
        if len(classes) < 2:
            return float("nan")
        if p_BK.shape[1] == 2:
            return area(y == 1, p_BK[:, 1])
        areas = []
        for one, other in combinations(classes, 2):
            pair_B = (y == one) | (y == other)
            areas += [area(y[pair_B] == c, p_BK[pair_B, int(c)]) for c in (one, other)]
        return float(np.mean(areas))

    def smallest(self) -> float | None:
        """One pair of samples in the wrong order, where most pairs are."""
        splits = self.splits()
        if self.target.kind == "classification":
            counts = sorted((positive for positive, _ in splits), reverse=True)
            # Of more than two classes, a pair of classes is scored in both directions.
            scores = len(counts) * (len(counts) - 1) if len(counts) > 2 else 1
            return 1 / (counts[0] * counts[1] * scores) if len(counts) > 1 else None
        products = [p * n for p, n in splits if p and n]
        return 1 / (max(products) * len(products)) if products else None


class AveragePrecisionError(_Ranking):
    """1 - the mean average precision of the classes that occur, each against the rest."""

    def score(self, p_BK: NDArray[np.float64], y: NDArray[np.generic]) -> float:
        """The mean average precision."""
        if not any(positive and negative for positive, negative in self.splits()):
            return float("nan")  # 1 whatever is predicted
        if self.target.kind == "classification":
            y = np.eye(p_BK.shape[1])[y.astype(int)]
        return _mean_over_columns(average_precision, p_BK, y, both=False)

    def smallest(self) -> float | None:
        """The last positive one rank too late: its precision P / P becomes P / (P + 1)."""
        positives = [positive for positive, negative in self.splits() if positive and negative]
        most = max(positives, default=0)
        return 1 / (most * (most + 1) * len(positives)) if most else None


# Not scikit-learn's: importing it costs a second, and each call a millisecond.


def area(positive_B: NDArray[np.generic], score_B: NDArray[np.float64]) -> float:
    """The area under the ROC curve: how often a positive sample scores above a negative one.

    A tie counts half. Both kinds of samples must occur.
    """
    _, place_B, count = np.unique(score_B, return_inverse=True, return_counts=True)
    rank_B = (np.cumsum(count) - (count - 1) / 2)[place_B]
    positive_B = positive_B.astype(bool)
    positives = int(positive_B.sum())
    above = float(rank_B[positive_B].sum()) - positives * (positives + 1) / 2
    return above / (positives * (len(rank_B) - positives))


def average_precision(positive_B: NDArray[np.generic], score_B: NDArray[np.float64]) -> float:
    """The mean over positive samples of the precision at their score. Some must be positive."""
    _, place_B, count = np.unique(-score_B, return_inverse=True, return_counts=True)
    hits = np.bincount(place_B, weights=positive_B.astype(np.float64))
    return float((hits / hits.sum()) @ (np.cumsum(hits) / np.cumsum(count)))


def _mean_over_columns(
    score: Callable[[NDArray[np.generic], NDArray[np.float64]], float],
    p_BK: NDArray[np.float64],
    y_BK: NDArray[np.generic],
    both: bool,
) -> float:
    """The mean score of the columns with a positive label (``both``: and a negative one)."""
    scores = []
    for p_B, y_B in zip(p_BK.T, y_BK.T, strict=True):
        known_B = ~np.isnan(y_B)
        p_B, y_B = p_B[known_B], y_B[known_B]
        if y_B.any() and not (both and y_B.all()):
            scores.append(score(y_B, p_B))
    return float(np.mean(scores)) if scores else float("nan")
