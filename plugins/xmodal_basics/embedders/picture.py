"""The embedders ``as-picture`` and ``as-pretrained``: samples read as in pretraining.

For bodies that stay frozen: nothing here has to be learned where the body reads pictures.

Shapes: B samples, C channels, H and W pixels, N tokens, D width.
"""

from __future__ import annotations

from math import sqrt
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from xmodal.interfaces import BackboneFacts, Context, TaskFacts
from xmodal_basics.embedders.auto import NAMES, PARTS, AutoEmbedder
from xmodal_basics.embedders.base import TokenEmbedder, TokenSettings, check
from xmodal_basics.embedders.patch import copy_projection


class Picture(TokenEmbedder):
    """Resizes a grid to the body's own patches and embeds it as the body embeds photographs.

    One channel is a grey picture: it goes to red, green and blue. Three are red, green and blue. Of
    other numbers, channel c goes to colour c mod 3, and the sum is scaled by 3 / C. Samples are
    taken as the task standardises them.
    """

    class Config(TokenSettings):
        """Settings of ``as-picture``."""

        cells: PositiveInt = Field(
            64,
            description="About how many cells the body's features shall have; a sample is resized "
            "to so many patches (bilinear, antialiased) and keeps the ratio of its sides.",
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        channels, patch = context.facts.task.shape[0], context.facts.backbone.patch
        assert patch is not None  # or there would be no grid
        self.size = tuple(side * patch for side in self.token_grid)
        self.projection = nn.Conv2d(channels, self.width, patch, stride=patch)
        pretrained = context.components["backbone"].patch_projection()
        if config.init == "random" or pretrained is None:
            nn.init.trunc_normal_(self.projection.weight, std=0.02, generator=context.generator)
            nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]
            return
        copy_projection(pretrained, self.projection, rescale=True)
        if channels == 1:
            with torch.no_grad():
                self.projection.weight.copy_(pretrained.weight.sum(1, keepdim=True))

    @classmethod
    def grid(cls, config: Config, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """Patches down and across. Raises ValueError where there is no picture or no patch."""
        check("as-picture", "a grid (C, H, W)", "grid", task, backbone)
        if backbone.patch is None:
            raise ValueError(
                f"embedder 'as-picture' needs a backbone that reads pictures; '{backbone.name}' "
                "does not (choose one, such as vit-s14, or set embedder=auto)"
            )
        height, width = task.shape[1:]
        down = max(1, round(sqrt(config.cells * height / width)))
        across = max(1, round(config.cells / down))
        return down * backbone.reduction, across * backbone.reduction

    def project(self, x: Tensor) -> Tensor:
        """Resize and project ``[B, C, H, W]`` to ``[B, N, D]``, row by row."""
        if x.shape[2:] != self.size:
            x = functional.interpolate(x, self.size, mode="bilinear", antialias=True)
        return self.projection(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def calibrate(self, x: Tensor, source_norm: float | None) -> None:
        """Nothing: these are the tokens that the body was pretrained on."""


class OwnEmbedder(AutoEmbedder):
    """``as-picture`` for grids; for sequences and table rows, which no body embeds, as ``auto``."""

    parts: ClassVar = {**PARTS, "grid": Picture}
    names: ClassVar = {**NAMES, "grid": "as-picture"}
