"""Scores of groups: the predictions of a group's samples are averaged before they are scored.

A sound clip is heard in windows and a recording is cut into pieces, but the clip or the recording
has one label. Without groups (``TaskData.groups``), every sample is scored by itself.

Shapes: B samples, K outputs, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.errors import DataError
from xmodal.interfaces import Context, Settings
from xmodal_basics.metrics import AveragePrecisionError, Error, ErrorRate, RootMeanSquaredError


class _Grouped(Error):
    """Adds up predictions (logits) by group; a metric to its right scores their means."""

    def __init__(self, config: Settings, context: Context) -> None:
        self.group(None)
        super().__init__(config, context)

    def reset(self) -> None:
        """Forget everything but the groups."""
        super().reset()  # type: ignore[safe-super]  # a concrete metric follows
        self.at, self.sum_GK, self.label_G = 0, torch.empty(0), torch.empty(0)
        self.known_G = torch.empty(0, dtype=torch.bool)

    def group(self, groups_N: Tensor | None) -> None:
        """Learn the groups of all samples, in their order."""
        self.groups_N: Tensor | None = None
        self.count_G = torch.empty(0)
        self.at = 0
        if groups_N is not None:
            _, self.groups_N, self.count_G = torch.unique(
                groups_N.cpu(), return_inverse=True, return_counts=True
            )

    def add(self, prediction: Tensor, y: Tensor) -> None:
        """Add a batch to the sums of its groups. Raises DataError if labels of a group differ."""
        if self.groups_N is None:
            super().add(prediction, y)  # type: ignore[safe-super]
            return
        if self.at == 0:
            size = len(self.count_G)
            self.sum_GK = prediction.new_zeros(size, *prediction.shape[1:])
            self.label_G = y.new_zeros(size, *y.shape[1:])
            self.known_G = torch.zeros(size, dtype=torch.bool, device=y.device)
        group_B = self.groups_N[self.at : self.at + len(y)]
        if len(group_B) < len(y):
            raise RuntimeError(f"{self.at + len(y)} samples, but {len(self.groups_N)} have a group")
        self.sum_GK.index_add_(0, group_B, prediction)
        known_B = self.known_G[group_B].view(-1, *[1] * (y.ndim - 1))
        self.label_G[group_B] = torch.where(known_B, self.label_G[group_B], y)
        self.known_G[group_B] = True
        after = self.label_G[group_B]
        if not ((after == y) | (after.isnan() & y.isnan())).all():
            raise DataError(
                f"{type(self).__name__}: samples of one group have different labels, so the group "
                "has no label to score; use the metric of single samples"
            )
        self.at += len(y)

    def compute(self) -> float:
        """The score of the mean predictions."""
        self._settle()
        return super().compute()  # type: ignore[safe-super]

    def smallest(self) -> float | None:
        """One wrong group."""
        self._settle()
        return super().smallest()

    def _settle(self) -> None:
        if self.groups_N is None or self.at == 0:
            return
        if self.at < len(self.groups_N):
            raise RuntimeError(f"{self.at} samples, but {len(self.groups_N)} have a group")
        super().reset()  # type: ignore[safe-super]  # a concrete metric follows
        count_G1 = self.count_G.view(-1, *[1] * (self.sum_GK.ndim - 1))
        super().add(self.sum_GK / count_G1, self.label_G)  # type: ignore[safe-super]


class GroupedErrorRate(_Grouped, ErrorRate):
    """1 - accuracy over groups: of a group's samples, the mean of the logits decides."""


class GroupedAveragePrecisionError(_Grouped, AveragePrecisionError):
    """1 - the mean average precision over groups, scored by the mean of the logits."""


class GroupedRMSE(_Grouped, RootMeanSquaredError):
    """The root of the mean squared error over groups, scored by the mean of the predictions."""
