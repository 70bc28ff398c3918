"""Table of contents of ORCA (Shen et al., ICML 2023): the alignment stage and its distances."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_stages() -> Mapping[str, str]:
    """The stage that aligns the embedder with the source before fine-tuning."""
    return {"align": "xmodal_orca.align:Align"}


@hookimpl
def xmodal_distances() -> Mapping[str, str]:
    """ORCA's distance between data sets, and cheaper ones."""
    return {
        "otdd": "xmodal_orca.distances.otdd:OTDD",
        "sinkhorn": "xmodal_orca.distances.sinkhorn:Sinkhorn",
        "emd": "xmodal_orca.distances.emd:EMD",
        "bures": "xmodal_orca.distances.bures:Bures",
        "mmd": "xmodal_orca.distances.mmd:MMD",
        "sliced": "xmodal_orca.distances.sliced:Sliced",
        "l2": "xmodal_orca.distances.l2:L2",
    }
