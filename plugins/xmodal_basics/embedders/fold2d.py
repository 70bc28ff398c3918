"""The ``fold-2d`` embedder: a series folded to a picture, which a vision backbone reads in patches.

Shapes: B samples, C channels, L length, M segments (rows), P steps of a segment (columns), N
tokens, D width.
"""

from __future__ import annotations

from math import ceil, isqrt, sqrt
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from xmodal.interfaces import BackboneFacts, Context, TaskFacts, Use
from xmodal_basics.embedders.base import TokenEmbedder, TokenSettings, check
from xmodal_basics.embedders.patch import copy_projection

LIMIT = 3.0
"""Scaled values are cut off here: pictures have no outliers."""
NORMAL = 1.349
"""Quartiles of a normal distribution are so many standard deviations apart."""


class Fold2d(TokenEmbedder):
    """Lays overlapping segments of ``[B, C, L]`` on top of each other, and resizes to the backbone.

    Each channel of each sample is scaled robustly, (x - median) / (quartile distance / 1.349), cut
    into segments of about the square root of L that begin a tenth of their length apart, and
    stacked: a grey picture with time along rows and across them (TiViT). The token of several
    channels starts as the mean of those of the channels' pictures; ``init: source`` starts the
    kernel of each channel as that of grey, the sum of the pretrained RGB kernel.
    """

    citation = (
        "Roschmann, Bouniot, Feofanov, Redko, Akata: Time Series Representations for "
        "Classification Lie Hidden in Pretrained Vision Transformers (TiViT), arXiv 2506.08641"
    )

    class Config(TokenSettings):
        segment: PositiveInt | None = Field(
            None, description="P, steps of a segment; null: the square root of the length."
        )
        stride: float = Field(
            0.1, gt=0, le=1, description="Where the next segment begins, as a share of a segment."
        )
        size: PositiveInt | tuple[PositiveInt, PositiveInt] | Literal["backbone"] = Field(
            "backbone",
            description="Resize the picture: pixels, height and width, or 'backbone' for the size "
            "the backbone was trained with. Smaller is faster.",
        )
        robust: bool = Field(
            True, description="Scale each series by itself; false keeps levels and amplitudes."
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        channels, length = context.facts.task.shape
        backbone = context.facts.backbone
        assert backbone.patch is not None  # ``grid`` has been asked
        self.size = _size(config, backbone)
        side = backbone.patch
        self.padding = (0, -self.size[1] % side, 0, -self.size[0] % side)
        self.segment, self.step, self.rows = segments(config, length)
        context.note(
            f"embedder: {self.rows} segments of {self.segment} steps, {self.step} apart, as a "
            f"picture of {self.size[0]} x {self.size[1]} pixels"
        )
        self.projection = nn.Conv2d(channels, self.width, side, stride=side)
        pretrained = context.components["backbone"].patch_projection()
        if config.init == "source" and pretrained is not None:
            grey = nn.Conv2d(3, self.width, side)
            copy_projection(pretrained, grey, rescale=False)
            with torch.no_grad():
                self.projection.weight.copy_(grey.weight.sum(1, keepdim=True) / channels)
                assert self.projection.bias is not None
                assert grey.bias is not None
                self.projection.bias.copy_(grey.bias)
            return
        nn.init.trunc_normal_(self.projection.weight, std=0.02, generator=context.generator)
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    @classmethod
    def grid(cls, config: Config, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """Patches down and across. Raises ValueError with the reason if there is no such grid."""
        check("fold-2d", "a sequence (C, L)", "sequence", task, backbone)
        if backbone.patch is None:
            raise ValueError(
                f"embedder 'fold-2d' needs a backbone that reads pictures in patches; backbone "
                f"'{backbone.name}' does not (use conv-1d)"
            )
        if task.shape[1] < segments(config, task.shape[1])[0]:
            raise ValueError(
                f"embedder 'fold-2d': a segment of {config.segment} steps is longer than the "
                f"series of task '{task.name}', which have {task.shape[1]}"
            )
        height, width = _size(config, backbone)
        return ceil(height / backbone.patch), ceil(width / backbone.patch)

    @classmethod
    def shortened(
        cls, use: Use[Any], task: TaskFacts, backbone: BackboneFacts, most: int
    ) -> Use[Any]:
        """A smaller, square picture."""
        size = isqrt(most) * (backbone.patch or 1)
        return Use(use.name, cls, use.config.model_copy(update={"size": size}))

    def fold(self, x: Tensor) -> Tensor:
        """The pictures ``[B, C, M, P]`` of series, before resizing. The last value fills the end.

        Row m holds steps m S to m S + P - 1, S the distance of segments.
        """
        x_BCL = robust(x) if self.config.robust else x
        missing = (self.rows - 1) * self.step + self.segment - x.shape[2]
        x_BCL = torch.cat([x_BCL, x_BCL[..., -1:].expand(-1, -1, missing)], dim=2)
        return x_BCL.unfold(2, self.segment, self.step)

    def project(self, x: Tensor) -> Tensor:
        """Fold, resize, pad and project ``[B, C, L]`` to ``[B, N, D]``, row by row."""
        x_BCHW = functional.interpolate(self.fold(x), self.size, mode="bilinear", antialias=True)
        x_BDhw = self.projection(functional.pad(x_BCHW, self.padding))
        return x_BDhw.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def segments(config: Fold2d.Config, length: int) -> tuple[int, int, int]:
    """P, the steps of a segment; how far apart they begin; and M, the number that covers L."""
    segment = config.segment or max(1, round(sqrt(length)))
    step = max(1, round(config.stride * segment))
    return segment, step, ceil(max(0, length - segment) / step) + 1


def robust(x_BCL: Tensor) -> Tensor:
    """Each series by its own median and quartiles, within ``LIMIT``.

    By its standard deviation where the quartiles are equal; a constant series becomes 0.
    """
    sorted_BCL = x_BCL.sort(dim=2).values
    low, middle, high = (_quantile(sorted_BCL, q) for q in (0.25, 0.5, 0.75))
    scale = (high - low) / NORMAL
    deviation = x_BCL.std(dim=2, correction=0, keepdim=True)
    # Rounding makes differences out of nothing, as large as the numbers themselves allow.
    tiny = 1e-6 * sorted_BCL.abs().amax(dim=2, keepdim=True)
    scale = torch.where(scale > tiny, scale, deviation)
    scale = torch.where(scale > tiny, scale, 1)
    return ((x_BCL - middle) / scale).clamp(-LIMIT, LIMIT)


def _quantile(sorted_BCL: Tensor, share: float) -> Tensor:
    """Between the two nearest values, as numpy does by default."""
    place = share * (sorted_BCL.shape[2] - 1)
    low = int(place)
    high = min(low + 1, sorted_BCL.shape[2] - 1)
    below, above = sorted_BCL[..., low, None], sorted_BCL[..., high, None]
    return below + (place - low) * (above - below)


def _size(config: Fold2d.Config, backbone: BackboneFacts) -> tuple[int, int]:
    """Height and width of the resized picture in pixels."""
    if config.size == "backbone":
        if backbone.patch is None or len(backbone.grid) != 2:
            raise ValueError(
                f"embedder 'fold-2d': backbone '{backbone.name}' was not trained with images of "
                "one size (set 'size' in pixels)"
            )
        return backbone.grid[0] * backbone.patch, backbone.grid[1] * backbone.patch
    return (config.size, config.size) if isinstance(config.size, int) else config.size
