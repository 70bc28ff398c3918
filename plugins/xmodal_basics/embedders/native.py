"""The embedder ``native``: each form of samples in the tokens that do best for it.

What does best was measured (docs/measured.md): series as responses of random kernels, pictures as
in pretraining, table rows column by column.
"""

from __future__ import annotations

from typing import ClassVar

from xmodal_basics.embedders.auto import NAMES, PARTS, AutoEmbedder
from xmodal_basics.embedders.picture import Picture
from xmodal_basics.embedders.random_kernels import RandomKernels


class NativeEmbedder(AutoEmbedder):
    """``as-picture`` for grids, ``random-kernels`` for sequences, ``columns`` for table rows."""

    parts: ClassVar = {**PARTS, "grid": Picture, "sequence": RandomKernels}
    names: ClassVar = {**NAMES, "grid": "as-picture", "sequence": "random-kernels"}
