"""Table of contents of this plugin: commands that measure a method's effects and draw them."""

from __future__ import annotations

import importlib
from typing import Any

from xmodal import hookimpl


@hookimpl
def xmodal_commands(app: Any) -> None:
    """``xmodal analyse``, ``xmodal distance`` and ``xmodal sources rank``."""
    importlib.import_module("xmodal_analysis.commands").add_to(app)
