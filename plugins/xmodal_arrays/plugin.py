"""Table of contents of this plugin."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal import hookimpl


@hookimpl
def xmodal_tasks() -> Mapping[str, str]:
    """The user's own files."""
    return {"arrays": "xmodal_arrays.task:Arrays"}


@hookimpl
def xmodal_data_recipe(
    path: Path, settings: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]] | None:
    """Files of samples and labels are read by ``arrays``."""
    found: tuple[str, Mapping[str, Any]] | None
    found = importlib.import_module("xmodal_arrays.own").recipe(path, settings)  # slow to import
    return found
