"""The predictor ``majority``: the same answer for every sample, the zero line of every table.

Shapes: B and n samples, K outputs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import Context, FitData, FittedPredictor, Settings

LEAST = 1e-6
"""The probability of what no training sample has, as for the other cheap answers."""


class Majority(FittedPredictor):
    """The frequencies of the classes, the mean of numbers, or the mean field of the training split.

    Its most likely class is the most frequent one. Labels of 0 and 1 get the log-odds of their
    frequency, and so do dense labels that are all 0 or 1. Unknown labels do not count.
    """

    uses_validation = False
    weighs = True
    names: ClassVar[tuple[str, ...]] = ("answer_K",)
    answer_K: Tensor

    Config = Settings

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.output = context.output or context.facts.task.target

    @property
    def fitted(self) -> bool:
        """Whether it has seen labels."""
        return len(self.answer_K) > 0

    def fit(self, data: FitData) -> None:
        """Count classes, or average labels; samples do not matter."""
        y, weight_N = data.y, data.weight_N
        if weight_N is None:
            weight_N = torch.ones(len(y), dtype=torch.float64)
        if self.output.kind == "classification":
            size = self.output.size
            share_K = torch.bincount(y.long(), weight_N, minlength=size) / weight_N.sum()
            self.answer_K = share_K.clamp_min(LEAST).log().float()
            return
        known = y[~y.isnan()]
        weight_N1 = weight_N.view(-1, *[1] * (y.ndim - 1))
        total_K = (weight_N1 * ~y.isnan()).sum(0)
        mean_K = ((weight_N1 * y.double()).nansum(0) / total_K).nan_to_num()
        mean_K = mean_K.view(self.output.size, *self.output.shape)
        shares = self.output.kind == "multi-label"
        if self.output.kind == "dense":
            shares = bool(((known == 0) | (known == 1)).all())
        self.answer_K = (torch.logit(mean_K, eps=LEAST) if shares else mean_K).float()

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]`` (log-probabilities, log-odds or numbers) or ``[B, K, *shape]``."""
        self.check_fitted()
        return self.answer_K.expand(len(features.x_BND), *self.answer_K.shape).clone()
