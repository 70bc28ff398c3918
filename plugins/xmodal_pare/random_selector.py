"""The baseline of PaRe's Table 5: selects tokens uniformly at random, without learning.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.batch import Progress, Selection, Tokens
from xmodal.interfaces import Context, Selector, Settings
from xmodal.ops import hard_subset
from xmodal.steps import from_host
from xmodal_pare import CITATION


class RandomSelector(Selector):
    """Selects k tokens per row uniformly at random (PaRe, Table 5, "Random")."""

    citation = CITATION

    class Config(Settings):
        """No settings."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._generator = context.generator

    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        """Select ``k`` tokens per row; the mask has no gradient."""
        shape = tokens.x_BND.shape[:2]

        def draw(at: Progress) -> dict[str, Tensor]:
            return {"scores": torch.rand(shape, generator=self._generator)}

        scores_BN = from_host(draw, progress, tokens.x_BND.device)["scores"]
        return Selection(hard_subset(scores_BN, k), scores_BN, k)
