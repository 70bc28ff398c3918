"""The immutable data of one training step.

An embedder turns raw samples into ``Tokens``. A ``Sample`` adds the label and the head that
predicts it. A mixer turns samples into ``View``s, each with weighted loss ``Term``s. The engine
passes every view through the backbone once and sums the terms. This module only holds data.

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

    ``source``: equally many raw source samples with their labels, if the mixer mixes with a source.
    ``unlabelled``: further raw target samples, if the mixer needs them and the run has some.
    ``share``: the weight of the micro-batch in the step. Its mean loss times ``share``, averaged
    over all processes, is its contribution to the mean loss of the step. ``part`` is below 1 if
    several processes divide one micro-batch. ``index``: the places of the samples in the training
    split, int64 ``[B]``, if the predictor ``reads_samples``.
    """

    x: Tensor
    y: Tensor
    source: tuple[Tensor, Tensor] | None = None
    unlabelled: Tensor | None = None
    share: float = 1.0
    part: float = 1.0
    index: Tensor | None = None


@dataclass(frozen=True)
class Sample:
    """Embedded samples, their labels, and the name of the head that predicts them.

    ``unlabelled`` holds the tokens of further samples of the same kind without labels.
    """

    tokens: Tokens
    y: Tensor
    head: str
    unlabelled: Tokens | None = None


@dataclass(frozen=True)
class Term:
    """One term of the loss: ``weight`` times the loss of ``head``'s prediction against ``y``.

    A weight that changes from step to step is a 0-d tensor (see ``xmodal.steps``). If ``like`` is
    set, the term has no ``y``: the prediction is compared with the prediction of view number
    ``like`` (by the same head, without gradient).
    """

    head: str
    y: Tensor | None
    weight: float | Tensor
    like: int | None = None


@dataclass(frozen=True)
class Points:
    """A set of points for a distance: ``x_ND``, and their classes (int64) if known."""

    x_ND: Tensor
    classes_N: Tensor | None = None


@dataclass(frozen=True)
class View:
    """Tokens to pass through the backbone once.

    If a mixer replaced tokens, ``origin_BN`` holds the partner token in each slot (-1: the target's
    own token). ``log`` holds numbers to record, such as k; 0-d tensors if they change.
    """

    tokens: Tokens
    terms: tuple[Term, ...]
    origin_BN: Tensor | None = None
    log: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """k chosen tokens per row.

    In the forward pass, ``mask_BN`` is 1 on the chosen tokens and 0 elsewhere; it may have a
    (straight-through) gradient. ``scores_BN`` ranks all tokens; higher is more important. ``k`` is
    an int, or a 0-d int64 tensor on the device of the mask.
    """

    mask_BN: Tensor
    scores_BN: Tensor
    k: int | Tensor

    @property
    def indices_BK(self) -> Tensor:
        """Positions of the chosen tokens, ascending.

        The shape depends on k, so this waits for the device if k is a tensor.
        """
        return self.mask_BN.detach().topk(int(self.k), dim=1).indices.sort(dim=1).values


@dataclass(frozen=True)
class Progress:
    """The progress of a stage: ``epoch`` of ``epochs`` and ``step`` of ``steps``, from 0."""

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
