"""CutMix of tokens: source tokens replace a block of target tokens at the same place.

Yun, Han, Oh, Chun, Choe, Yoo: CutMix, ICCV 2019, between modalities as in PaRe's Table 4.
Shapes: B samples, N target tokens, M source tokens, D width.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.ops import grid_text, plain_and_changed, source_needed, used
from xmodal.steps import as_input, from_host
from xmodal_mix.objective import DrawnMixer
from xmodal_mix.places import Grid, common, counterparts

Box = tuple[tuple[int, int], ...]
"""The start (inclusive) and end (exclusive) on every axis of the grid."""


class CutMix(DrawnMixer):
    """Replaces one block of target tokens, the same for the whole micro-batch.

    The block is a rectangle of a 2-D grid, or a span of a sequence or a table row. It covers only
    places where the source has tokens too. λ of Eq. 1 is the share of target tokens that are
    replaced.
    """

    citation = (
        "Yun, Han, Oh, Chun, Choe, Yoo: CutMix: Regularization Strategy to Train Strong "
        "Classifiers with Localizable Features, ICCV 2019"
    )
    needs_source = True

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Cut and paste."""
        partner = source_needed(source, "cutmix")
        grids = target.tokens.grid, partner.tokens.grid
        self._warn(*grids)

        def cut(at: Progress) -> dict[str, Any]:
            box = self._box(common(*grids), at)
            k, total = prod(stop - start for start, stop in box), prod(grids[0])
            # At the ends the step is another: a single view, or a term less.
            share, origin_N = as_input(k / total, 0, 1), pasted(*grids, box)
            return {"k": as_input(k, 0, total), "lambda": share, "origin": origin_N}

        drawn = from_host(cut, progress, target.tokens.x_BND.device)
        k, lam = drawn["k"], drawn["lambda"]
        log = {"k": k, "lambda": lam}
        if not used(k):
            return plain_and_changed(target, self.config, None, log=log)
        mixed, origin_BN = paste(target.tokens, partner.tokens, drawn["origin"])
        # Eq. 1: L_mix = (1 − λ) L_tar(p^mt, y^t) + λ L_src(p^ms, y^s)
        terms = (Term(target.head, target.y, 1 - lam), Term(partner.head, partner.y, lam))
        return plain_and_changed(target, self.config, mixed, terms, log, origin_BN)

    def _warn(self, target: Grid, source: Grid) -> None:
        region = common(target, source)
        if region != target and not self._noted:
            self._noted = True
            self._note(
                f"cutmix: {grid_text(source)} source tokens for {grid_text(target)} target tokens; "
                f"blocks are cut from the first {grid_text(region)}"
            )

    def _box(self, region: Grid, progress: Progress) -> Box:
        lam = self.config.draw(progress, self._generator)
        centre = [int(torch.randint(side, (), generator=self._generator)) for side in region]
        return block(region, lam, tuple(centre))


def block(grid: Grid, lam: float, centre: Grid) -> Box:
    """The block of share λ around ``centre``, clipped to the grid (Yun et al. 2019, section 3.2).

    Its sides are int(side · λ^(1/axes)); an odd side reaches one further towards the end, as in
    timm.
    """
    sides = [int(side * lam ** (1 / len(grid))) for side in grid]
    return tuple(
        (max(0, at - cut // 2), min(side, at + (cut + 1) // 2))
        for side, cut, at in zip(grid, sides, centre, strict=True)
    )


def pasted(target: Grid, source: Grid, box: Box) -> Tensor:
    """The source token ``[N]`` (int64) in every slot of the target; -1 outside of ``box``."""
    inside = torch.zeros(target, dtype=torch.bool)
    inside[tuple(slice(start, stop) for start, stop in box)] = True
    return torch.where(inside, counterparts(target, source), -1).flatten()


def paste(target: Tokens, source: Tokens, origin_N: Tensor) -> tuple[Tokens, Tensor]:
    """The target with the source tokens of ``pasted``, and the source token of every slot."""
    x_BND, s_BMD = target.x_BND, source.x_BND.to(target.x_BND.dtype)
    replaced_N1 = (origin_N >= 0).unsqueeze(1)
    mixed_BND = torch.where(replaced_N1, s_BMD[:, origin_N.clamp_min(0)], x_BND)
    return Tokens(mixed_BND, target.grid), origin_N.expand(len(x_BND), -1)
