"""Table of contents of PaRe (Cai et al., ICML 2024): patch replacement with a learned gate."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_selectors() -> Mapping[str, str]:
    """The learned gate, and random selection as its baseline."""
    return {
        "gate": "xmodal_pare.gate:Gate",
        "random": "xmodal_pare.random_selector:RandomSelector",
    }


@hookimpl
def xmodal_mixers() -> Mapping[str, str]:
    """Patch replacement."""
    return {"patch-replace": "xmodal_pare.patch_replace:PatchReplace"}


@hookimpl
def xmodal_schedulers() -> Mapping[str, str]:
    """Schedules of the number of replaced tokens during training."""
    return {
        "linear": "xmodal_pare.schedulers:Linear",
        "piecewise": "xmodal_pare.schedulers:Piecewise",
        "exponential": "xmodal_pare.schedulers:Exponential",
        "constant": "xmodal_pare.schedulers:Constant",
        "linear-mean": "xmodal_pare.schedulers:LinearMean",
        "random-k": "xmodal_pare.schedulers:RandomK",
    }
