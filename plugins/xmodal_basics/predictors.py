"""Heads: map the features of a backbone to predictions.

``classification``, ``multi-label`` and ``regression`` average the tokens. ``dense-2d`` and
``dense-1d`` predict a small piece of the output from every token and join the pieces.

Shapes: B samples, N tokens, F features, K outputs, M maps, R side (or length) of the piece that a
token predicts; H and W, or L, the size of the output.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import ceil, prod
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Facts, Predictor, Settings, Target

REFINE_WIDTH = 32


class _Linear(Predictor):
    """A head on features of a known width."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.output = wanted(context)

    @classmethod
    def problems(cls, config: Settings, facts: Facts) -> Iterable[str]:
        """A linear layer needs features of a fixed width."""
        if facts.backbone.feature_width == 0:
            yield f"backbone '{facts.backbone.name}' has features of no fixed width for a head"


class Pooled(_Linear):
    """The mean over all tokens, then one linear layer: ``[B, K]``."""

    class Config(Settings):
        dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the linear layer.")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = linear(
            context.facts.backbone.feature_width, self.output.size, context.generator
        )

    @classmethod
    def supports(cls, output: Target) -> bool:
        """One number per output, without a spatial shape."""
        return output.kind != "dense"

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``."""
        prediction_BK: Tensor = self.linear(self.dropout(features.x_BND.mean(dim=1)))
        return prediction_BK


class Classification(Pooled):
    """One logit per class."""

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Exactly one class per sample."""
        return output.kind == "classification"


class MultiLabel(Pooled):
    """One logit per label."""

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Any number of labels per sample."""
        return output.kind == "multi-label"


class Regression(Pooled):
    """One number per quantity."""

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Numbers without a spatial shape."""
        return output.kind == "regression"


class Dense2d(_Linear):
    """Every token predicts ``maps`` squares of R x R pixels; the image is fitted to the output.

    If the token grid divides the output size, R is chosen to fit the output exactly. Otherwise R is
    the backbone's patch side times its reduction (Swin: 32), which gives the image the resolution
    of the backbone's input. Samples of native size were padded at the right and the bottom, which
    makes the image less than one token too large; it is then cropped. In all other cases it is
    resized. ``maps: 3, upscale: 32, resize: adaptive-pool`` on Swin is the published head (1 x 1
    convolution, pixel shuffle, pooling).
    """

    class Config(Settings):
        maps: PositiveInt | None = Field(
            None,
            description="Channels of the image, pooled to the number of outputs; null makes one "
            "per output.",
        )
        upscale: PositiveInt | None = Field(
            None, description="R, pixels per token along each side; null applies the rule."
        )
        fit: Literal["auto", "crop", "resize"] = Field(
            "auto", description="Crop the image to the output, or resize it; 'auto' as documented."
        )
        resize: Literal["bilinear", "adaptive-pool"] = Field(
            "bilinear", description="How to resize; bilinear is antialiased."
        )
        refine: NonNegativeInt = Field(
            0,
            description="Layers of 3 x 3 convolutions whose output is added to the image to remove "
            f"seams between tokens (width {REFINE_WIDTH}; at the start they change nothing).",
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.maps = config.maps or self.output.size
        self.upscale = config.upscale or upscale_2d(context.facts, self.output.shape)
        outputs = self.maps * self.upscale**2
        self.project = linear(context.facts.backbone.feature_width, outputs, context.generator)
        self.refine = refinement(self.maps, config.refine, context.generator)

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Numbers on a 2-D grid; a shape that is still unknown passes."""
        return output.kind == "dense" and len(output.shape) in (0, 2)

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K, H, W]``."""
        x_BNO = self.project(features.x_BND)
        x_BOhw = x_BNO.transpose(1, 2).unflatten(2, features.grid)
        image_BMHW = functional.pixel_shuffle(x_BOhw, self.upscale)
        for dim, side in zip((-2, -1), self.output.shape, strict=True):
            image_BMHW = self.fitted(image_BMHW, dim, side)
        if self.refine is not None:
            image_BMHW = image_BMHW + self.refine(image_BMHW)
        if self.maps != self.output.size:
            return resized(image_BMHW, 1, self.output.size, "adaptive-pool")
        return image_BMHW

    def fitted(self, image: Tensor, dim: int, side: int) -> Tensor:
        """Crop or resize one axis of the image to ``side``."""
        surplus = image.shape[dim] - side
        crop = self.config.fit == "crop" or (
            self.config.fit == "auto" and 0 <= surplus < self.upscale
        )
        if crop and surplus >= 0:
            return image.narrow(dim, 0, side)
        return resized(image, dim, side, self.config.resize)


class Dense1d(_Linear):
    """Every token predicts R consecutive values per output; the sequence is cut to its length.

    ``head: pool`` is the published head without parameters: it pools the F features of each token
    to K * R values.
    """

    class Config(Settings):
        head: Literal["linear", "pool"] = Field(
            "linear", description="A learned linear layer, or pooled features."
        )
        upscale: PositiveInt | None = Field(
            None, description="R, values per token; null takes length / tokens, rounded up."
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        width = context.facts.backbone.feature_width
        (length,) = self.output.shape
        tokens = prod(feature_grid(context.facts))
        self.upscale = config.upscale or ceil(length / tokens)
        values = self.output.size * self.upscale
        self.project = (
            nn.AdaptiveAvgPool1d(values)
            if config.head == "pool"
            else linear(width, values, context.generator)
        )

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Numbers along a sequence; a shape that is still unknown passes."""
        return output.kind == "dense" and len(output.shape) in (0, 1)

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K, L]``."""
        pieces_BNKR = self.project(features.x_BND).unflatten(2, (self.output.size, self.upscale))
        sequence_BKL: Tensor = pieces_BNKR.transpose(1, 2).flatten(2)
        (length,) = self.output.shape
        if 0 <= sequence_BKL.shape[2] - length < self.upscale:
            return sequence_BKL[..., :length]
        return resized(sequence_BKL, 2, length, "bilinear")


class Dense(_Linear):
    """``dense-2d`` or ``dense-1d``, whichever fits; the settings of the other are ignored."""

    class Config(Dense2d.Config, Dense1d.Config):
        pass

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        part = Dense1d if len(self.output.shape) == 1 else Dense2d
        settings = {name: getattr(config, name) for name in part.Config.model_fields}
        self.head: Dense1d | Dense2d = part(part.Config(**settings), context)  # type: ignore[arg-type]

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Numbers on a grid or along a sequence."""
        return output.kind == "dense" and len(output.shape) <= 2

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K, *shape]``."""
        prediction: Tensor = self.head(features)
        return prediction


def wanted(context: Context) -> Target:
    """What to predict: ``context.output``, or the task's target."""
    return context.output or context.facts.task.target


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's default initialisation, drawn from ``generator``."""
    layer = nn.Linear(inputs, outputs)
    bound = inputs**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def refinement(maps: int, layers: int, generator: torch.Generator) -> nn.Sequential | None:
    """``layers`` 3 x 3 convolutions from ``maps`` to ``maps`` channels; the last starts at zero."""
    if layers == 0:
        return None
    widths = [maps, *[REFINE_WIDTH] * (layers - 1), maps]
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, generator=generator)
        parts += [convolution, nn.GELU()]
    nn.init.zeros_(convolution.weight)
    return nn.Sequential(*parts[:-1])


def feature_grid(facts: Facts) -> tuple[int, ...]:
    """The grid of the target's features: the token grid divided by the backbone's reduction."""
    return tuple(ceil(side / facts.backbone.reduction) for side in facts.grid)


def upscale_2d(facts: Facts, shape: tuple[int, ...]) -> int:
    """Output pixels per feature along each side, by the rule of ``Dense2d``."""
    backbone = facts.backbone
    pairs = list(zip(shape, feature_grid(facts), strict=True))
    covered = {ceil(side / count) for side, count in pairs}
    divides = all(side % count == 0 for side, count in pairs)
    if backbone.patch is not None and not (divides and len(covered) == 1):
        return backbone.patch * backbone.reduction
    return max(covered)


def resized(x: Tensor, dim: int, side: int, how: Literal["bilinear", "adaptive-pool"]) -> Tensor:
    """Resize one axis by a matrix product equal to torch's own resizing.

    Both methods are separable and linear. The gradient of a matrix product is deterministic on
    every device; torch's own kernels are not on CUDA.
    """
    if x.shape[dim] == side:
        return x
    identity = torch.eye(x.shape[dim], device=x.device)
    if how == "adaptive-pool":
        matrix = functional.adaptive_avg_pool1d(identity, side)
    else:
        size = (x.shape[dim], side)
        matrix = functional.interpolate(
            identity[None, None], size, mode="bilinear", antialias=True
        )[0, 0]
    return (x.movedim(dim, -1) @ matrix.to(x.dtype)).movedim(-1, dim)


class AutoPredictor(_Linear):
    """``dense`` for labels on a grid or along a sequence, ``pooled`` for everything else."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        dense = wanted(context).kind == "dense"
        self.part: Predictor = (
            Dense(Dense.Config(), context) if dense else Pooled(Pooled.Config(), context)
        )

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]`` or ``[B, K, *shape]``."""
        prediction: Tensor = self.part(features)
        return prediction
