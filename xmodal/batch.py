"""The frozen data that flows through one training step.

An embedder turns raw samples into ``Tokens``; a ``Sample`` adds the label and the head that
predicts it; a mixer turns samples into ``View``s, each with weighted loss ``Term``s; the engine
pushes every view through the backbone once and sums the terms. Nothing here computes anything.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

TARGET = "target"
SOURCE = "source"


@dataclass(frozen=True)
class Tokens:
    """Tokens and their layout: ``(H, W)`` for a grid, ``(L,)`` for a sequence; N = prod(grid)."""

    x_BND: Tensor
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """Embedded samples, their labels, and the name of the head that predicts them."""

    tokens: Tokens
    y: Tensor
    head: str


@dataclass(frozen=True)
class Term:
    """One term of the loss: ``weight`` times the loss of ``head``'s prediction against ``y``."""

    head: str
    y: Tensor
    weight: float


@dataclass(frozen=True)
class View:
    """Something to push through the backbone once.

    ``origin_BN`` says, where a mixer replaced tokens, which partner token fills each slot (-1: the
    target's own). ``log`` holds numbers worth recording, such as k.
    """

    tokens: Tokens
    terms: tuple[Term, ...]
    origin_BN: Tensor | None = None
    log: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """k chosen tokens a row.

    ``mask_BN`` is 1 on the chosen tokens and 0 elsewhere in the forward pass and may carry a
    (straight-through) gradient; ``scores_BN`` ranks all tokens, higher is more important.
    """

    mask_BN: Tensor
    scores_BN: Tensor
    k: int

    @property
    def indices_BK(self) -> Tensor:
        """Positions of the chosen tokens, ascending."""
        return self.mask_BN.detach().topk(self.k, dim=1).indices.sort(dim=1).values


@dataclass(frozen=True)
class Progress:
    """How far a stage has come: ``epoch`` of ``epochs`` (from 0) and ``step`` of ``steps`` in the
    epoch.
    """

    stage: int
    epoch: int
    epochs: int
    step: int
    steps: int

    @property
    def share(self) -> float:
        """The fraction of epochs already finished, in [0, 1)."""
        return self.epoch / self.epochs
