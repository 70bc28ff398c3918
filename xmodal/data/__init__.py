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
    from xmodal.data.labels import class_names, infer_kind, whole_numbers
    from xmodal.data.naming import name_of, positions
    from xmodal.data.preparation import RawForm
    from xmodal.data.statistics import Moments
    from xmodal.data.store import Store

__all__ = [
    "Moments",
    "RawForm",
    "Store",
    "class_names",
    "infer_kind",
    "loader",
    "members",
    "name_of",
    "positions",
    "target_classes",
    "whole_numbers",
]

_LAZY = {
    "Moments": "xmodal.data.statistics",
    "RawForm": "xmodal.data.preparation",
    "Store": "xmodal.data.store",
    "class_names": "xmodal.data.labels",
    "infer_kind": "xmodal.data.labels",
    "whole_numbers": "xmodal.data.labels",
    "name_of": "xmodal.data.naming",
    "positions": "xmodal.data.naming",
    "members": "xmodal.data.classes",
    "target_classes": "xmodal.data.classes",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'xmodal.data' has no attribute {name!r}")
