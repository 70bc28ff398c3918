"""Samples: where they are kept, how they are read and prepared, and which classes they have.

What authors of tasks, sources and stages need is here under one name; each part is imported when it
is first asked for. The modules, from a file to what a model reads:

- Where files are: ``store`` keeps what is fetched, ``download`` fetches and unpacks, ``datasets``
  says what is known of published data sets; ``unpickle`` reads published pickles without running
  their code.
- Arrays: ``arrays`` opens any file or folder of them. ``rows`` is what all formats share (an array
  read a few samples at a time, and the checks of a header); ``numpy_files``, ``hdf5`` and
  ``matlab`` are the formats; ``lengths`` brings samples of unequal lengths to one.
- Tables: ``tables`` opens any file or frame. ``dialect`` finds out how a text is written and splits
  it into fields, ``cells`` reads a column of fields, ``learning`` decides in training what columns
  are, and ``columns`` keeps that and applies it to every later table.
- Labels: ``naming`` gives values of any type the names of categories and classes, ``labels`` tells
  the kinds of labels apart and brings them to what a metric reads, ``classes`` finds the classes of
  samples, or pseudo-classes.
- Preparation: ``statistics`` are mean and scale in any unit; ``preparation`` holds everything that
  turns raw samples into the model's (``RawForm``, which is kept with a run).
- Splits: ``splits`` cuts samples by class or by whole groups.
- Large data: ``mapped`` writes and reads arrays on disk a few samples at a time.
- Use: ``loader`` makes batches, ``augment`` changes training samples at random, ``feed`` brings
  batches to a device; ``in_memory`` takes what a caller holds in memory, ``readers`` the files to
  predict, piece by piece; ``seen`` knows which samples were trained on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal.data import loader
    from xmodal.data.classes import members, target_classes
    from xmodal.data.labels import class_names, infer_kind, whole_numbers
    from xmodal.data.naming import name_of, positions
    from xmodal.data.preparation import IMAGENET, RawForm
    from xmodal.data.statistics import Moments
    from xmodal.data.store import Store

__all__ = [
    "IMAGENET",
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
    "IMAGENET": "xmodal.data.preparation",
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
