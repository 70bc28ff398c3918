"""How tokens get into the windows of a Swin transformer, and back.

A token is moved to its place in a window, and back, by one gather each way, whose gradient is the
other gather: no roll, no padding of tensors, and nothing that depends on the order of additions.

Shapes: B samples, N tokens, D width, W windows, A places of a window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    rows, columns = (-(-length // side) for length in grid)
    count, area = rows * columns, side * side
    # In numpy, so that an export traces constants and not how they come about.
    down = (np.arange(rows * side) + shift) % (rows * side)
    right = (np.arange(columns * side) + shift) % (columns * side)

    def by_place(values_YX: Any) -> Any:
        cut = values_YX.reshape(rows, side, columns, side)
        return cut.transpose(1, 3, 0, 2).reshape(area * count)

    inside_AW = by_place((down < grid[0])[:, None] & (right < grid[1]))
    token_AW = by_place(down[:, None] * grid[1] + right)
    slot_N = np.empty(grid[0] * grid[1], dtype=np.int64)
    slot_N[token_AW[inside_AW]] = np.flatnonzero(inside_AW)
    hidden_WAA = None
    if min(grid) < side:
        unseen_WA = ~inside_AW.reshape(area, count).T
        hidden_WAA = np.broadcast_to(unseen_WA[:, None], (count, area, area))
    elif shift:
        # Tokens that the shift brought together from different edges do not see each other.
        lower, righter = (_regions(length * side, side, shift) for length in (rows, columns))
        region_WA = by_place(lower[:, None] * 3 + righter).reshape(area, count).T
        hidden_WAA = region_WA[:, None] != region_WA[:, :, None]

    def there(values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return Windows(
        count,
        Gather(
            there(np.where(inside_AW, token_AW, 0)),
            None if inside_AW.all() else there(~inside_AW),
        ),
        Gather(there(slot_N)),
        None if hidden_WAA is None else there((hidden_WAA * OUTSIDE).astype(np.float32)),
    )


def _regions(length: int, side: int, shift: int) -> Any:
    """0, 1 or 2 for each place of a shifted axis: the last window holds two parts of the grid."""
    place = np.arange(length)
    return (place >= length - side).astype(int) + (place >= length - shift)


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
    place = np.arange(side)
    apart = place[:, None] - place + side - 1
    row = apart[:, None, :, None] * (2 * side - 1) + apart[None, :, None, :]
    one_hot = row.reshape(-1, 1) == np.arange((2 * side - 1) ** 2)
    return torch.from_numpy(one_hot).to(like)
