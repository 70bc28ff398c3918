"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_tasks() -> Mapping[str, str]:
    """Tasks, by name."""
    return {
        "cosmic-simulated": "xmodal_standins.cosmic_simulated:CosmicSimulated",
        "pacs": "xmodal_standins.pacs:Pacs",
    }
