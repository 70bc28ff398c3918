"""U-Net: the library segmentation-models-pytorch for images, and a small one for sequences.

The library has no one-dimensional models. ``UNet1d`` is the network that PDEBench compares with
(features 32, four halvings, two 3-wide convolutions per level), made of torch's own layers.

Shapes: B samples, C channels, K outputs, L length.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from xmodal.interfaces import Facts, Settings
from xmodal_rivals.neural import NeuralRival, cropped, padded

SMALLEST = 64  # so that batch normalisation sees more than one place at the lowest level


class UNet(NeuralRival):
    """An encoder that halves the sample and a decoder that joins the levels again.

    Images take the U-Net of segmentation-models-pytorch with random weights, sequences one that
    halves them four times. Samples are padded by their last entries to sides that can be halved.
    """

    name = "unet"
    kinds = ("dense",)
    package, distribution = "segmentation_models_pytorch", "segmentation-models-pytorch"
    citation = "Ronneberger et al., U-Net, MICCAI 2015 (arXiv 1505.04597)"

    class Config(Settings):
        encoder: str = Field(
            "resnet34", description="Encoder for images: a name of segmentation-models-pytorch."
        )
        width: PositiveInt = Field(
            32,
            ge=2,
            description="Channels at the top level of sequences, and at the second of the decoder "
            "for images (32: the library's own).",
        )

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """As of all neural rivals, and encoders that the library does not have."""
        yield from super().problems(config, facts)
        if facts.task.form == "grid" and importlib.util.find_spec(cls.package) is not None:
            from segmentation_models_pytorch.encoders import encoders

            if config.encoder not in encoders:
                some = ", ".join(sorted(encoders)[:3])
                yield f"no encoder '{config.encoder}' for images, such as {some}"

    def network(self, config: Config) -> nn.Module:
        """The U-Net for the form of the samples."""
        channels, *sides = self.shape
        if len(sides) == 1:
            return Padded(UNet1d(channels, self.output.size, config.width), sides, 16)
        from segmentation_models_pytorch import Unet

        width = config.width
        network = Unet(
            config.encoder,
            encoder_weights=None,
            decoder_channels=[8 * width, 4 * width, 2 * width, width, width // 2],
            in_channels=channels,
            classes=self.output.size,
        )
        return Padded(network, sides, 32)


class Padded(nn.Module):
    """A network on sides that are multiples of ``step``; its prediction is cut to the sample's."""

    def __init__(self, network: nn.Module, sides: Sequence[int], step: int) -> None:
        super().__init__()
        self.network = network
        self.sides = tuple(sides)
        self.padded = tuple(max(SMALLEST, ceil(side / step) * step) for side in sides)

    def forward(self, x_BC: Tensor) -> Tensor:
        """``[B, C, *shape]`` to ``[B, K, *shape]``."""
        y_BK: Tensor = self.network(padded(x_BC, self.padded))
        return cropped(y_BK, self.sides)


class UNet1d(nn.Module):
    """Four halvings, each with twice the channels; L must be a multiple of 16."""

    def __init__(self, channels: int, outputs: int, width: int, levels: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in pairwise([channels, *widths[:-1]]))
        self.bottom = _double(widths[-2], widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose1d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.join = nn.ModuleList(_double(2 * w, w) for w in widths[-2::-1])
        self.output = nn.Conv1d(width, outputs, 1)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """``[B, C, L]`` to ``[B, K, L]``."""
        kept: list[Any] = []
        for down in self.down:
            x_BCL = down(x_BCL)
            kept.append(x_BCL)
            x_BCL = nn.functional.max_pool1d(x_BCL, 2)
        x_BCL = self.bottom(x_BCL)
        for up, join in zip(self.up, self.join, strict=True):
            x_BCL = join(torch.cat([up(x_BCL), kept.pop()], dim=1))
        prediction: Tensor = self.output(x_BCL)
        return prediction


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [
            nn.Conv1d(width, outputs, 3, padding=1, bias=False),
            nn.BatchNorm1d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
