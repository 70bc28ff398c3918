"""The frozen data that flows through one training step.

An embedder turns raw samples into ``Tokens``; a ``Sample`` adds the label and the head that
predicts it; a mixer turns samples into ``View``s, each with weighted loss ``Term``s; the engine
pushes every view through the backbone once and sums the terms. Nothing here computes anything.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

TARGET = "target"
SOURCE = "source"


@dataclass(frozen=True)
class Tokens:
    """Tokens and their layout: ``(H, W)`` for a grid, ``(L,)`` for a sequence; N = prod(grid)."""

    x_BND: Tensor
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its device: raw target samples ``[B, *shape]`` and their labels.

    ``source``: as many raw source samples with their labels, where the mixer mixes with a source.
    ``unlabelled``: further raw target samples, where the mixer wants them and there are any.
    ``share``: the mean loss times it, averaged over all processes, is this micro-batch's
    contribution to the mean loss of the step. ``part``: below 1 where several processes divide one
    micro-batch.
    """

    x: Tensor
    y: Tensor
    source: tuple[Tensor, Tensor] | None = None
    unlabelled: Tensor | None = None
    share: float = 1.0
    part: float = 1.0


@dataclass(frozen=True)
class Sample:
    """Embedded samples, their labels, and the name of the head that predicts them.

    ``unlabelled`` holds the tokens of further samples of the same kind, whose labels are unknown.
    """

    tokens: Tokens
    y: Tensor
    head: str
    unlabelled: Tokens | None = None


@dataclass(frozen=True)
class Term:
    """One term of the loss: ``weight`` times the loss of ``head``'s prediction against ``y``.

    Where ``like`` is given, the prediction is compared with that of the view of this number (by
    the same head, without gradient), and there is no ``y``.
    """

    head: str
    y: Tensor | None
    weight: float
    like: int | None = None


@dataclass(frozen=True)
class Points:
    """Points to measure a distance between: ``x_ND``, and their classes (int64) where known."""

    x_ND: Tensor
    classes_N: Tensor | None = None


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

    def done(self, per: Literal["epoch", "step"]) -> float:
        """The fraction of the stage already finished, counted in whole epochs or in steps."""
        return self.share if per == "epoch" else self.share_of_steps

    @property
    def share_of_steps(self) -> float:
        """The fraction of optimizer steps already finished, in [0, 1)."""
        return (self.epoch + self.step / max(self.steps, 1)) / self.epochs
