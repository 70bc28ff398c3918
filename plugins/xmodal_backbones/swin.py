"""Swin transformers: the backbones of the ORCA and PaRe papers.

Tokens are the patch projection with its LayerNorm. Positions are relative, within windows. The
feature grid is eight times coarser than the token grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.interfaces import BackboneFacts, Context, Facts, LibraryModel
from xmodal_backbones import weights
from xmodal_backbones.common import (
    ImageBackbone,
    ImageBackboneSettings,
    needs_2d,
    with_image_dropout,
)
from xmodal_backbones.swin_layer import Cuts, encode


class SwinBackbone(ImageBackbone):
    """The stages of a Hugging Face Swin transformer between its embedding and its head."""

    def adopt(self, model: Any) -> None:
        """Take over the parts of a ``SwinModel``."""
        self.encoder = model.encoder
        for layer in self.recomputable():
            layer.forward = MethodType(encode, layer)
        self.cuts = Cuts()
        self.norm = model.layernorm
        self.keep_embedding(model.embeddings)
        self.hf_config = model.config

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Windows need a 2-D grid."""
        return needs_2d(facts)

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode tokens of any 2-D grid; incomplete windows are padded."""
        x_BND, grid = tokens.x_BND, tuple(tokens.grid)
        for stage in self.encoder.layers:
            for layer in stage.blocks:
                x_BND = layer(x_BND, grid, self.cuts)
            if stage.downsample is not None:
                x_BND = stage.downsample(x_BND, grid)
                grid = tuple((side + 1) // 2 for side in grid)
        return Tokens(self.norm(x_BND), grid)

    def recomputable(self) -> Iterable[nn.Module]:
        """The layers of all stages."""
        return [layer for stage in self.encoder.layers for layer in stage.blocks]

    def library_model(self) -> LibraryModel:
        """The stages, whose layers in the library are wrong on grids smaller than the window."""
        state = {f"encoder.{key}": value for key, value in self.encoder.state_dict().items()}
        state |= {f"layernorm.{key}": value for key, value in self.norm.state_dict().items()}
        return weights.library_model(self.hf_config, state)

    def embed(self, x: Tensor) -> Tokens:
        """Embed prepared images ``[B, 3, H, W]``."""
        absolute = self.embedding.position_embeddings is not None
        x_BND, grid = self.embedding(x, interpolate_pos_encoding=absolute)
        return Tokens(x_BND, tuple(grid))

    def patch_projection(self) -> nn.Conv2d:
        """The pretrained patch projection."""
        projection: nn.Conv2d = self.embedding.patch_embeddings.projection
        return projection

    def embedding_norm(self) -> nn.LayerNorm:
        """The LayerNorm after the patch projection."""
        norm: nn.LayerNorm = self.embedding.norm
        return norm


def swin_facts(
    name: str, width: int, depths: Sequence[int], patch: int, image: int
) -> BackboneFacts:
    """The facts of a Swin transformer that was trained on square images.

    A layer costs the same in every stage: a quarter of the tokens, of twice the width.
    """
    steps = 2 ** (len(depths) - 1)
    side = image // patch
    return BackboneFacts(
        name=name,
        modality="image",
        width=width,
        feature_width=width * steps,
        patch=patch,
        grid=(side, side),
        embedding_norm=True,
        reduction=steps,
        layers=sum(depths),
    )


_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": (
        "microsoft/swin-base-patch4-window7-224-in22k",
        {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    ),
    "tiny": (
        "microsoft/swin-tiny-patch4-window7-224",
        {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    ),
}


class Swin(SwinBackbone):
    """Swin-B (ImageNet-22k) or Swin-T (ImageNet-1k), from the hub or a local folder."""

    class Config(ImageBackboneSettings):
        """Settings of ``swin``."""

        size: Literal["base", "tiny"] = Field("base", description="Swin-B or Swin-T.")
        weights: str | None = Field(
            None, description="A local folder or hub id instead of the published weights."
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.facts = self.describe(config, context.store)
        hub_id, _ = _SIZES[config.size]
        hf_config = self._hf_config(config)
        advice = [f"set 'weights' to a copy of {hub_id}"]

        def folder() -> Path:
            return weights.resolve(config.weights or hub_id, advice)

        name = self.facts.name
        self.adopt(weights.model_of(name, folder, hf_config, config.pretrained, context))

    @staticmethod
    def _hf_config(config: Config) -> Any:
        from transformers import SwinConfig

        hf_config = SwinConfig(**_SIZES[config.size][1])
        return with_image_dropout(hf_config, config)

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The files of a local folder; a hub id stands for itself."""
        return weights.named_contents("weights", config.weights)

    @classmethod
    def describe(cls, config: Config, store: Store) -> BackboneFacts:
        """The facts of the chosen size."""
        settings = _SIZES[config.size][1]
        width, depths = settings["embed_dim"], settings["depths"]
        return swin_facts(f"swin-{config.size}", width, depths, patch=4, image=224)
