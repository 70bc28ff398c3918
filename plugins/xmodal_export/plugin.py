"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_exporters() -> Mapping[str, str]:
    """Plain PyTorch with the backbone's own library, and ONNX."""
    return {"hf": "xmodal_export.hf:HuggingFaceExport", "onnx": "xmodal_export.onnx:Onnx"}
