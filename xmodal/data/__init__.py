"""Samples: where they are kept, how they are read and prepared, and which classes they have.

What authors of tasks, sources and stages need is here under one name; each part is imported when it
is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal.data import loader
    from xmodal.data.classes import members, target_classes
    from xmodal.data.labels import infer_kind
    from xmodal.data.preparation import RawForm
    from xmodal.data.statistics import Moments
    from xmodal.data.store import Store

__all__ = ["Moments", "RawForm", "Store", "infer_kind", "loader", "members", "target_classes"]

_LAZY = {
    "Moments": "xmodal.data.statistics",
    "RawForm": "xmodal.data.preparation",
    "Store": "xmodal.data.store",
    "infer_kind": "xmodal.data.labels",
    "members": "xmodal.data.classes",
    "target_classes": "xmodal.data.classes",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'xmodal.data' has no attribute {name!r}")
