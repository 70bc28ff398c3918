"""The area under the ROC curve of binary maps, over all known pixels of a split.

Exact, in the memory of the split's predictions: a test split of 420 maps of 128 x 128 has 7 million
pixels, which take 28 MB, and as much again while they are sorted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from xmodal.interfaces import Context, Facts, Metric, Settings


class PixelAUROCError(Metric):
    """1 - AUROC of the logits of all pixels whose label is known (not NaN)."""

    class Config(Settings):
        """Settings of the score."""

        released: bool = Field(
            False,
            description="Compute what the released code calls 1 - AUROC: of the mask logit > 0, so "
            "that it is 1 - balanced accuracy, and with ignored pixels as true negatives.",
        )

    config: Config
    kinds: ClassVar[tuple[str, ...]] = ("dense", "multi-label")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.reset()

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """Report labels that are no maps of 0 and 1."""
        kind = facts.task.target.kind
        if kind not in cls.kinds:
            yield f"scores maps of 0 and 1; task '{facts.task.name}' has {kind} labels"

    def reset(self) -> None:
        """Forget everything."""
        self._scores: dict[bool, list[Tensor]] = {True: [], False: []}
        self._ignored = 0

    def update(self, prediction: Tensor, y: Tensor) -> None:
        """Add logits and labels of one shape; a label is 0, 1, or NaN where it is not known."""
        if prediction.shape != y.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(y.shape)}")
        prediction, y = prediction.detach().cpu(), y.detach().cpu()
        known = ~y.isnan()
        other = known & (y != 0) & (y != 1)
        if other.any():
            raise ValueError(f"a label is {float(y[other][0])}; pixels are scored against 0 and 1")
        self._ignored += int((~known).sum())
        for positive, kept in self._scores.items():
            # Copied: a part of a batch would keep the whole batch in memory.
            kept.append(prediction[known & (y == positive)].clone())

    def counts(self) -> tuple[int, int]:
        """How many known pixels are 1, and how many 0."""
        positive, negative = (sum(map(len, self._scores[kind])) for kind in (True, False))
        return positive, negative

    def compute(self) -> float:
        """1 - the area; NaN without both kinds of pixels, or with a prediction that is NaN."""
        if not all(self.counts()):
            return float("nan")
        positive, negative = (torch.cat(self._scores[kind]).numpy() for kind in (True, False))
        if np.isnan(positive).any() or np.isnan(negative).any():
            return float("nan")
        if self.config.released:
            found = float((positive > 0).mean())
            right = float((negative <= 0).sum() + self._ignored) / (len(negative) + self._ignored)
            return 1.0 - (found + right) / 2
        return 1.0 - _area(positive, negative)

    def smallest(self) -> float | None:
        """One pair of pixels in the wrong order; of the mask, one wrong pixel."""
        positive, negative = self.counts()
        if not positive or not negative:
            return None
        if self.config.released:
            return 1 / (2 * max(positive, negative + self._ignored))
        return 1 / (positive * negative)


def _area(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """How often a positive score lies above a negative one; a tie counts half."""
    negative.sort()
    below = np.searchsorted(negative, positive, "left").sum(dtype=np.float64)
    up_to = np.searchsorted(negative, positive, "right").sum(dtype=np.float64)
    return float((below + up_to) / 2 / len(positive) / len(negative))
