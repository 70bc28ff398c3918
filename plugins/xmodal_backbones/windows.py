"""How tokens get into the windows of a Swin transformer, and back.

A token is moved to its place in a window, and back, by one gather each way, whose gradient is the
other gather: no roll, no padding of tensors, and nothing that depends on the order of additions.

Shapes: B samples, N tokens, D width, W windows, A places of a window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

OUTSIDE = -100.0
"""What the library adds to scores between tokens that must not see each other."""


class Gather(NamedTuple):
    """Where each row of a gathered tensor comes from; ``empty`` rows are zero."""

    rows: Tensor
    empty: Tensor | None = None


class Windows(NamedTuple):
    """How a grid is cut into windows.

    Rows are ordered by place, then by window (``[A, W]``), so that heads and windows are one axis
    of the attention, and what is added to the scores is the same for all samples.
    """

    number: int
    into: Gather
    back: Gather
    mask_WAA: Tensor | None


def windows(grid: tuple[int, ...], side: int, shift: int, device: torch.device) -> Windows:
    """Windows of ``side`` x ``side``; they begin at ``shift`` and go around the edges.

    Incomplete windows are filled with empty places. Those are seen as zeros, as in the library,
    unless the grid is smaller than a window: then they are masked, which equals a smaller window.
    """
    small = min(grid) < side
    rows, columns = (-(-length // side) for length in grid)
    # Row and column of each token in the padded, shifted grid, as [A, W].
    down = (torch.arange(rows * side) + shift) % (rows * side)
    right = (torch.arange(columns * side) + shift) % (columns * side)
    count, area = rows * columns, side * side

    def by_place(values_YX: Tensor) -> Tensor:
        cut = values_YX.reshape(rows, side, columns, side)
        return cut.permute(1, 3, 0, 2).reshape(area * count)

    inside_YX = (down < grid[0])[:, None] & (right < grid[1])
    token_AW = by_place(down[:, None] * grid[1] + right)
    inside_AW = by_place(inside_YX)
    slot_N = torch.empty(grid[0] * grid[1], dtype=torch.int64)
    slot_N[token_AW[inside_AW]] = torch.arange(area * count)[inside_AW]
    empty = None if bool(inside_AW.all()) else ~inside_AW
    mask_WAA = None
    if small:
        seen_WA = inside_AW.reshape(area, count).T
        mask_WAA = torch.where(seen_WA, 0.0, OUTSIDE)[:, None].expand(-1, area, -1)
    elif shift:
        # Tokens that the shift brought together from different edges do not see each other.
        lower, righter = (_regions(length * side, side, shift) for length in (rows, columns))
        region_WA = by_place(lower[:, None] * 3 + righter).reshape(area, count).T
        mask_WAA = (region_WA[:, None] != region_WA[:, :, None]) * OUTSIDE
    into = Gather(
        token_AW.where(inside_AW, 0).to(device), None if empty is None else empty.to(device)
    )
    mask_WAA = None if mask_WAA is None else mask_WAA.contiguous().to(device)
    return Windows(count, into, Gather(slot_N.to(device)), mask_WAA)


def _regions(length: int, side: int, shift: int) -> Tensor:
    """0, 1 or 2 for each place of a shifted axis: the last window holds two parts of the grid."""
    place = torch.arange(length)
    return (place >= length - side).long() + (place >= length - shift).long()


def rearrange(x_BND: Tensor, into: Gather, back: Gather) -> Tensor:
    """Gather of ``x`` in the order ``into``; ``back`` is the order that undoes it."""
    if torch.is_grad_enabled() and x_BND.requires_grad:
        moved: Tensor = _Rearrange.apply(x_BND, into, back)
        return moved
    return _taken(x_BND, into)


class _Rearrange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, into: Gather, back: Gather) -> Tensor:
        ctx.into, ctx.back = into, back
        return _taken(x_BND, into)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return rearrange(gradient, ctx.back, ctx.into), None, None


def _taken(x_BND: Tensor, order: Gather) -> Tensor:
    taken = x_BND.index_select(1, order.rows)
    return taken if order.empty is None else taken.masked_fill(order.empty[:, None], 0)


def offsets(side: int, like: Tensor) -> Tensor:
    """One-hot ``[A * A, (2 * side - 1)^2]``: the row of the position table for each pair of places.

    With it the table is read by a product, whose gradient is one as well: added in a fixed order,
    and in one kernel.
    """
    place = torch.arange(side)
    apart = place[:, None] - place + side - 1
    index = apart[:, None, :, None] * (2 * side - 1) + apart[None, :, None, :]
    table = functional.one_hot(index.reshape(-1), (2 * side - 1) ** 2)
    return table.to(like)
