"""The forward pass of a Swin layer, with the weights of the library's layer.

The library's own layer shrinks its window for good when it meets a small grid, copies all tokens
eight times to shift them, and reads its position table in a way whose gradient is many kernels on
a GPU.

Shapes: B samples, N tokens, D width, W windows, A places of a window, S = A * W, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xmodal_backbones.windows import Windows, offsets, rearrange, windows


class Cuts:
    """The windows of every grid that a model has met, and what depends on them, on their device."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Windows, Tensor]] = {}

    def of(self, layer: Any, grid: tuple[int, ...], like: Tensor) -> tuple[Windows, Tensor]:
        """The windows of ``layer`` on ``grid``, and its one-hot offsets in the type of ``like``."""
        side = layer.window_size
        shift = 0 if min(grid) <= side else layer.shift_size
        key = (grid, side, shift, like.device, like.dtype)
        if key in self._known:
            return self._known[key]
        # They outlive the block they are made in: one without gradients, or the trace of an export.
        with torch.inference_mode(False), torch.no_grad():
            made = windows(grid, side, shift, like.device), offsets(side, like)
        if not torch.compiler.is_compiling():
            self._known[key] = made
        return made


def encode(layer: Any, x_BND: Tensor, grid: tuple[int, ...], cuts: Cuts) -> Tensor:
    """What ``layer`` makes of tokens; incomplete windows are filled."""
    cut, one_hot = cuts.of(layer, grid, x_BND)
    rows_BSD = rearrange(layer.layernorm_before(x_BND), cut.into, cut.back)
    read_BSD = attend(layer.attention, rows_BSD, cut, one_hot, layer.training)
    x_BND = x_BND + layer.drop_path(rearrange(_drop(layer)(read_BSD), cut.back, cut.into))
    return x_BND + _mlp(layer, layer.layernorm_after(x_BND))


def attend(
    attention: Any, rows_BSD: Tensor, cut: Windows, one_hot: Tensor, training: bool
) -> Tensor:
    """Self-attention within windows."""
    projections, out, table, heads, dropout = _parts(attention)
    area = rows_BSD.shape[1] // cut.number
    # Windows and heads are one axis: it costs no copy, because rows are ordered by place first.
    split = (rows_BSD.shape[0], area, cut.number * heads, -1)
    q, k, v = (project(rows_BSD).reshape(split).transpose(1, 2) for project in projections)
    bias_HAA = (one_hot @ table).T.reshape(heads, area, area)
    bias_WHAA = bias_HAA.expand(cut.number, -1, -1, -1)
    if cut.mask_WAA is not None:
        bias_WHAA = bias_WHAA + cut.mask_WAA[:, None].to(bias_HAA.dtype)
    read = functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=bias_WHAA.reshape(1, cut.number * heads, area, area),
        dropout_p=dropout if training else 0.0,
    )
    read_BSD = read.transpose(1, 2).reshape(rows_BSD.shape)
    written: Tensor = out(read_BSD)
    return written


def _parts(attention: Any) -> tuple[tuple[nn.Module, ...], nn.Module, Tensor, int, float]:
    """Projections of queries, keys, values and output, position table, heads, dropout of scores."""
    if hasattr(attention, "q_proj"):
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        table = attention.relative_position_bias.relative_position_bias_table
        heads, dropout = attention.num_attention_heads, attention.attention_dropout
        return projections, attention.o_proj, table, heads, dropout
    # The names of transformers 5.0.
    inner = attention.self
    projections = inner.query, inner.key, inner.value
    table, heads = inner.relative_position_bias_table, inner.num_attention_heads
    return projections, attention.output.dense, table, heads, inner.dropout.p


def _drop(layer: Any) -> nn.Module:
    """Dropout after attention."""
    new = hasattr(layer, "dropout")
    dropout: nn.Module = layer.dropout if new else layer.attention.output.dropout
    return dropout


def _mlp(layer: Any, x_BND: Tensor) -> Tensor:
    """The layer's MLP with its dropout."""
    new = hasattr(layer, "mlp")
    out: Tensor = (
        layer.dropout(layer.mlp(x_BND)) if new else layer.output(layer.intermediate(x_BND))
    )
    return out
