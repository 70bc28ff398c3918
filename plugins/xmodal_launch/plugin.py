"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_launchers() -> Mapping[str, str]:
    """This machine, a cluster of Slurm's, a cluster of Ray's."""
    return {
        "local": "xmodal_launch.local:Local",
        "slurm": "xmodal_launch.slurm:Slurm",
        "ray": "xmodal_launch.ray:Ray",
    }
