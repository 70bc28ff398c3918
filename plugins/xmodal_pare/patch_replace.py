"""PaRe's mixer: replaces target tokens, one by one, by the source's most important tokens.

All shapes are the same for every k, so that k can be a number on the device (``xmodal.steps``).

Shapes: B samples, N target tokens, M source tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from xmodal.batch import Progress, Sample, Selection, Term, Tokens, View
from xmodal.errors import UsageError
from xmodal.interfaces import Context, Facts, Mixer, Scheduler, Selector, Settings
from xmodal.ops import ViewWeights, grid_text, plain_and_changed, source_needed, used
from xmodal.steps import as_input, from_host
from xmodal_pare import CITATION

Replace = Literal["lowest", "highest"]
Match = Literal["position", "score", "same-position"]

_REPLACE = "Which target tokens to replace: those that the selector ranks lowest, or highest."
_MATCH = (
    "Which source token fills which slot. position: in reading order, the first fills the first. "
    "score: the best source token fills the lowest-ranked slot, and so on. same-position: the "
    "source token at the same place as the slot, whatever its score; needs equal grids."
)


class Late(Settings):
    """Different rules for later epochs."""

    epoch: int = Field(ge=0, description="The first epoch with these rules, counted from 0.")
    replace: Replace = Field("lowest", description=_REPLACE)
    match: Match = Field("position", description=_MATCH)


class PatchReplace(Mixer):
    """Replaces the k lowest-ranked target tokens by the k highest-ranked source tokens.

    PaRe, section 3.3, Eq. 1-2 and Algorithm 1. Gives the plain target view and the mixed view. At
    k = 0 they are equal and become a single view, so that the encoder runs once.
    """

    citation = CITATION

    class Config(ViewWeights):
        """Settings of the mixer."""

        source_term: bool = Field(
            True,
            description="Predict the source label from the mixed view too (Eq. 1); false is "
            '"PaRe w/o src_loss" of Table 18.',
        )
        replace: Replace = Field("lowest", description=_REPLACE)
        match: Match = Field("position", description=_MATCH)
        late: Late | None = Field(
            None, description="Different replace and match rules for later epochs."
        )

        @model_validator(mode="after")
        def _loss_at_any_k(self) -> PatchReplace.Config:
            if self.beta_target == 0 and not self.source_term:
                raise ValueError(
                    "beta_target is 0 and source_term is false: the loss would be empty at k = N"
                )
            return self

    config: Config
    needs_source = True
    uses = ("selector", "scheduler")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.selector: Selector = context.components["selector"]
        self._scheduler: Scheduler = context.components["scheduler"]
        self._note = context.note
        self._noted = False

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """``same-position`` needs source and target tokens on equal grids."""
        rules = [config.match] + ([config.late.match] if config.late else [])
        target, source = facts.grid, facts.backbone.grid
        if "same-position" in rules and target and source and len(target) != len(source):
            yield (
                f"match 'same-position' needs source and target tokens on equal grids; backbone "
                f"'{facts.backbone.name}' has {grid_text(source)}, task '{facts.task.name}' has "
                f"{grid_text(target)}; use 'position' or 'score'"
            )

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mix. Raises UsageError if ``same-position`` meets different grids."""
        source = source_needed(source, "patch-replace")
        tokens, partner = target.tokens, source.tokens
        if self.training:
            self._scheduler.observe(
                lambda k: self._mix(tokens, partner, k, self._rules(progress), progress)[0],
                tokens,
                partner,
                progress,
            )
        total, most = tokens.x_BND.shape[1], self._replaceable(tokens, partner)

        def amount(at: Progress) -> dict[str, Any]:
            k = self._scheduler(at, most)
            # At the ends the step is another: a single view, or a term less.
            share = as_input(k / total, 0, 1)  # λ = k/N, section 3.3
            return {"k": as_input(k, 0, total), "lambda": share, "rules": self._rules(at)}

        drawn = from_host(amount, progress, tokens.x_BND.device)
        k, lam = drawn["k"], drawn["lambda"]
        log = {"k": k, "lambda": lam}
        if not used(k) or self.config.beta_mix == 0:
            return plain_and_changed(target, self.config, None, log=log)
        mixed, origin_BN = self._mix(tokens, partner, k, drawn["rules"], progress)
        # Eq. 1: L_mix = (1 − λ) L_tar(p^mt, y^t) + λ L_src(p^ms, y^s); without the source term, the
        # mixed view has no loss at k = N.
        terms = [Term(target.head, target.y, 1 - lam)]
        if self.config.source_term:
            terms.append(Term(source.head, source.y, lam))
        # Eq. 2: L_total = β1 L_tar(p^t, y^t) + β2 L_mix
        return plain_and_changed(target, self.config, mixed, terms, log, origin_BN)

    def _replaceable(self, target: Tokens, source: Tokens) -> int:
        """The largest possible k: the number of tokens on the smaller side."""
        total, available = target.x_BND.shape[1], source.x_BND.shape[1]
        if available < total and not self._noted:
            self._noted = True
            self._note(
                f"patch-replace: {available} source tokens for {total} target tokens; k is at most "
                f"{available}"
            )
        return min(total, available)

    def _mix(
        self,
        target: Tokens,
        source: Tokens,
        k: int | Tensor,
        rules: tuple[Replace, Match],
        progress: Progress,
    ) -> tuple[Tokens, Tensor]:
        """The mixed tokens (Alg. 1) and, for each slot, its source token or -1."""
        replace, match = rules
        x_BND, s_BMD = target.x_BND, source.x_BND.to(target.x_BND.dtype)
        keep_BN, scores_BN = self._kept(target, k, replace, progress)
        gone_BN = keep_BN.detach() < 0.5
        if match == "same-position":
            if target.grid != source.grid:
                raise UsageError(
                    f"match 'same-position' needs equal grids; the source has "
                    f"{grid_text(source.grid)} tokens, the target {grid_text(target.grid)}"
                )
            pick_BN = torch.arange(x_BND.shape[1], device=x_BND.device).expand_as(gone_BN)
            factor_BN = torch.where(gone_BN, 1.0, keep_BN)
        else:
            chosen: Selection = self.selector(source, k, progress)
            taken_BM = chosen.mask_BN.detach() > 0.5
            if match == "score":
                pairs = _by_score(gone_BN, scores_BN.detach(), taken_BM, chosen.scores_BN.detach())
            else:
                pairs = _in_order(gone_BN, taken_BM)
            pick_BN = pairs[0]
            s_BMD = _fill(s_BMD, *pairs, gone_BN, taken_BM)
            mask_BN = _fill(chosen.mask_BN, *pairs, gone_BN, taken_BM)
            factor_BN = torch.where(gone_BN, mask_BN, keep_BN)
        mixed_BND = torch.where(gone_BN.unsqueeze(-1), s_BMD, x_BND)
        if factor_BN.requires_grad:
            # Multiply kept and inserted tokens by their masks: the factor 1 carries the gate's
            # gradient (Alg. 1).
            mixed_BND = mixed_BND * factor_BN.unsqueeze(-1).to(x_BND.dtype)
        return Tokens(mixed_BND, target.grid), torch.where(gone_BN, pick_BN, -1)

    def _rules(self, progress: Progress) -> tuple[Replace, Match]:
        late = self.config.late
        if late is not None and progress.epoch >= late.epoch:
            return late.replace, late.match
        return self.config.replace, self.config.match

    def _kept(
        self, target: Tokens, k: int | Tensor, replace: Replace, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """The mask ``[B, N]`` of the N - k kept target tokens, and the scores that it ranks."""
        if replace == "highest":
            gone: Selection = self.selector(target, k, progress)
            return 1 - gone.mask_BN, gone.scores_BN
        stay: Selection = self.selector(target, target.x_BND.shape[1] - k, progress)
        return stay.mask_BN, stay.scores_BN


# --- which source token fills which slot; equally many slots and tokens are chosen in every row ---


def _in_order(gone_BN: Tensor, taken_BM: Tensor) -> tuple[Tensor, Tensor]:
    """In reading order: the token for each slot ``[B, N]``, and the slot of each token ``[B, M]``.

    Places that are not chosen get some valid number.
    """
    count_BN, count_BM = gone_BN.cumsum(1), taken_BM.cumsum(1)
    return torch.searchsorted(count_BM, count_BN), torch.searchsorted(count_BN, count_BM)


def _by_score(
    gone_BN: Tensor, scores_BN: Tensor, taken_BM: Tensor, scores_BM: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, but the highest-ranked token fills the lowest-ranked slot, and so on."""
    slots_BN = scores_BN.masked_fill(~gone_BN, torch.inf).argsort(dim=1, stable=True)
    tokens_BM = scores_BM.masked_fill(~taken_BM, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    last_N, last_M = slots_BN.shape[1] - 1, tokens_BM.shape[1] - 1
    return (
        tokens_BM.gather(1, slots_BN.argsort(dim=1).clamp_max(last_M)),
        slots_BN.gather(1, tokens_BM.argsort(dim=1).clamp_max(last_N)),
    )


def _fill(x: Tensor, pick_BN: Tensor, slot_BM: Tensor, gone_BN: Tensor, taken_BM: Tensor) -> Tensor:
    """``x`` ``[B, M, ...]`` in the slots that it fills ``[B, N, ...]``; others hold anything."""
    filled: Tensor = _Fill.apply(x, pick_BN, slot_BM, gone_BN, taken_BM)
    return filled


class _Fill(torch.autograd.Function):
    """A gather whose gradient is a gather as well.

    Each chosen token fills one slot, which torch cannot know: it would add up in any order, on a
    GPU not the same every time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, pick_BN: Tensor, slot_BM: Tensor, gone_BN: Tensor, taken_BM: Tensor
    ) -> Tensor:
        ctx.save_for_backward(pick_BN, slot_BM, gone_BN, taken_BM)
        rows_B1 = torch.arange(len(x), device=x.device).unsqueeze(1) * x.shape[1]
        filled = x.flatten(0, 1).index_select(0, (rows_B1 + pick_BN).flatten())
        return filled.view(*pick_BN.shape, *x.shape[2:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pick_BN, slot_BM, gone_BN, taken_BM = ctx.saved_tensors
        gradient = _fill(gradient, slot_BM, pick_BN, taken_BM, gone_BN)
        taken = taken_BM.view(*taken_BM.shape, *[1] * (gradient.dim() - 2))
        return torch.where(taken, gradient, 0.0), None, None, None, None
