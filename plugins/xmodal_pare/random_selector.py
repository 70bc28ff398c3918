"""The baseline of PaRe's Table 5: selects tokens uniformly at random, without learning.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import torch

from xmodal.batch import Progress, Selection, Tokens
from xmodal.interfaces import Context, Selector, Settings
from xmodal.ops import hard_subset
from xmodal_pare import CITATION


class RandomSelector(Selector):
    """Selects k tokens per row uniformly at random (PaRe, Table 5, "Random")."""

    citation = CITATION

    class Config(Settings):
        """No settings."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._generator = context.generator

    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        """Select ``k`` tokens per row; the mask has no gradient."""
        drawn_BN = torch.rand(tokens.x_BND.shape[:2], generator=self._generator)
        scores_BN = drawn_BN.to(tokens.x_BND.device, non_blocking=True)
        return Selection(hard_subset(scores_BN, k), scores_BN, k)
