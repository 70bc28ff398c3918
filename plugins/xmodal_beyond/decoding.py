"""For stages that hide tokens and tell what they were: which ones are hidden, and a linear decoder.

Where features are coarser than tokens (Swin), all tokens of a feature are hidden and told together,
as in SimMIM (Xie et al., CVPR 2022).

Shapes: B samples, N tokens, F width of the features, O outputs for a token.
"""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.interfaces import BackboneFacts, Facts


def cells(grid: tuple[int, ...], backbone: BackboneFacts) -> tuple[int, ...]:
    """The grid of the features, whose cells are hidden as a whole."""
    side = backbone.reduction if len(grid) == 2 else 1
    return tuple(math.ceil(length / side) for length in grid)


def masks(
    number: int,
    grid: tuple[int, ...],
    backbone: BackboneFacts,
    share: float,
    generator: torch.Generator,
) -> Tensor:
    """Masks ``[B, N]``, true where hidden: ``share`` of the cells, at least 1 and not all."""
    coarse = cells(grid, backbone)
    total = prod(coarse)
    count = min(max(1, round(share * total)), total - 1)
    order_BC = torch.rand(number, total, generator=generator).argsort(1)
    mask = (order_BC.argsort(1) < count).view(number, *coarse)
    if len(grid) == 2:
        mask = mask.repeat_interleave(backbone.reduction, 1)
        mask = mask.repeat_interleave(backbone.reduction, 2)[:, : grid[0], : grid[1]]
    return mask.reshape(number, -1)


class TokenDecoder(nn.Module):
    """One linear layer from the features to ``outputs`` numbers for every token."""

    def __init__(self, outputs: int, facts: Facts) -> None:
        super().__init__()
        self.side = facts.backbone.reduction if len(facts.grid) == 2 else 1
        self.linear = nn.Linear(facts.backbone.feature_width, self.side**2 * outputs)

    def forward(self, features: Tokens, grid: tuple[int, ...]) -> Tensor:
        """``[B, N, O]`` for every token of ``grid``."""
        decoded: Tensor = self.linear(features.x_BND)
        if self.side == 1:
            return decoded
        side, (rows, columns) = self.side, features.grid
        decoded_BhwssO = decoded.view(len(decoded), rows, columns, side, side, -1)
        decoded_BhswsO = decoded_BhwssO.transpose(2, 3)
        decoded_BHWO = decoded_BhswsO.reshape(len(decoded), rows * side, columns * side, -1)
        return decoded_BHWO[:, : grid[0], : grid[1]].flatten(1, 2)
