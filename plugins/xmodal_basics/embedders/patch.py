"""The ``patch`` embedder: grids of any number of channels, cut into square patches.

Shapes: B samples, C channels, H and W pixels, P patch side, N tokens, D width.
"""

from __future__ import annotations

from math import ceil, nan
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from xmodal.interfaces import BackboneFacts, Context, TaskFacts, Use
from xmodal_basics.embedders.base import TokenEmbedder, TokenSettings, check


class Patch(TokenEmbedder):
    """Cuts ``[B, C, H, W]`` into patches and projects each with one convolution.

    A sample at its native size is padded with zeros at the right and the bottom to a multiple of
    the patch. ``init: source`` tiles the pretrained RGB kernel along the input channels, as in
    ORCA.
    """

    class Config(TokenSettings):
        size: PositiveInt | tuple[PositiveInt, PositiveInt] | Literal["native", "backbone"] = Field(
            "native",
            description="Resize samples first (bilinear, antialiased): pixels, height and width, "
            "'backbone' for the size the backbone was trained with, or 'native' for no resizing.",
        )
        patch: PositiveInt | None = Field(
            None, description="Side of a patch in pixels; null takes the backbone's."
        )
        channel_rescale: bool = Field(
            False,
            description="Multiply the tiled kernel by 3 / channels, so that its response does not "
            "grow with the number of channels. The published code does not.",
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        task, backbone = context.facts.task, context.facts.backbone
        self.size = _size(config, task, backbone)
        self.resize = self.size != task.shape[1:]
        side = _patch(config, backbone)
        self.padding = (0, -self.size[1] % side, 0, -self.size[0] % side)
        self.projection = nn.Conv2d(task.shape[0], self.width, side, stride=side)
        pretrained = context.components["backbone"].patch_projection()
        if config.init == "source" and pretrained is not None:
            copy_projection(pretrained, self.projection, config.channel_rescale)
            return
        if config.init == "source":
            context.note(f"embedder: {backbone.name} has no patch projection; it starts at random")
        nn.init.trunc_normal_(self.projection.weight, std=0.02, generator=context.generator)
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    @classmethod
    def grid(cls, config: Config, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """Patches down and across. Raises ValueError with the reason if there is no such grid."""
        check("patch", "a grid (C, H, W)", "grid", task, backbone)
        side = _patch(config, backbone)
        height, width = _size(config, task, backbone)
        return ceil(height / side), ceil(width / side)

    @classmethod
    def shortened(
        cls, use: Use[Any], task: TaskFacts, backbone: BackboneFacts, most: int
    ) -> Use[Any]:
        """Larger patches: the smallest ones of which no more fit."""
        height, width = _size(use.config, task, backbone)
        sides = range(_patch(use.config, backbone), max(height, width) + 1)
        side = next((s for s in sides if ceil(height / s) * ceil(width / s) <= most), None)
        if side is None:
            return use
        return Use(use.name, cls, use.config.model_copy(update={"patch": side}))

    def project(self, x: Tensor) -> Tensor:
        """Resize, pad and project ``[B, C, H, W]`` to ``[B, N, D]``, row by row."""
        x_BDhw = self.projection(functional.pad(self._sized(x), self.padding))
        return x_BDhw.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def pieces(self, x: Tensor) -> Tensor | None:
        """``[B, N, C * P * P]``: channel after channel the pixels of each patch, row by row."""
        x_BCHW = functional.pad(self._sized(x), self.padding, value=nan)
        side = self.projection.kernel_size[0]
        return functional.unfold(x_BCHW, side, stride=side).transpose(1, 2)

    def _sized(self, x: Tensor) -> Tensor:
        if not self.resize:
            return x
        return functional.interpolate(x, self.size, mode="bilinear", antialias=True)


@torch.no_grad()
def copy_projection(pretrained: nn.Conv2d, projection: nn.Conv2d, rescale: bool) -> None:
    """Copy a pretrained patch projection to one with other channels and another patch side.

    Channel c gets the kernel of pretrained channel c mod 3, so a single channel gets that of red.
    If the patch sides differ, the kernel is resampled by FlexiViT's pseudo-inverse (Beyer et al.
    2023, eq. 5).
    """
    weight = pretrained.weight
    if pretrained.kernel_size != projection.kernel_size:
        # Imported late: the import would take a third of a small run on a table, which needs none.
        from timm.layers import resample_patch_embed

        weight = resample_patch_embed(weight, list(projection.kernel_size))
    known, channels = pretrained.in_channels, projection.in_channels
    weight = weight[:, torch.arange(channels, device=weight.device) % known]
    projection.weight.copy_(weight * (known / channels) if rescale else weight)
    if projection.bias is not None:
        source = pretrained.bias
        projection.bias.copy_(torch.zeros_like(projection.bias) if source is None else source)


def _patch(config: Patch.Config, backbone: BackboneFacts) -> int:
    """The patch side in pixels. Raises ValueError if neither recipe nor backbone has one."""
    side = config.patch or backbone.patch
    if side is None:
        raise ValueError(
            f"embedder 'patch' needs a patch side; backbone '{backbone.name}' has none "
            "(set 'patch')"
        )
    return side


def _size(config: Patch.Config, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, int]:
    """Height and width in pixels before padding."""
    if config.size == "native":
        return task.shape[1], task.shape[2]
    if config.size == "backbone":
        if backbone.patch is None or len(backbone.grid) != 2:
            raise ValueError(
                f"embedder 'patch': backbone '{backbone.name}' was not trained with images of one "
                "size (set 'size' in pixels, or to native)"
            )
        return backbone.grid[0] * backbone.patch, backbone.grid[1] * backbone.patch
    return (config.size, config.size) if isinstance(config.size, int) else config.size
