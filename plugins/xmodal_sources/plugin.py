"""Table of contents of this plugin: labelled images and text, like backbones' pretraining data."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_sources() -> Mapping[str, str]:
    """Sources by recipe name."""
    return {
        "caltech-101": "xmodal_sources.caltech:Caltech101",
        "cifar10": "xmodal_sources.cifar10:Cifar10",
        "conll-2003": "xmodal_sources.conll:Conll2003",
        "digits": "xmodal_sources.digits:Digits",
        "digits-on-photos": "xmodal_sources.digits:DigitsOnPhotos",
        "fashion-mnist": "xmodal_sources.fashion:FashionMnist",
        "image-folder": "xmodal_sources.files:ImageFolder",
        "stamps": "xmodal_sources.stamps:Stamps",
        "stamps-foreground": "xmodal_sources.stamps:StampsForeground",
        "tiny-imagenet": "xmodal_sources.tiny_imagenet:TinyImageNet",
        "voc-foreground": "xmodal_sources.voc:VocForeground",
    }
