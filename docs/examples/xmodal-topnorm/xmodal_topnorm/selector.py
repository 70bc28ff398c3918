"""A selector that learns nothing: a token is as important as it is long.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

import torch
from pydantic import Field

from xmodal.batch import Progress, Selection, Tokens
from xmodal.interfaces import Selector, Settings


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

    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        """Select ``k`` tokens a row; 0 <= k <= N."""
        norm_BN = tokens.x_BND.norm(dim=2)
        scores_BN = norm_BN.detach()
        chosen_BK = scores_BN.topk(k, dim=1).indices
        mask_BN = torch.zeros_like(scores_BN).scatter(1, chosen_BK, 1.0)
        if self.config.gradient and k:
            threshold_B1 = scores_BN.gather(1, chosen_BK[:, -1:])
            soft_BN = torch.sigmoid((norm_BN - threshold_B1) / self.config.temperature)
            mask_BN = mask_BN + (soft_BN - soft_BN.detach())
        return Selection(mask_BN, scores_BN, k)
