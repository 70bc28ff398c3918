"""Facts: plain numbers about a run that are known before any weight or sample is loaded.

Shapes: C channels, F columns, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """The kind and shape of labels.

    ``classification``: int64 ``[n]`` with ``size`` classes. ``multi-label``: float ``[n, size]`` of
    0/1. ``regression``: float ``[n, size]``. ``dense``: float ``[n, size, *shape]``, where
    ``shape`` is ``(H, W)`` or ``(L,)``.
    """

    kind: Literal["classification", "multi-label", "regression", "dense"]
    size: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskFacts:
    """A target task.

    ``shape`` is that of one sample: ``(C, H, W)``, ``(C, L)``, or ``(F,)`` for a table row.
    ``levels`` has one entry per table column: 0 for a number, m for a category coded 0 .. m-1.
    ``samples`` counts the samples of each split. ``family``: the kind of its data, such as "pde" or
    "protein". Verdicts count tasks of one family as one observation; where nothing is stated, rows
    are of the family "table", sequences "series" and grids "image". ``coarse``: points per side on
    which ``Task.coarse`` solves the task's equation unless told otherwise; 0 if it has none.
    ``equation``: whether ``Task.equation`` gives its residual. ``symmetry``: in words, under what
    moves of a sample its label is known exactly (``TaskData.symmetry``), for the recipe's
    ``augment``; ``moves`` is their number. Nothing if it states none. ``weighted``: its samples
    have weights (``TaskData.weights``).
    """

    name: str
    shape: tuple[int, ...]
    target: Target
    samples: Mapping[str, int]
    levels: tuple[int, ...] = ()
    family: str = ""
    coarse: int = 0
    equation: bool = False
    symmetry: str = ""
    moves: int = 1
    weighted: bool = False

    def __post_init__(self) -> None:
        if not self.family:
            by_axes = {3: "image", 2: "series", 1: "table"}
            object.__setattr__(self, "family", by_axes.get(len(self.shape), ""))

    @property
    def form(self) -> Literal["grid", "sequence", "row"]:
        """``grid`` for images and fields, ``sequence`` for series, ``row`` for tables."""
        forms: dict[int, Literal["grid", "sequence", "row"]] = {3: "grid", 2: "sequence", 1: "row"}
        return forms[len(self.shape)]


@dataclass(frozen=True)
class SourceFacts:
    """A source: labelled data of the modality that the backbone was pretrained on."""

    name: str
    modality: str
    target: Target


@dataclass(frozen=True)
class BackboneFacts:
    """A pretrained backbone.

    ``modality`` is that of its pretraining (``image``, ``text`` or ``any``). ``patch`` is the side
    of its patches in pixels, ``grid`` its token grid in pretraining. ``max_tokens`` limits N.
    ``embedding_norm``: whether its embedding layer ends in a LayerNorm that an embedder can copy.
    ``reduction``: how many times coarser, per axis, the feature grid is than the token grid (Swin:
    8). ``layers``: how many blocks a sample passes, for what it costs; 0 if unknown.
    """

    name: str
    modality: str
    width: int
    feature_width: int
    patch: int | None = None
    grid: tuple[int, ...] = ()
    max_tokens: int | None = None
    embedding_norm: bool = False
    reduction: int = 1
    layers: int = 0


@dataclass(frozen=True)
class Facts:
    """The facts of a run. ``grid`` is the grid of the target tokens."""

    task: TaskFacts
    backbone: BackboneFacts
    source: SourceFacts | None = None
    grid: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """N, the number of target tokens; 0 if unknown."""
        count = 1
        for side in self.grid:
            count *= side
        return count if self.grid else 0


NO_FACTS = Facts(
    TaskFacts("none", (1, 1, 1), Target("regression", 1), {}), BackboneFacts("none", "any", 1, 1)
)
"""The facts of a part that is built outside of a run, without a task and a backbone."""
