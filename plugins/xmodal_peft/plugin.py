"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_adapters() -> Mapping[str, str]:
    """Low-rank updates of a backbone's linear layers."""
    return {"lora": "xmodal_peft.lora:Lora"}
