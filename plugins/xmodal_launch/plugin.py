"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal.hookspecs import hookimpl


@hookimpl
def xmodal_launchers() -> Mapping[str, str]:
    """This machine."""
    return {"local": "xmodal_launch.local:Local"}
