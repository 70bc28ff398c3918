"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_launchers() -> Mapping[str, str]:
    """This machine, a Slurm cluster, a Ray cluster."""
    return {
        "local": "xmodal_launch.local:Local",
        "slurm": "xmodal_launch.slurm:Slurm",
        "ray": "xmodal_launch.ray:Ray",
    }
