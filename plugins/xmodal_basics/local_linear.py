"""The predictor ``local-linear``: ridge regression from the channels of a cell to its label.

The cheap answer for dense tasks whose flattened samples are too large for ``sklearn``: its rows are
cells, not samples, and it has as many unknowns as there are channels and terms of the trend.

Shapes: B samples, C channels, M cells (``prod(shape)``), T terms of the trend, P = C + T + 1, K
outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.errors import DataError
from xmodal.interfaces import Context, Facts, FitData, FittedPredictor, Settings, Target

MOST_BYTES, MOST_SAMPLES = 1_000_000_000, 256
"""Of more samples, only so many are used: their cells are far more than the unknowns."""


class LocalLinear(FittedPredictor):
    """The channels of a cell and a smooth trend over the grid, weighed by ridge regression.

    One model for all cells, fitted by its normal equations in float64. Unknown labels do not count.
    Dense labels that are all 0 or 1 are predicted as the log-odds of the estimate.
    """

    class Config(Settings):
        """Settings of the ridge."""

        alpha: PositiveFloat = Field(
            1.0, description="Penalty on the weights of standardised channels and terms."
        )

    uses_validation = False
    weighs = True
    names: ClassVar[tuple[str, ...]] = ("weight_KC", "place_KM", "zero_one")
    weight_KC: Tensor
    place_KM: Tensor
    zero_one: Tensor

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.shape = context.facts.task.shape
        self.output = context.output or context.facts.task.target
        self.note = context.note

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Dense labels."""
        return output.kind == "dense"

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report labels that do not lie on the grid of the samples."""
        task, target = facts.task, facts.task.target
        if target.kind != "dense" or target.shape != task.shape[1:]:
            where = f"'{task.name}' has no labels there"
            yield f"local-linear predicts on the grid of the samples; {where}"

    @property
    def most_samples(self) -> int:  # type: ignore[override]
        """As many as fit into ``MOST_BYTES``, at most ``MOST_SAMPLES``."""
        size = 4 * (prod(self.shape) + self.output.size * prod(self.output.shape))
        return max(1, min(MOST_SAMPLES, MOST_BYTES // size))

    @property
    def fitted(self) -> bool:
        """Whether it has its weights."""
        return self.weight_KC.numel() > 0

    def fit(self, data: FitData) -> None:
        """Sum up the normal equations sample by sample, and solve them for each output."""
        channels, cells = self.shape[0], prod(self.shape[1:])
        trend_TM = trend(self.shape[1:])
        self.note(f"local-linear: cells of {len(data.y)} samples")
        size = channels + len(trend_TM) + 1
        gram_KPP = torch.zeros(self.output.size, size, size, dtype=torch.float64)
        right_KP = torch.zeros(self.output.size, size, dtype=torch.float64)
        one_1M = torch.ones(1, cells, dtype=torch.float64)
        zero_one = True
        weights = [1.0] * len(data.y)
        if data.weight_N is not None:
            weights = (data.weight_N / data.weight_N.mean()).tolist()
        for x_F, y, weight in zip(data.x_NF, data.y, weights, strict=True):
            x_CM = torch.nan_to_num(x_F.double().view(channels, cells))
            z_PM = torch.cat([x_CM, trend_TM, one_1M])
            for k, y_M in enumerate(y.double().view(self.output.size, cells)):
                known = ~y_M.isnan()
                z_PN, y_N = z_PM[:, known], y_M[known]
                gram_KPP[k] += weight * (z_PN @ z_PN.T)
                right_KP[k] += weight * (z_PN @ y_N)
                zero_one &= bool(((y_N == 0) | (y_N == 1)).all())
        if not gram_KPP[:, -1, -1].all():
            raise DataError("local-linear: an output has no known label to be fitted to")
        solved_KP = torch.stack(
            [solve(*one, self.config.alpha) for one in zip(gram_KPP, right_KP, strict=True)]
        )
        self.weight_KC = solved_KP[:, :channels].float()
        self.place_KM = (solved_KP[:, channels:] @ torch.cat([trend_TM, one_1M])).float()
        self.zero_one = torch.tensor(zero_one)

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K, *shape]`` (numbers or log-odds)."""
        self.check_fitted()
        with torch.autocast(features.x_BND.device.type, enabled=False):
            x_BCM = features.x_BND.float().reshape(len(features.x_BND), self.shape[0], -1)
            y_BKM = self.weight_KC @ torch.nan_to_num(x_BCM) + self.place_KM
            y_BKM = torch.where(self.zero_one, torch.logit(y_BKM, eps=1e-4), y_BKM)
        return y_BKM.view(len(y_BKM), self.output.size, *self.output.shape)


def trend(sides: Sequence[int]) -> Tensor:
    """Smooth functions of a cell's place ``[T, M]``, float64: u and u^2 of each axis from -1 to 1.

    Of two axes also their product, and how far the cell is from the diagonal, |u - v| and its root:
    near it, a map of pairs differs from elsewhere.
    """
    axes = [torch.linspace(-1, 1, side, dtype=torch.float64) for side in sides]
    places = [one.flatten() for one in torch.meshgrid(*axes, indexing="ij")]
    terms = [term for u in places for term in (u, u**2)]
    if len(places) == 2:
        apart = (places[0] - places[1]).abs()
        terms += [places[0] * places[1], apart, apart.sqrt()]
    return torch.stack(terms)


def solve(gram_PP: Tensor, right_P: Tensor, alpha: float) -> Tensor:
    """Ridge from sums over rows: weights, and last the intercept, which has no penalty.

    ``gram_PP`` is Z^T Z and ``right_P`` Z^T y, where the last column of Z is 1. The penalty is that
    of standardised columns; columns that are constant get no weight.
    """
    count = gram_PP[-1, -1]
    mean_P, mean = gram_PP[-1, :-1] / count, right_P[-1] / count
    cov_PP = gram_PP[:-1, :-1] - count * mean_P[:, None] * mean_P
    scale_P = (cov_PP.diagonal() / count).clamp_min(0).sqrt()
    varies = scale_P > 1e-7 * (gram_PP.diagonal()[:-1] / count).sqrt()
    scale_P = torch.where(varies, scale_P, torch.inf)
    normal_PP = cov_PP / scale_P[:, None] / scale_P + alpha * torch.eye(len(mean_P)).double()
    weight_P = torch.linalg.solve(normal_PP, (right_P[:-1] - count * mean_P * mean) / scale_P)
    weight_P = weight_P / scale_P
    return torch.cat([weight_P, (mean - weight_P @ mean_P)[None]])
