"""The windows of a Swin transformer: each token in its place, and its gradient back.

Shapes: B samples, N tokens, D width, W windows, A places of a window.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from xmodal_backbones.windows import OUTSIDE, Windows, offsets, rearrange, windows

CPU = torch.device("cpu")
GRIDS = [(8, 8), (4, 8), (9, 13), (3, 5), (4, 4), (2, 9), (1, 1)]


def by_hand(x_BND: Tensor, grid: tuple[int, int], side: int, shift: int) -> Tensor:
    """Pad, roll and cut: ``[B, W, A, D]``."""
    down, right = (-length % side for length in grid)
    x_BYXD = functional.pad(x_BND.unflatten(1, grid), (0, 0, 0, right, 0, down))
    x_BYXD = x_BYXD.roll((-shift, -shift), (1, 2))
    cut = x_BYXD.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def by_window(rows_BSD: Tensor, cut: Windows) -> Tensor:
    """``[B, W, A, D]`` of rows ordered by place, then by window."""
    return rows_BSD.unflatten(1, (-1, cut.number)).transpose(1, 2)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shift", [0, 2])
def test_tokens_are_where_padding_rolling_and_cutting_put_them(
    grid: tuple[int, int], shift: int
) -> None:
    x_BND = random(2, grid[0] * grid[1], 3)
    cut = windows(grid, 4, shift, CPU)
    rows_BSD = rearrange(x_BND, cut.into, cut.back)
    assert torch.equal(by_window(rows_BSD, cut), by_hand(x_BND, grid, 4, shift))
    assert torch.equal(rearrange(rows_BSD, cut.back, cut.into), x_BND)


@pytest.mark.parametrize("grid", [(4, 8), (3, 5)])
@pytest.mark.parametrize("way", ["into", "back"])
def test_gradients_of_both_ways(grid: tuple[int, int], way: str) -> None:
    cut = windows(grid, 4, 2, CPU)
    orders = (cut.into, cut.back) if way == "into" else (cut.back, cut.into)
    length = grid[0] * grid[1] if way == "into" else len(cut.into.rows)
    x_BND = random(1, length, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rearrange(x, *orders), x_BND)
    assert torch.autograd.gradgradcheck(lambda x: rearrange(x, *orders).pow(3), x_BND)


def test_tokens_from_different_edges_do_not_see_each_other() -> None:
    """A pair is masked unless the way between its tokens through the window is that in the grid."""
    grid, side, shift = (8, 12), 4, 2
    cut = windows(grid, side, shift, CPU)
    assert cut.mask_WAA is not None
    place_BND = torch.cartesian_prod(*(torch.arange(float(length)) for length in grid))[None]
    place_WAD = by_hand(place_BND, grid, side, shift)[0]
    inside_AD = torch.cartesian_prod(*(torch.arange(float(side)) for _ in range(2)))
    apart_WAAD = place_WAD[:, :, None] - place_WAD[:, None]
    near_WAA = (apart_WAAD == inside_AD[:, None] - inside_AD).all(-1)
    assert torch.equal(cut.mask_WAA, torch.where(near_WAA, 0.0, OUTSIDE))
    assert not near_WAA.all()
    assert windows(grid, side, 0, CPU).mask_WAA is None


def test_on_small_grids_only_empty_places_are_masked() -> None:
    cut = windows((2, 3), 4, 0, CPU)
    assert cut.mask_WAA is not None
    seen_YX = torch.zeros(4, 4)
    seen_YX[:2, :3] = 1
    assert torch.equal(
        cut.mask_WAA[0], torch.where(seen_YX.flatten() > 0, 0.0, OUTSIDE).expand(16, -1)
    )


def test_a_pair_of_places_reads_its_row_of_the_position_table() -> None:
    side, table_OH = 3, random(25, 2)
    read_AAH = (offsets(side, table_OH) @ table_OH).reshape(9, 9, 2)
    for one in range(9):
        for other in range(9):
            down, right = (one // side - other // side), (one % side - other % side)
            row = (down + side - 1) * (2 * side - 1) + right + side - 1
            assert torch.equal(read_AAH[one, other], table_OH[row])
