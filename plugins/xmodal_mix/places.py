"""Which source token is at the same place as a target token, even if their grids differ.

Two grids with equally many axes are aligned at their first corner: tokens at the same (row, column)
correspond. Otherwise, tokens at the same position in reading order correspond. Target tokens beyond
the source have no counterpart.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

Grid = tuple[int, ...]


def counterparts(target: Grid, source: Grid) -> Tensor:
    """The source token (int64) at every place of the target, with shape ``target``; -1 if none."""
    if len(target) != len(source):
        order = torch.arange(prod(target)).view(target)
        return torch.where(order < prod(source), order, -1)
    place = torch.zeros(target, dtype=torch.int64)
    inside = torch.ones(target, dtype=torch.bool)
    axes = torch.meshgrid(*[torch.arange(side) for side in target], indexing="ij")
    for index, side in zip(axes, source, strict=True):
        place = place * side + index
        inside &= index < side
    return torch.where(inside, place, -1)


def common(target: Grid, source: Grid) -> Grid:
    """The largest block at the target's first corner that the source covers.

    If tokens correspond by reading order, the block has whole rows.
    """
    if len(target) == len(source):
        return tuple(min(sides) for sides in zip(target, source, strict=True))
    covered, row = prod(source), prod(target[1:])
    if len(target) > 1 and covered < row:
        return (1, *common(target[1:], (covered,)))
    return (min(target[0], covered // row), *target[1:])
