"""A gated dilated convolutional network for long sequences, such as DNA.

Shapes: B samples, C channels, L length, D width, K outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from xmodal.interfaces import Settings
from xmodal_rivals.neural import NeuralRival


class GatedCNN(NeuralRival):
    """Blocks of two dilated convolutions, of which one gates the other; nothing is downsampled.

    After ConvNova: dilations that grow from block to block, gating, a fixed width. The prediction
    is linear in the mean over the sequence, or in each place for labels along it.
    """

    name = "gated-cnn"
    forms = ("sequence",)
    citation = "Bo et al., ConvNova, ICLR 2025 (arXiv 2502.18538)"

    class Config(Settings):
        width: PositiveInt = Field(128, description="Channels.")
        kernel: PositiveInt = Field(9, description="Taps of every convolution; odd.")
        dilations: tuple[PositiveInt, ...] = Field(
            (1, 1, 2, 4, 8, 16), min_length=1, description="Of each block."
        )
        dropout: float = Field(0.1, ge=0, lt=1, description="Drop-out in every block.")

    @classmethod
    def problems(cls, config: Config, facts: Any) -> Any:
        """As of all neural rivals, and even kernels, which have no middle."""
        yield from super().problems(config, facts)
        if config.kernel % 2 == 0:
            yield f"kernel must be odd, not {config.kernel}"

    def network(self, config: Config) -> nn.Module:
        """Stem, blocks and a linear output."""
        return Gated(self.shape[0], self.output.size, config, self.output.kind == "dense")


class Gated(nn.Module):
    """The network; it sees ``receptive_field`` places around each place."""

    def __init__(self, channels: int, outputs: int, config: Any, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.stem = nn.Conv1d(channels, config.width, config.kernel, padding=config.kernel // 2)
        self.blocks = nn.ModuleList(
            _GatedBlock(config.width, config.kernel, dilation, config.dropout)
            for dilation in config.dilations
        )
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Conv1d(config.width, outputs, 1)
        reach = config.kernel - 1
        self.receptive_field = 1 + reach + reach * sum(config.dilations)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """``[B, C, L]`` to ``[B, K]`` or ``[B, K, L]``."""
        x_BDL = self.stem(x_BCL)
        for block in self.blocks:
            x_BDL = block(x_BDL)
        if not self.dense:
            x_BDL = x_BDL.mean(dim=2, keepdim=True)
        y_BKL: Tensor = self.output(self.norm(x_BDL.transpose(1, 2)).transpose(1, 2))
        return y_BKL if self.dense else y_BKL.flatten(1)


class _GatedBlock(nn.Module):
    """Normalisation per place, two dilated convolutions, a gate, a 1-wide convolution, a skip."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.value = nn.Conv1d(width, width, kernel, padding=padding, dilation=dilation)
        self.gate = nn.Conv1d(width, width, kernel, padding=padding, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BDL: Tensor) -> Tensor:
        ready_BDL = self.norm(x_BDL.transpose(1, 2)).transpose(1, 2)
        gated_BDL = nn.functional.gelu(self.value(ready_BDL)) * torch.sigmoid(self.gate(ready_BDL))
        joined: Tensor = x_BDL + self.dropout(self.mix(gated_BDL))
        return joined
