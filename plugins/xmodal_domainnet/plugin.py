"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_tasks() -> Mapping[str, str]:
    """The four domains of miniDomainNet."""
    return {
        "domainnet/clipart": "xmodal_domainnet.task:Clipart",
        "domainnet/painting": "xmodal_domainnet.task:Painting",
        "domainnet/real": "xmodal_domainnet.task:Real",
        "domainnet/sketch": "xmodal_domainnet.task:Sketch",
    }
