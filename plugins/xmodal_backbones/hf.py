"""Any supported Hugging Face encoder, by hub id or local folder.

The model's config decides which kind of backbone it is: a plain vision transformer, a Swin
transformer or a text encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.data import IMAGENET, Store
from xmodal.errors import DataError
from xmodal.files import read_json
from xmodal.interfaces import Backbone, BackboneFacts, Context, Facts, LibraryModel
from xmodal.settings import NameOrPath
from xmodal_backbones import text, vit, weights
from xmodal_backbones.common import ImageBackboneSettings, needs_2d, with_image_dropout
from xmodal_backbones.swin import SwinBackbone, swin_facts


def _facts(name: str, hf_config: Any) -> BackboneFacts:
    """The facts in a config. Raises DataError for unsupported families."""
    kind = hf_config.model_type
    if kind == "swin":
        depths, patch = hf_config.depths, hf_config.patch_size
        return swin_facts(name, hf_config.embed_dim, depths, patch, hf_config.image_size)
    if kind in vit.FAMILIES:
        side = hf_config.image_size // hf_config.patch_size
        width, patch = hf_config.hidden_size, hf_config.patch_size
        layers = hf_config.num_hidden_layers
        return BackboneFacts(
            name, "image", width, width, patch=patch, grid=(side, side), layers=layers
        )
    if kind in text.KNOWN:
        return text.text_facts(name, hf_config)
    raise DataError(
        f"backbone 'hf' does not support '{name}' of family '{kind}'\n"
        f"supported image families: swin, {', '.join(vit.FAMILIES)}\n"
        f"supported text families: {', '.join(text.KNOWN)}\n"
        "ways out: choose a model of a supported family, use backbone 'timm', or write a plugin"
    )


class HuggingFace(Backbone):
    """A Swin, ViT, DeiT, DINOv2 or BERT-like encoder from a Hugging Face hub or a local folder."""

    native_bf16 = True

    class Config(ImageBackboneSettings):
        """Settings of ``hf``."""

        name: NameOrPath = Field(
            description="A hub id such as google/vit-base-patch16-224, or a folder (./model)."
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        name = config.name
        folder = weights.resolve(name) if config.pretrained else weights.resolve_config(name)
        hf_config = weights.read_config(folder)
        self.facts = _facts(name, hf_config)
        if self.facts.modality == "text":
            text.with_dropout(hf_config, config.dropout)
        else:
            with_image_dropout(hf_config, config)
        model = weights.model_of(name, lambda: folder, hf_config, config.pretrained, context)
        self.body = _backbone(self, model, hf_config.model_type, folder, context)

    @classmethod
    def describe(cls, config: Config, store: Store) -> BackboneFacts:
        """The facts in the model's config; asks the hub only if the config is not cached."""
        return _facts(config.name, weights.read_config(weights.resolve_config(config.name)))

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The files of a local folder; a hub id stands for itself."""
        return weights.named_contents("name", config.name)

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """The problems of this kind of backbone."""
        if facts.backbone.modality == "text":
            yield from text.TextBackbone.problems(config, facts)
            if config.drop_path is not None:
                yield f"'drop_path' has no meaning for the text backbone '{config.name}'"
        elif facts.backbone.reduction > 1:
            yield from needs_2d(facts)

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode tokens."""
        features: Tokens = self.body(tokens)
        return features

    def embed(self, x: Tensor) -> Tokens:
        """Embed prepared images or word pieces."""
        return self.body.embed(x)

    def prepare_source(self, raw: Any) -> Tensor:
        """Normalise images, or cut words into pieces."""
        return self.body.prepare_source(raw)

    def tokenize(self, words: list[str]) -> list[list[int]]:
        """The word pieces of every word. Raises DataError for image backbones."""
        if not isinstance(self.body, text.TextBackbone):
            raise DataError(f"'{self.facts.name}' is an image backbone and cannot read words")
        return self.body.tokenize(words)

    def recomputable(self) -> Iterable[nn.Module]:
        """The layers of the model inside."""
        return self.body.recomputable()

    def library_model(self) -> LibraryModel:
        """The library's model of this family."""
        return self.body.library_model()

    def patch_projection(self) -> nn.Conv2d | None:
        """The pretrained patch projection of image backbones."""
        return self.body.patch_projection()

    def embedding_norm(self) -> nn.LayerNorm | None:
        """The LayerNorm at the end of the embedding, if there is one."""
        return self.body.embedding_norm()

    def positions(self, grid: tuple[int, ...]) -> Tensor | None:
        """Position embeddings for a grid, if positions are absolute."""
        return self.body.positions(grid)


class _Vision(vit.VisionBackbone):
    describe = HuggingFace.describe


class _Swin(SwinBackbone):
    describe = HuggingFace.describe


class _Text(text.TextBackbone):
    describe = HuggingFace.describe


def _backbone(
    outer: HuggingFace, model: Any, kind: str, folder: Path, context: Context
) -> _Vision | _Swin | _Text:
    if outer.facts.modality == "text":
        encoder = _Text(outer.config, context)
        encoder.facts = outer.facts
        encoder.adopt(model, lambda: weights.resolve_tokenizer(outer.config.name))
        return encoder
    image = _Swin(outer.config, context) if kind == "swin" else _Vision(outer.config, context)
    image.facts = outer.facts
    image.mean_std = _mean_std(folder)
    image.adopt(model)
    return image


def _mean_std(folder: Path) -> tuple[Any, Any]:
    """Mean and standard deviation that the model normalises images with (else ImageNet's)."""
    settings = read_json(folder / "preprocessor_config.json")
    mean, std = settings.get("image_mean"), settings.get("image_std")
    return (tuple(mean), tuple(std)) if mean and std else IMAGENET
