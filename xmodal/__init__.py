"""xmodal: cross-modal fine-tuning, with methods, tasks and backbones as plugins.

Public names are loaded on first use so that ``import xmodal`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xmodal._version import __version__
from xmodal.hookspecs import hookimpl

if TYPE_CHECKING:
    from xmodal.api import export, load, run
    from xmodal.finetuner import FineTuner

__all__ = ["FineTuner", "__version__", "export", "hookimpl", "load", "run"]

_LAZY = {
    "run": "xmodal.api",
    "load": "xmodal.api",
    "export": "xmodal.api",
    "FineTuner": "xmodal.finetuner",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'xmodal' has no attribute {name!r}")
