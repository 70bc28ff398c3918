"""Table of contents of RECRAFT (Tran et al., AISTATS 2026): stages before fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_stages() -> Mapping[str, str]:
    """The source head, and the alignment of features and of labels."""
    return {
        "source-head": "xmodal_recraft.source_head:SourceHead",
        "align-features": "xmodal_recraft.align_features:AlignFeatures",
        "align-labels": "xmodal_recraft.align_labels:AlignLabels",
    }
