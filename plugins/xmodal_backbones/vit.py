"""Plain vision transformers of the Hugging Face families ViT, DeiT and DINOv2.

Tokens are the patch projection plus the position embedding. Class and register tokens belong to the
backbone, which adds them in front and drops them at the end.

Shapes: B samples, N tokens, D width, P prefix tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.interfaces import LibraryModel
from xmodal_backbones import weights
from xmodal_backbones.common import PatchBackbone

FAMILIES = ("vit", "deit", "dinov2", "dinov2_with_registers")


def interpolate(native_ND: Tensor, grid: tuple[int, int], antialias: bool = False) -> Tensor:
    """Position embeddings of a square grid, bicubically resized as the library does: ``[N, D]``.

    The library applies the antialiasing filter in only one family, so the caller chooses.
    """
    side = round(native_ND.shape[0] ** 0.5)
    if grid == (side, side):
        return native_ND
    map_1DHW = native_ND.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    sized_1DHW = functional.interpolate(
        map_1DHW, size=grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    return sized_1DHW.flatten(2)[0].T.to(native_ND.dtype)


class PatchEmbedding(nn.Module):
    """The frozen embedding of source images: patch projection and patch positions ``[N, D]``."""

    def __init__(self, projection: nn.Conv2d, positions_ND: Tensor, antialias: bool) -> None:
        super().__init__()
        self.projection = projection
        self.positions_ND = nn.Parameter(positions_ND.detach().clone())
        self.antialias = antialias

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Patch positions resized to a grid."""
        return interpolate(self.positions_ND, grid, self.antialias)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed images ``[B, 3, H, W]``; H and W may be any multiple of the patch."""
        map_BDHW = self.projection(x_BCHW)
        grid = (map_BDHW.shape[2], map_BDHW.shape[3])
        return map_BDHW.flatten(2).transpose(1, 2) + self.positions(grid), grid


class VisionBackbone(PatchBackbone):
    """The layers of a vision transformer between its embedding and its head."""

    def adopt(self, model: Any) -> None:
        """Take over the parts of a Hugging Face model of one of ``FAMILIES``."""
        old = model.embeddings
        prefix = [old.cls_token]
        if (extra := getattr(old, "distillation_token", None)) is not None:
            prefix.append(extra)
        first = len(prefix)
        positions_1ND = old.position_embeddings
        # A prefix token and its position occur only as a sum, so one parameter is enough.
        prefix_1PD = torch.cat(prefix, dim=1) + positions_1ND[:, :first]
        if (registers_1RD := getattr(old, "register_tokens", None)) is not None:
            prefix_1PD = torch.cat([prefix_1PD, registers_1RD], dim=1)
        self.prefix_1PD = nn.Parameter(prefix_1PD.detach().clone())
        # The attribute of the layers differs between versions of transformers; these keys do not.
        self.layers = model.encoder.layer if hasattr(model, "encoder") else model.layers
        self.norm = model.layernorm
        projection = old.patch_embeddings.projection
        self.hf_config = model.config
        antialias = model.config.model_type == "dinov2_with_registers"
        self.keep_embedding(PatchEmbedding(projection, positions_1ND[0, first:], antialias))

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode tokens ``[B, N, D]`` of any grid; the grid does not change."""
        x_BND = tokens.x_BND
        prefix_BPD = self.prefix_1PD.expand(x_BND.shape[0], -1, -1).to(x_BND.dtype)
        x_BMD = torch.cat([prefix_BPD, x_BND], dim=1)
        for layer in self.layers:
            out = layer(x_BMD)
            x_BMD = out[0] if isinstance(out, tuple) else out
        return Tokens(self.norm(x_BMD)[:, prefix_BPD.shape[1] :], tokens.grid)

    def recomputable(self) -> Iterable[nn.Module]:
        """The layers."""
        return self.layers  # type: ignore[no-any-return]

    def library_model(self) -> LibraryModel:
        """The layers, with a dummy embedding of one patch, because they read tokens, not images."""
        hf_config = copy.deepcopy(self.hf_config)
        hf_config.num_hidden_layers = len(self.layers)
        hf_config.image_size = hf_config.patch_size
        state = {f"layers.{key}": value for key, value in self.layers.state_dict().items()}
        state |= {f"layernorm.{key}": value for key, value in self.norm.state_dict().items()}
        return weights.library_model(hf_config, state, self.prefix_1PD.detach())
