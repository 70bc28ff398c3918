"""The predictor ``nearest``: the labels of the training samples that look most alike.

The cheap answer that learns nothing: if it is good, test samples repeat training samples.

Shapes: B and n samples, F numbers per sample, K outputs, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Facts, FitData, FittedPredictor, Settings, too_large
from xmodal_basics.fit import label_scale

LEAST = 1e-4
"""The probability of what no neighbour has; dense labels of 0 and 1 as in ridge."""
LARGEST_GB = 2.0
AT_ONCE = 64


def weighted_mean(y_BNK: Tensor, weight_BN: Tensor | None) -> Tensor:
    """The mean of the known ones of n labels ``[B, K]``; NaN where none is known."""
    if weight_BN is None:
        return y_BNK.nanmean(1)
    weight_BNK = weight_BN[..., None] * ~y_BNK.isnan()
    return (weight_BNK * y_BNK.nan_to_num()).sum(1) / weight_BNK.sum(1)


class Nearest(FittedPredictor):
    """The mean label of the k nearest training samples by Euclidean distance.

    Distances are those of samples as the task standardises them; in tables each column is
    standardised, and categories differ or do not. The number of neighbours is the one with the
    smallest squared error on validation. Checkpoints hold the training samples and their labels.
    """

    citation = "Fix, Hodges: Discriminatory analysis, nonparametric discrimination (1951)"

    class Config(Settings):
        """Settings of ``nearest``."""

        neighbours: tuple[PositiveInt, ...] = Field(
            (1, 2, 3, 5, 8, 13, 21),
            min_length=1,
            description="Numbers of neighbours to choose from, on validation.",
        )

    config: Config
    weighs = True
    names: ClassVar[tuple[str, ...]] = ("x_NF", "y_NK", "shift_F", "scale_F", "count", "zero_one")
    optional: ClassVar[tuple[str, ...]] = ("weight_N",)
    weight_N: Tensor | None
    x_NF: Tensor
    y_NK: Tensor
    shift_F: Tensor
    scale_F: Tensor
    count: Tensor
    zero_one: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        task = context.facts.task
        self.output = context.output or task.target
        self.levels = task.levels if any(task.levels) else ()
        self.is_table = task.form == "row"
        self.note = context.note

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Training samples that are too large to be kept with the model."""
        yield from too_large(facts, bytes_per_number=4, most_gb=LARGEST_GB)

    @property
    def fitted(self) -> bool:
        """Whether it has training samples."""
        return len(self.x_NF) > 0

    def fit(self, data: FitData) -> None:
        """Keep the training split, and choose k."""
        from sklearn.preprocessing import StandardScaler

        if data.weight_N is not None:  # what does not count is no neighbour
            data = data.some(data.weight_N > 0)
        self.weight_N = data.weight_N
        x_NF = data.x_NF.double()
        self.shift_F, self.scale_F = torch.zeros(1).double(), torch.ones(1).double()
        if self.is_table:
            scaler = StandardScaler().fit(self._known(x_NF).numpy())
            self.shift_F = torch.from_numpy(scaler.mean_)
            self.scale_F = torch.from_numpy(scaler.scale_)
            for column, count in enumerate(self.levels):
                if count:
                    self.shift_F[column], self.scale_F[column] = 0.0, 1.0
        self.x_NF = self._standard(x_NF).float()
        y = data.y
        if self.output.kind == "classification":
            y = functional.one_hot(y.long(), self.output.size)
        self.y_NK = y.flatten(1).float()
        known = self.y_NK[~self.y_NK.isnan()]
        dense = self.output.kind == "dense"
        self.zero_one = torch.tensor(dense and bool(((known == 0) | (known == 1)).all()))
        self.count = torch.tensor(self._chosen(data))

    def chosen(self) -> dict[str, Any]:
        """The number of neighbours."""
        return {"neighbours": [int(self.count)]}

    def _chosen(self, data: FitData) -> int:
        """The number of neighbours, of those that there are."""
        able = [k for k in self.config.neighbours if k <= len(self.x_NF)] or [len(self.x_NF)]
        if len(able) == 1 or not len(data.validation_x_NF):
            return able[0]
        y = data.validation_y
        if self.output.kind == "classification":
            y = functional.one_hot(y.long(), self.output.size)
        y_NK = y.flatten(1).double()
        scale_K = label_scale(data.y, self.output.kind)
        error_k = torch.zeros(len(able), dtype=torch.float64)
        pieces = zip(
            torch.split(data.validation_x_NF, AT_ONCE), torch.split(y_NK, AT_ONCE), strict=True
        )
        for x_BF, y_BK in pieces:
            order_BN = self._order(x_BF, max(able))
            for place, k in enumerate(able):
                wrong_BK = (self._mean(order_BN[:, :k]) - y_BK) / scale_K
                error_k[place] += wrong_BK.square().nansum()
        best = able[int(error_k.argmin())]
        self.note(f"nearest: {best} neighbours chosen on validation")
        return best

    def _known(self, x_BF: Tensor) -> Tensor:
        """The numbers of a table, with NaN where a category is missing."""
        x_BF = x_BF.clone()
        for column, count in enumerate(self.levels):
            if count:
                x_BF[:, column] = torch.where(x_BF[:, column] < 0, torch.nan, x_BF[:, column])
        return x_BF

    def _standard(self, x_BF: Tensor) -> Tensor:
        """Standardised; a missing number becomes the mean. Categories are one 0/1 per level."""
        z_BF = ((x_BF.double() - self.shift_F) / self.scale_F).nan_to_num()
        if not self.levels:
            return z_BF
        parts = []
        for column, (z_B, count) in enumerate(zip(z_BF.unbind(1), self.levels, strict=True)):
            level_M = torch.arange(count, device=z_B.device)
            code_B = x_BF[:, column, None]
            # Squared, two levels are 2 apart: as much as two standardised numbers on average.
            parts.append((code_B == level_M).double() if count else z_B[:, None])
        return torch.cat(parts, dim=1)

    def _order(self, x_BF: Tensor, most: int) -> Tensor:
        """The places of the ``most`` nearest training samples, the nearest first: ``[B, most]``."""
        # Differences and not products: the distance of a sample to itself is 0.
        distance_BN = torch.cdist(
            self._standard(x_BF).float(),
            self.x_NF,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        # A stable order: of samples equally far away, the first in the file.
        return distance_BN.sort(dim=1, stable=True).indices[:, :most]

    def _mean(self, order_BN: Tensor) -> Tensor:
        """The mean of the known labels of these training samples ``[B, K]``, float64."""
        y_BNK = self.y_NK[order_BN].double()
        mean_BK = weighted_mean(y_BNK, None if self.weight_N is None else self.weight_N[order_BN])
        if not mean_BK.isnan().any():
            return mean_BK
        every_K = weighted_mean(self.y_NK.double()[None], self.weight_N)[0].nan_to_num()
        return torch.where(mean_BK.isnan(), every_K, mean_BK)

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]`` (log-probabilities, log-odds or numbers) or ``[B, K, *shape]``."""
        self.check_fitted()
        x_BF = features.x_BND.flatten(1)
        with torch.autocast(x_BF.device.type, enabled=False):
            pieces = torch.split(x_BF, AT_ONCE)
            parts = [self._mean(self._order(part, int(self.count))) for part in pieces]
            y_BK = torch.cat(parts) if parts else self.y_NK.new_empty(0, self.y_NK.shape[1])
        if self.output.kind == "classification":
            return y_BK.clamp_min(LEAST).log().float()
        if self.output.kind == "multi-label" or bool(self.zero_one):
            y_BK = torch.logit(y_BK, eps=LEAST)
        return y_BK.view(len(y_BK), self.output.size, *self.output.shape).float()
