"""Table of contents of extensions of PaRe: a gate, a schedule, and use of unlabelled samples."""

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
