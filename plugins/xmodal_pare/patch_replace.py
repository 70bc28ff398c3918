"""PaRe's mixer: replaces target tokens, one by one, by the source's most important tokens.

Shapes: B samples, N target tokens, M source tokens, K replaced tokens, D width.
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
from xmodal.ops import ViewWeights, grid_text, plain_and_changed, source_needed
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
        total = tokens.x_BND.shape[1]
        if self.training:
            self._scheduler.observe(
                lambda k: self._mix(tokens, partner, k, progress)[0], tokens, partner, progress
            )
        k = self._scheduler(progress, self._replaceable(tokens, partner))
        lam = k / total  # λ = k/N, section 3.3
        log = {"k": float(k), "lambda": lam}
        if k == 0 or self.config.beta_mix == 0:
            return plain_and_changed(target, self.config, None, log=log)
        mixed, origin_BN = self._mix(tokens, partner, k, progress)
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
        self, target: Tokens, source: Tokens, k: int, progress: Progress
    ) -> tuple[Tokens, Tensor]:
        """The mixed tokens (Alg. 1) and, for each slot, its source token or -1."""
        replace, match = self._rules(progress)
        keep_BN, scores_BN = self._kept(target, k, replace, progress)
        if match == "same-position":
            if target.grid != source.grid:
                raise UsageError(
                    f"match 'same-position' needs equal grids; the source has "
                    f"{grid_text(source.grid)} tokens, the target {grid_text(target.grid)}"
                )
            slots_BK = _ascending(1 - keep_BN, k)
            inserted_BKD, picks_BK = _pick(source.x_BND, slots_BK), slots_BK
        else:
            chosen = self.selector(source, k, progress)
            by_score = match == "score"
            slots_BK = (
                _lowest_first(keep_BN, scores_BN, k) if by_score else _ascending(1 - keep_BN, k)
            )
            picks_BK = _highest_first(chosen) if by_score else chosen.indices_BK
            inserted_BKD = _weigh(_pick(source.x_BND, picks_BK), chosen.mask_BN.gather(1, picks_BK))
        # Multiply kept and inserted tokens by their masks: the factor 1 carries the gate's gradient
        # (Alg. 1).
        kept_BND = _weigh(target.x_BND, keep_BN)
        index_BKD = slots_BK.unsqueeze(-1).expand_as(inserted_BKD)
        mixed_BND = kept_BND.scatter(1, index_BKD, inserted_BKD.to(kept_BND.dtype))
        origin_BN = torch.full_like(keep_BN, -1, dtype=torch.int64).scatter_(1, slots_BK, picks_BK)
        return Tokens(mixed_BND, target.grid), origin_BN

    def _rules(self, progress: Progress) -> tuple[Replace, Match]:
        late = self.config.late
        if late is not None and progress.epoch >= late.epoch:
            return late.replace, late.match
        return self.config.replace, self.config.match

    def _kept(
        self, target: Tokens, k: int, replace: Replace, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """The mask ``[B, N]`` of the N - k kept target tokens, and the scores that it ranks."""
        if replace == "highest":
            gone: Selection = self.selector(target, k, progress)
            return 1 - gone.mask_BN, gone.scores_BN
        stay: Selection = self.selector(target, target.x_BND.shape[1] - k, progress)
        return stay.mask_BN, stay.scores_BN


def _weigh(x_BND: Tensor, mask_BN: Tensor) -> Tensor:
    """``x_BND`` times its mask of ones; multiplies only if the mask has a gradient."""
    return x_BND * mask_BN.unsqueeze(-1).to(x_BND.dtype) if mask_BN.requires_grad else x_BND


def _pick(x_BMD: Tensor, indices_BK: Tensor) -> Tensor:
    """The tokens ``[B, K, D]`` at ``indices_BK``."""
    return x_BMD.gather(1, indices_BK.unsqueeze(-1).expand(-1, -1, x_BMD.shape[2]))


def _ascending(mask_BN: Tensor, k: int) -> Tensor:
    """The positions ``[B, K]`` of the k ones of each row, in ascending order."""
    return mask_BN.detach().topk(k, dim=1).indices.sort(dim=1).values


def _lowest_first(keep_BN: Tensor, scores_BN: Tensor, k: int) -> Tensor:
    """The positions ``[B, K]`` that are not kept, in ascending order of their scores."""
    ranked_BN = scores_BN.detach().masked_fill(keep_BN.detach() > 0.5, torch.inf)
    return ranked_BN.topk(k, dim=1, largest=False).indices


def _highest_first(chosen: Selection) -> Tensor:
    """The chosen positions ``[B, K]``, in descending order of their scores."""
    ranked_BM = chosen.scores_BN.detach().masked_fill(chosen.mask_BN.detach() < 0.5, -torch.inf)
    return ranked_BM.topk(int(chosen.k), dim=1).indices
