"""Augmentation of tokens, for any modality: noise, dropped tokens, and moves between samples.

Moves and noise are from Cheung & Yeung, "MODALS: Modality-agnostic Automated Data Augmentation in
the Latent Space", ICLR 2021; dropping is an addition of this project.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.interfaces import Context, Facts, Mixer
from xmodal.ops import ViewWeights, plain_and_changed
from xmodal.steps import from_host


class TokenAugment(Mixer):
    """A plain view, and a view with moved tokens, then noise, then dropped tokens.

    The label does not change. A strength of 0 turns an operation off.
    """

    citation = (
        "Cheung, Yeung: MODALS: Modality-agnostic Automated Data Augmentation in the Latent "
        "Space, ICLR 2021"
    )

    class Config(ViewWeights):
        """Settings of the mixer."""

        difference: float = Field(
            0.1, ge=0, description="m of x + m (x_j − x_k): add the difference of two samples."
        )
        interpolate: float = Field(
            0.0, ge=0, le=1, description="m of x + m (x_j − x): move towards another sample."
        )
        noise: float = Field(
            0.1, ge=0, description="Gaussian noise, in standard deviations of each channel."
        )
        drop: float = Field(
            0.1, ge=0, lt=1, description="Probability that a token is replaced by 'fill'."
        )
        fill: Literal["mean", "other"] = Field(
            "mean",
            description="What replaces a dropped token. mean: its sample's mean token. other: the "
            "token at the same place in another sample.",
        )
        partners: Literal["class", "any"] = Field(
            "class",
            description="Which samples of the micro-batch x_j and x_k may be. class: those of the "
            "sample's own class (no moves if labels are not classes). any: all.",
        )

        @model_validator(mode="after")
        def _something(self) -> TokenAugment.Config:
            if not (self.difference or self.interpolate or self.noise or self.drop):
                raise ValueError("difference, interpolate, noise and drop must not all be 0")
            return self

    config: Config
    keeps_samples = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._generator, self._note = context.generator, context.note
        self._moves = _can_move(config, context.facts)
        if not self._moves and _asks_for_moves(config):
            context.note(
                "token-augment: difference and interpolate pair samples of one class and are "
                "skipped because labels are not classes; 'partners: any' pairs any samples"
            )

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Moves within classes need classes."""
        if not (config.noise or config.drop or _can_move(config, facts)):
            yield (
                f"mixer 'token-augment' would change nothing: difference and interpolate pair "
                f"samples of one class, and the labels of task '{facts.task.name}' are not "
                f"classes; use 'partners: any', noise or drop"
            )

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Augment."""
        terms = (Term(target.head, target.y, 1.0),)
        changed_BND = self._changed(target, progress)
        changed = None if changed_BND is None else Tokens(changed_BND, target.tokens.grid)
        return plain_and_changed(target, self.config, changed, terms)

    def _changed(self, target: Sample, progress: Progress) -> Tensor | None:
        """The augmented tokens; None if nothing changed (no pair, no dropped token)."""
        config, x_BND = self.config, target.tokens.x_BND
        drawn = from_host(partial(self._draw, x_BND.shape), progress, x_BND.device)
        # Where moves within classes alone may have changed something, the step asks the device.
        changed = drawn["changed"]
        if self._moves and len(x_BND) > 1:
            same_BB = self._same(target.y)
            changed = changed or config.partners == "any" or bool((same_BB.sum(1) > 1).any())
            x_BND = self._moved(x_BND, same_BB, drawn)
        if "noise" in drawn:
            x_BND = self._noisy(x_BND, drawn["noise"])
        if "lost" in drawn:
            x_BND = _dropped(x_BND, drawn["lost"], config.fill)
        return x_BND if changed else None

    def _draw(self, shape: torch.Size, progress: Progress) -> dict[str, Any]:
        """All random numbers of a step, and whether noise or drops change anything."""
        config, generator, drawn = self.config, self._generator, dict[str, Any]()
        rows, tokens, _ = shape
        if self._moves and rows > 1:
            for move in ("difference", "interpolate"):
                if getattr(config, move):
                    drawn[move] = torch.rand(rows, rows, generator=generator)
        if config.noise:
            drawn["noise"] = torch.randn(shape, generator=generator)
        if config.drop:
            drawn["lost"] = torch.rand(rows, tokens, generator=generator) < config.drop
        drawn["changed"] = bool(config.noise) or bool(config.drop and drawn["lost"].any())
        return drawn

    def _same(self, y: Tensor) -> Tensor:
        """Which samples may be partners, bool ``[B, B]``; every sample may pair with itself."""
        if self.config.partners == "class":
            return y.unsqueeze(0) == y.unsqueeze(1)
        return torch.ones(len(y), len(y), dtype=torch.bool, device=y.device)

    def _moved(self, x_BND: Tensor, same_BB: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """x + m (x_j − x_k), then x + m (x_j − x). Partners are constants, as in MODALS."""
        pool_BND = x_BND.detach()
        if "difference" in drawn:
            (j_B, k_B), found_B = _partners(drawn["difference"], same_BB, 2)
            step_BND = found_B[:, None, None] * (pool_BND[j_B] - pool_BND[k_B])
            x_BND = x_BND + self.config.difference * step_BND
        if "interpolate" in drawn:
            others_BB = same_BB & ~torch.eye(len(same_BB), dtype=torch.bool, device=same_BB.device)
            (j_B,), found_B = _partners(drawn["interpolate"], others_BB, 1)
            step_BND = found_B[:, None, None] * (pool_BND[j_B] - x_BND)
            x_BND = x_BND + self.config.interpolate * step_BND
        return x_BND

    def _noisy(self, x_BND: Tensor, noise_BND: Tensor) -> Tensor:
        """x + s σ ε, σ the standard deviation of each channel over all tokens of the batch."""
        sigma_D = x_BND.detach().float().std(dim=(0, 1), correction=0)
        return x_BND + (self.config.noise * sigma_D * noise_BND).to(x_BND.dtype)


def _asks_for_moves(config: TokenAugment.Config) -> bool:
    return bool(config.difference or config.interpolate)


def _can_move(config: TokenAugment.Config, facts: Facts) -> bool:
    paired = config.partners == "any" or facts.task.target.kind == "classification"
    return _asks_for_moves(config) and paired


def _partners(draw_BB: Tensor, allowed_BB: Tensor, count: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """``count`` different random partners per sample, and whether the sample has so many."""
    ranked_BB = draw_BB.masked_fill(~allowed_BB, -1.0)
    return ranked_BB.topk(count, dim=1).indices.unbind(1), allowed_BB.sum(1) >= count


def _dropped(x_BND: Tensor, lost_BN: Tensor, fill: str) -> Tensor:
    """``x_BND`` with its dropped tokens filled."""
    if fill == "other" and len(x_BND) > 1:
        filler_BND = x_BND.roll(1, 0)
    else:
        filler_BND = x_BND.mean(dim=1, keepdim=True)
    return torch.where(lost_BN.unsqueeze(-1), filler_BND, x_BND)
