"""xmodal: cross-modal fine-tuning, with methods, tasks and backbones as plugins.

Public names are loaded on first use, so that ``import xmodal`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xmodal import _moved
from xmodal._version import __version__
from xmodal.hookspecs import hookimpl

if TYPE_CHECKING:
    from xmodal.api import export, load, preload, run
    from xmodal.comparison.run import compare
    from xmodal.finetuner import FineTuner

__all__ = ["FineTuner", "__version__", "compare", "export", "hookimpl", "load", "preload", "run"]

_LAZY = {
    "FineTuner": "xmodal.finetuner",
    "compare": "xmodal.comparison.run",
    "export": "xmodal.api",
    "load": "xmodal.api",
    "preload": "xmodal.api",
    "run": "xmodal.api",
}

_moved.install()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'xmodal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
