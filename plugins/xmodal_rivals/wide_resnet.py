"""The wide residual network, for images and sequences and for every kind of label.

Shapes: B samples, C channels, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from xmodal.interfaces import Facts, Settings, Target
from xmodal_rivals.neural import NeuralRival, batch_norm, convolution, cropped

Make = Callable[[int, int, int, Sequence[int]], nn.Module]
"""Makes a convolution from inputs, outputs, stride and the sides of what it reads."""


class WideResNetSettings(Settings):
    """Size of a wide residual network: WRN-depth-factor."""

    depth: PositiveInt = Field(16, description="Layers with weights: 6n + 4.")
    factor: PositiveInt = Field(4, description="How many times wider than a ResNet.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Drop-out between two convolutions.")


class WideResNet(NeuralRival):
    """Three groups of pre-activation blocks with 16, 32 and 64 times ``factor`` channels.

    Labels of a whole sample take the mean over its places; labels on a grid take the outputs of the
    three groups, repeated to the full size and side by side.
    """

    name = "wide-resnet"
    citation = "Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016 (arXiv 1605.07146)"
    Config = WideResNetSettings

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """As of all neural rivals, and depths that it cannot have."""
        yield from super().problems(config, facts)
        if config.depth < 10 or config.depth % 6 != 4:
            yield f"depth must be 10, 16, 22, 28 or another 6n + 4, not {config.depth}"

    def network(self, config: Any) -> nn.Module:
        """A network with 3-wide convolutions."""
        return Residual(self.shape, self.output, config, plain)


def plain(inputs: int, outputs: int, stride: int, sides: Sequence[int]) -> nn.Module:
    """A 3-wide convolution."""
    return convolution(len(sides))(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class Residual(nn.Module):
    """The network, with convolutions made by ``make``."""

    def __init__(
        self, shape: Sequence[int], output: Target, config: WideResNetSettings, make: Make
    ) -> None:
        super().__init__()
        channels, *sides = shape
        self.sides, axes = tuple(sides), len(sides)
        self.dense = output.kind == "dense"
        widths = [16 * config.factor * 2**group for group in range(3)]
        self.stem = make(channels, 16, 1, sides)
        self.groups = nn.ModuleList()
        inputs = 16
        for group, width in enumerate(widths):
            blocks = []
            for block in range((config.depth - 4) // 6):
                stride = 2 if group and not block else 1
                blocks.append(_WideBlock(inputs, width, stride, sides, config.dropout, make))
                sides = [-(-side // stride) for side in sides]
                inputs = width
            self.groups.append(nn.Sequential(*blocks))
        features = sum(widths) if self.dense else widths[-1]
        self.norm = batch_norm(axes)(features)
        self.output = convolution(axes)(features, output.size, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *sides]`` to ``[B, K]`` or ``[B, K, *sides]``."""
        x, levels = self.stem(x), []
        for number, group in enumerate(self.groups):
            x = group(x)
            levels.append(repeated(x, 2**number, self.sides) if self.dense else x)
        features = torch.cat(levels, dim=1) if self.dense else x
        features = self.norm(features).relu()
        if self.dense:
            dense: Tensor = self.output(features)
            return dense
        pooled = features.flatten(2).mean(dim=2).view(*features.shape[:2], *[1] * len(self.sides))
        prediction: Tensor = self.output(pooled)
        return prediction.flatten(1)


class _WideBlock(nn.Module):
    """Two convolutions with normalisation and ReLU before each, and a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        sides: Sequence[int],
        dropout: float,
        make: Make,
    ) -> None:
        super().__init__()
        axes = len(sides)
        self.norm1, self.norm2 = batch_norm(axes)(inputs), batch_norm(axes)(outputs)
        self.conv1 = make(inputs, outputs, stride, sides)
        self.conv2 = make(outputs, outputs, 1, [-(-side // stride) for side in sides])
        self.dropout = nn.Dropout(dropout)
        self.shortcut: nn.Module | None = None
        if inputs != outputs or stride > 1:
            self.shortcut = convolution(axes)(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = self.norm1(x).relu()
        short = x if self.shortcut is None else self.shortcut(ready)
        inner = self.norm2(self.conv1(ready)).relu()
        joined: Tensor = short + self.conv2(self.dropout(inner))
        return joined


def repeated(x: Tensor, times: int, sides: Sequence[int]) -> Tensor:
    """Every place ``times`` times along every axis, cut to ``sides``."""
    for axis in range(2, x.dim()) if times > 1 else ():
        shape = list(x.shape)
        shape.insert(axis + 1, times)
        x = x.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
    return cropped(x, sides)
