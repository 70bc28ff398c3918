"""Table of contents of what goes beyond PaRe: a gate, a schedule, unlabelled samples, stages."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_selectors() -> Mapping[str, str]:
    """A gate whose relaxed mask stays in (0, 1)."""
    return {"lml-gate": "xmodal_beyond.lml_gate:LMLGate"}


@hookimpl
def xmodal_schedulers() -> Mapping[str, str]:
    """A schedule that follows the measured distance to the source."""
    return {"by-distance": "xmodal_beyond.by_distance:ByDistance"}


@hookimpl
def xmodal_mixers() -> Mapping[str, str]:
    """Consistency between the views of another mixer."""
    return {"consistent": "xmodal_beyond.consistent:Consistent"}


@hookimpl
def xmodal_stages() -> Mapping[str, str]:
    """What may come before fine-tuning and needs no source."""
    return {
        "self-pretrain": "xmodal_beyond.self_pretrain:SelfPretrain",
        "bridge": "xmodal_beyond.bridge:Bridge",
        "warm-up": "xmodal_beyond.warm_up:WarmUp",
    }
