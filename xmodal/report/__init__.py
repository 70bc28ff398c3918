"""Pages and figures of runs and comparisons, for people to read.

The names below are public for other packages and plugins. Each is loaded on first use, because
drawing needs matplotlib and reading samples needs PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal.report.charts import (
        COLOURS,
        INK,
        LINE,
        MUTED,
        SERIES,
        SURFACE,
        Chart,
        Curve,
        curves,
        drawing,
        inline,
        legend,
        plain,
        save,
        without_ticks,
    )
    from xmodal.report.compare import write_compare_report
    from xmodal.report.page import write_page
    from xmodal.report.pictures import Mixing, as_array, drawn_channels, mixing, shown_epochs
    from xmodal.report.run import kept_samples, measured, write_report
    from xmodal.text import count, duration, number, size

_MODULES = {
    "xmodal.report.charts": "COLOURS INK LINE MUTED SERIES SURFACE Chart Curve curves drawing "
    "inline legend plain save without_ticks",
    "xmodal.report.compare": "write_compare_report",
    "xmodal.report.page": "write_page",
    "xmodal.report.pictures": "Mixing as_array drawn_channels mixing shown_epochs",
    "xmodal.report.run": "kept_samples measured write_report",
    "xmodal.text": "count duration number size",
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "COLOURS", "INK", "LINE", "MUTED", "SERIES", "SURFACE", "Chart", "Curve", "Mixing", "as_array",
    "count", "curves", "drawing", "drawn_channels", "duration", "inline", "kept_samples", "legend",
    "measured", "mixing", "number", "plain", "save", "shown_epochs", "size", "without_ticks",
    "write_compare_report", "write_page", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'xmodal.report' has no attribute {name!r}")
