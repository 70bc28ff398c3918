"""Table of contents of MoNA (Ma et al., ICML 2024): a stage that prepares the embedder."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_stages() -> Mapping[str, str]:
    """Meta-learning of the target embedder, before fine-tuning."""
    return {"meta-align": "xmodal_mona.meta_align:MetaAlign"}
