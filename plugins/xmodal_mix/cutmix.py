"""CutMix of tokens: source tokens replace a block of target tokens at the same place.

Yun, Han, Oh, Chun, Choe, Yoo: CutMix, ICCV 2019, between modalities as in PaRe's Table 4.
Shapes: B samples, N target tokens, M source tokens, D width.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.ops import grid_text, plain_and_changed, source_needed
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
        box = self._box(target.tokens.grid, partner.tokens.grid, progress)
        k = prod(stop - start for start, stop in box)
        lam = k / target.tokens.x_BND.shape[1]
        log = {"k": float(k), "lambda": lam}
        if k == 0:
            return plain_and_changed(target, self.config, None, log=log)
        mixed, origin_BN = paste(target.tokens, partner.tokens, box)
        # Eq. 1: L_mix = (1 − λ) L_tar(p^mt, y^t) + λ L_src(p^ms, y^s)
        terms = (Term(target.head, target.y, 1 - lam), Term(partner.head, partner.y, lam))
        return plain_and_changed(target, self.config, mixed, terms, log, origin_BN)

    def _box(self, target: Grid, source: Grid, progress: Progress) -> Box:
        region = common(target, source)
        if region != target and not self._noted:
            self._noted = True
            self._note(
                f"cutmix: {grid_text(source)} source tokens for {grid_text(target)} target tokens; "
                f"blocks are cut from the first {grid_text(region)}"
            )
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


def paste(target: Tokens, source: Tokens, box: Box) -> tuple[Tokens, Tensor]:
    """The target with source tokens inside ``box``, and the source token of every slot."""
    x_BND, s_BMD = target.x_BND, source.x_BND.to(target.x_BND.dtype)
    place = counterparts(target.grid, source.grid)
    inside = torch.zeros(target.grid, dtype=torch.bool)
    inside[tuple(slice(start, stop) for start, stop in box)] = True
    origin_N = torch.where(inside, place, -1).flatten().to(x_BND.device, non_blocking=True)
    replaced_N1 = (origin_N >= 0).unsqueeze(1)
    mixed_BND = torch.where(replaced_N1, s_BMD[:, origin_N.clamp_min(0)], x_BND)
    return Tokens(mixed_BND, target.grid), origin_N.expand(len(x_BND), -1)
