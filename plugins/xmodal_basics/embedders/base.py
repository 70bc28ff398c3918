"""The base of all trainable embedders: the end of the embedding, and its calibration.

A subclass projects raw samples to tokens. This base then applies trainable copies of the last parts
of the pretrained backbone's own embedding: its LayerNorm, if it has one, and its positions.
``calibrate`` scales the tokens to the norm that the backbone's encoder saw in pretraining.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.interfaces import Backbone, BackboneFacts, Context, Embedder, Settings, TaskFacts

SMALLEST_SHARE = 0.1
"""Calibration never shrinks the projection below this share of the wanted norm. Otherwise, if the
positions were longer than the backbone's tokens, the input would shrink to almost nothing."""


class TokenSettings(Settings):
    """Settings of every trainable embedder."""

    init: Literal["source", "random"] = Field(
        "source",
        description="Start from the backbone's own embedding where it fits, or at random.",
    )
    scale: Literal["auto", "source", "none"] = Field(
        "source",
        description="source: scale the first tokens to the norm of the backbone's own. auto: only "
        "if the backbone has no embedding LayerNorm to copy, as released code does.",
    )
    positions: bool = Field(
        True, description="Add a trainable copy of the backbone's pretrained positions."
    )


class TokenEmbedder(Embedder):
    """A projection, then the backbone's LayerNorm if it has one, then its positions."""

    norm: nn.LayerNorm | None
    positions: nn.Parameter | None

    def __init__(self, config: TokenSettings, context: Context) -> None:
        super().__init__(config, context)
        self.token_grid = self.grid(config, context.facts.task, context.facts.backbone)
        self.width = context.facts.backbone.width
        self._note = context.note
        backbone = context.components["backbone"]
        source_norm = backbone.embedding_norm()
        if source_norm is None:
            self.norm = None
        elif config.init == "source":
            self.norm = copy.deepcopy(source_norm).requires_grad_(True)
        else:
            self.norm = nn.LayerNorm(self.width, eps=source_norm.eps)
        source_ND = pretrained_positions(backbone, self.token_grid) if config.positions else None
        self.positions = None if source_ND is None else nn.Parameter(source_ND.detach().clone())

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Project raw samples to ``[B, N, D]``."""

    def projection_parameters(self) -> Iterable[nn.Parameter]:
        """Every parameter that ``project`` is linear in; by default those of ``projection``."""
        return self.get_submodule("projection").parameters()

    def content(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, D]`` before the positions are added."""
        content_BND = self.project(x)
        return content_BND if self.norm is None else self.norm(content_BND)

    def forward(self, x: Tensor) -> Tokens:
        """Embed a batch."""
        return self._placed(self.content(x))

    def masked(self, x: Tensor, mask_BN: Tensor, fill_D: Tensor) -> Tokens:
        """Embed a batch with ``fill_D`` for the content of some tokens, which keep positions."""
        content_BND = self.content(x)
        fill_D = fill_D.to(content_BND.dtype)
        return self._placed(torch.where(mask_BN[..., None], fill_D, content_BND))

    def _placed(self, x_BND: Tensor) -> Tokens:
        if self.positions is not None:
            x_BND = x_BND + self.positions
        return Tokens(x_BND, self.token_grid)

    @torch.no_grad()
    def calibrate(self, x: Tensor, source_norm: float | None) -> None:
        """Scale the content, without positions, so that the mean token norm is ``source_norm``.

        Scales the LayerNorm, if there is one. Does nothing if ``scale`` is 'none', or 'auto' with a
        LayerNorm. If no factor gives the exact norm, takes the closest one.
        """
        if self.config.scale == "none" or (self.config.scale == "auto" and self.norm is not None):
            return
        if source_norm is None:
            self._note(
                "embedder: the norm of the backbone's own tokens is unknown; scale left as it is"
            )
            return
        factor = scale_to_norm(self.content(x), self.positions, source_norm)
        scaled = self.projection_parameters() if self.norm is None else self.norm.parameters()
        for parameter in scaled:
            parameter.mul_(factor)
        self._note(f"embedder: tokens scaled by {factor:.4g} to the norm {source_norm:.4g}")


def pretrained_positions(backbone: Backbone, grid: tuple[int, ...]) -> Tensor | None:
    """The backbone's positions ``[N, D]`` for a grid; image backbones see a sequence as one row."""
    found = backbone.positions(grid)
    return backbone.positions((1, *grid)) if found is None and len(grid) == 1 else found


def check(name: str, needs: str, form: str, task: TaskFacts, backbone: BackboneFacts) -> None:
    """Raise ValueError if the task's samples do not have the form that the embedder reads, or if
    the backbone's token width is not fixed.
    """
    if task.form != form:
        raise ValueError(f"embedder '{name}' needs {needs}; task '{task.name}' gives a {task.form}")
    if backbone.width == 0:
        raise ValueError(
            f"embedder '{name}' needs a backbone with tokens of a fixed width; backbone "
            f"'{backbone.name}' takes any width (use embedder 'flat')"
        )


def scale_to_norm(content_BND: Tensor, positions_ND: Tensor | None, wanted: float) -> float:
    """The factor s for which the mean norm of ``s * content + positions`` is ``wanted``.

    The mean norm is convex in s, so the root to the right of its minimum is unique. If even the
    minimum is above ``wanted``, s is the factor of the minimum. ``SMALLEST_SHARE`` bounds s from
    below.
    """
    from scipy.optimize import brentq, minimize_scalar

    content_BND = content_BND.detach().double().cpu()
    square_BN = content_BND.square().sum(-1)
    length = square_BN.sqrt().mean().item()
    if length == 0.0:
        return 1.0
    if positions_ND is None:
        return wanted / length
    positions_ND = positions_ND.detach().double().cpu()
    cross_BN = (content_BND * positions_ND).sum(-1)
    rest_N = positions_ND.square().sum(-1)

    def excess(s: float) -> float:
        norm_BN = (s * s * square_BN + 2 * s * cross_BN + rest_N).clamp_min(0).sqrt()
        return float(norm_BN.mean()) - wanted

    low = SMALLEST_SHARE * wanted / length
    # By the triangle inequality, the mean norm at this s is at least ``wanted``.
    high = (wanted + rest_N.sqrt().mean().item()) / length
    inner = float(minimize_scalar(excess, bounds=(low, high), method="bounded").x)
    best = min(low, inner, key=excess)
    return best if excess(best) >= 0 else float(brentq(excess, best, high, xtol=1e-12))
