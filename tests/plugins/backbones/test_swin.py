"""A Swin layer's own forward pass is the library's: values, gradients, names of weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal_backbones.swin_layer import Cuts, encode

pytestmark = pytest.mark.slow  # importing the library costs seconds

SIDE, WIDTH = 4, 16


def layers(shift: int) -> tuple[nn.Module, nn.Module]:
    """Two equal layers of the library."""
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinLayer

    config = SwinConfig(window_size=SIDE, hidden_dropout_prob=0.0)
    config._attn_implementation = "sdpa"
    layer: Any = SwinLayer(config, WIDTH, (8, 8), num_heads=2, shift_size=shift).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return layer, copy.deepcopy(layer)


def tokens(grid: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x_BND = torch.randn(2, grid[0] * grid[1], WIDTH, dtype=torch.float64, generator=generator)
    return x_BND.requires_grad_()


@pytest.mark.parametrize("grid", [(8, 8), (12, 8), (9, 13), (4, 9), (5, 5)])
@pytest.mark.parametrize("shift", [0, SIDE // 2])
def test_values_and_gradients_are_those_of_the_library(grid: tuple[int, int], shift: int) -> None:
    theirs, ours = layers(shift)
    expected_x, found_x = tokens(grid), tokens(grid)
    expected = theirs(expected_x, grid)[0]
    found = encode(ours, found_x, grid, Cuts())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for out in (expected, found):
        out.sin().sum().backward()
    torch.testing.assert_close(found_x.grad, expected_x.grad, rtol=0, atol=1e-11)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", [(3, 4), (2, 2), (1, 4)])
def test_a_grid_within_one_window_is_plain_attention(grid: tuple[int, int]) -> None:
    """Where all tokens are in one window, each sees each, with the bias of their distance."""
    _, layer = layers(SIDE // 2)
    part: Any = layer.attention
    x_BND = tokens(grid)
    norm_BND = layer.layernorm_before(x_BND)
    q, k, v = (
        p(norm_BND).unflatten(-1, (2, -1)).transpose(1, 2)
        for p in (part.q_proj, part.k_proj, part.v_proj)
    )
    place_N2 = torch.cartesian_prod(*(torch.arange(side) for side in grid)).reshape(-1, 2)
    apart_NN2 = place_N2[:, None] - place_N2 + SIDE - 1
    row_NN = apart_NN2[..., 0] * (2 * SIDE - 1) + apart_NN2[..., 1]
    bias_HNN = part.relative_position_bias.relative_position_bias_table[row_NN].permute(2, 0, 1)
    shares = (q @ k.transpose(2, 3) / (WIDTH // 2) ** 0.5 + bias_HNN).softmax(-1)
    middle = x_BND + part.o_proj((shares @ v).transpose(1, 2).flatten(2))
    expected = middle + layer.mlp(layer.layernorm_after(middle))
    torch.testing.assert_close(encode(layer, x_BND, grid, Cuts()), expected, rtol=0, atol=1e-12)


def test_a_layer_meets_grids_of_any_order() -> None:
    _, layer = layers(SIDE // 2)
    cuts = Cuts()
    with torch.inference_mode():  # what is made here must serve training, too
        before = encode(layer, tokens((8, 8)), (8, 8), cuts)
        encode(layer, tokens((2, 2)), (2, 2), cuts)
    after = encode(layer, tokens((8, 8)), (8, 8), cuts)
    after.sum().backward()
    torch.testing.assert_close(before, after.detach(), rtol=0, atol=1e-12)


class Traced(nn.Module):
    """A layer on one grid, as an export sees it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.cuts = layer, Cuts()

    def forward(self, x_BND: Tensor) -> Tensor:
        return encode(self.layer, x_BND, (9, 13), self.cuts)


@torch.no_grad()
def test_a_layer_can_be_exported_for_any_number_of_samples() -> None:
    module = Traced(layers(SIDE // 2)[1]).eval()
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (tokens((9, 13)).detach(),), dynamic_shapes=sizes)
    x_BND = torch.cat([tokens((9, 13)).detach()] * 3)
    torch.testing.assert_close(program.module()(x_BND), module(x_BND), rtol=0, atol=1e-12)
