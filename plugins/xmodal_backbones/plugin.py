"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_backbones() -> Mapping[str, str]:
    """Pretrained backbones: three from registry packages, four by hub or folder, one for tests."""
    return {
        "vit-s14": "xmodal_backbones.embedded:VitS14",
        "minilm-l6": "xmodal_backbones.embedded:MiniLM",
        "mpnet-base": "xmodal_backbones.embedded:MPNet",
        "swin": "xmodal_backbones.swin:Swin",
        "roberta": "xmodal_backbones.text:Roberta",
        "hf": "xmodal_backbones.hf:HuggingFace",
        "timm": "xmodal_backbones.timm_backbone:Timm",
        "tiny": "xmodal_backbones.tiny:Tiny",
    }


@hookimpl
def xmodal_adapters() -> Mapping[str, str]:
    """A start for the attention of random bodies."""
    return {"mimetic": "xmodal_backbones.mimetic:Mimetic"}
