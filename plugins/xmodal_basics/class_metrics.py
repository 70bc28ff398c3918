"""Scores for classes and 0/1 labels. All are errors: lower is better.

``smallest`` is the smallest error above 0 that a score can show: on a small test split, an error of
0 does not mean perfection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from xmodal.interfaces import Settings
from xmodal_basics.losses import filled
from xmodal_basics.metrics import Error


class _Confusion(Error):
    """A score computed from the confusion matrix, whose rows are the true classes."""

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
        f1_K = 2.0 * self.confusion_KK.diagonal() / either_K
        return 1.0 - float(f1_K[either_K > 0].mean())

    def smallest(self) -> float | None:
        """A sample of the largest class predicted as the next class: F1 = 1 - 1/(2n -+ 1) each."""
        count_K = self.confusion_KK.sum(1)
        largest: list[int] = [n for n in sorted(count_K.tolist(), reverse=True) if n]
        if len(largest) < 2:
            return None
        lost = 1 / (2 * largest[0] - 1) + 1 / (2 * largest[1] + 1)
        return lost / len(largest)


class BalancedError(_Confusion):
    """1 - the mean recall of the classes that occur; 0/1 labels are predicted by logit > 0.

    On binary maps, the published Cosmic code reports this score as "1 - AUROC", because it
    thresholds the logits before it calls roc_auc. That code also counts ignored pixels as true
    negatives, as ``ignored_as_negative`` does here.
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
        """1 - the mean recall over the classes that have samples."""
        count_K = self.confusion_KK.sum(1)
        recall_K = self.confusion_KK.diagonal() / count_K
        return 1.0 - float(recall_K[count_K > 0].mean())

    def smallest(self) -> float | None:
        """One wrong sample of the largest class."""
        count_K = self.confusion_KK.sum(1)
        occurring = int((count_K > 0).sum())
        return 1 / (occurring * int(count_K.max())) if occurring else None


class _Ranking(Error):
    """A score of the ranking of all predictions, all of which must be kept."""

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
        return 1.0 - self.score(prediction_BK.numpy(), y.numpy())

    def splits(self) -> list[tuple[int, int]]:
        """How many positives and negatives each label, or each class that occurs, has."""
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

    For two classes, it ranks by the probability of the second. For more, it is the mean over pairs
    of the classes that occur (one against one, Hand & Till 2001). For 0/1 labels, it is the mean
    over the labels that take both values.
    """

    def score(self, p_BK: NDArray[np.float64], y: NDArray[np.generic]) -> float:
        """The area, by scikit-learn."""
        from sklearn.metrics import roc_auc_score

        if self.target.kind == "multi-label":
            return _mean_over_columns(roc_auc_score, p_BK, y, both=True)
        if len(np.unique(y)) < 2:
            return float("nan")
        if p_BK.shape[1] == 2:
            return float(roc_auc_score(y, p_BK[:, 1]))
        labels = np.arange(p_BK.shape[1])
        return float(roc_auc_score(y, p_BK, multi_class="ovo", labels=labels))

    def smallest(self) -> float | None:
        """One pair of samples in the wrong order, in the label or class pair with most pairs."""
        splits = self.splits()
        if self.target.kind == "classification":
            counts = sorted((positive for positive, _ in splits), reverse=True)
            # With more than two classes, each pair of classes is scored in both directions.
            scores = len(counts) * (len(counts) - 1) if len(counts) > 2 else 1
            return 1 / (counts[0] * counts[1] * scores) if len(counts) > 1 else None
        products = [p * n for p, n in splits if p and n]
        return 1 / (max(products) * len(products)) if products else None


class AveragePrecisionError(_Ranking):
    """1 - the mean average precision of the classes that occur, each against the rest."""

    def score(self, p_BK: NDArray[np.float64], y: NDArray[np.generic]) -> float:
        """The mean average precision, by scikit-learn."""
        from sklearn.metrics import average_precision_score

        if self.target.kind == "classification":
            y = np.eye(p_BK.shape[1])[y.astype(int)]
        return _mean_over_columns(average_precision_score, p_BK, y, both=False)

    def smallest(self) -> float | None:
        """The last positive is one rank too low: its precision P / P becomes P / (P + 1)."""
        positives = [positive for positive, negative in self.splits() if positive and negative]
        most = max(positives, default=0)
        return 1 / (most * (most + 1) * len(positives)) if most else None


def _mean_over_columns(
    score: Callable[..., float], p_BK: NDArray[np.float64], y_BK: NDArray[np.generic], both: bool
) -> float:
    """The mean score over columns with a positive label (``both``: and also a negative label)."""
    scores = []
    for p_B, y_B in zip(p_BK.T, y_BK.T, strict=True):
        known_B = ~np.isnan(y_B)
        p_B, y_B = p_B[known_B], y_B[known_B]
        if y_B.any() and not (both and y_B.all()):
            scores.append(score(y_B, p_B))
    return float(np.mean(scores)) if scores else float("nan")
