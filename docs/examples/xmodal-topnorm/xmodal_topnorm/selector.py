"""A selector that learns nothing: a token is as important as it is long.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from xmodal.batch import Progress, Selection, Tokens
from xmodal.interfaces import Selector, Settings
from xmodal.ops import hard_subset


class TopNorm(Selector):
    """Selects the k tokens of the largest Euclidean norm."""

    class Config(Settings):
        """Settings of the selector."""

        gradient: bool = Field(
            False,
            description="Pass a straight-through gradient to the tokens: that of a sigmoid around "
            "the k-th largest norm.",
        )
        temperature: float = Field(1.0, gt=0, description="Width of that sigmoid, in norms.")

    config: Config

    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        """Select ``k`` tokens a row; 0 <= k <= N, an int or a 0-d tensor on the device."""
        norm_BN = tokens.x_BND.norm(dim=2)
        scores_BN = norm_BN.detach()
        mask_BN = hard_subset(scores_BN, k)
        if self.config.gradient:
            left_out_BN = mask_BN == 0
            threshold_B1 = scores_BN.masked_fill(left_out_BN, torch.inf).amin(dim=1, keepdim=True)
            soft_BN = torch.sigmoid((norm_BN - threshold_B1) / self.config.temperature)
            mask_BN = mask_BN + (soft_BN - soft_BN.detach())
        return Selection(mask_BN, scores_BN, k)
