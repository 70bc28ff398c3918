"""Mixup of tokens: target with source (PaRe, Table 4) and target with target (Table 18).

Zhang, Cissé, Dauphin, Lopez-Paz: mixup, ICLR 2018, in the space of the embedded tokens.
Shapes: B samples, N target tokens, M source tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.ops import grid_text, plain_and_changed, source_needed
from xmodal_mix.objective import DrawnMixer
from xmodal_mix.places import counterparts

_CITATION = "Zhang, Cissé, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization, ICLR 2018"


class Mixup(DrawnMixer):
    """x^m = (1 − λ) x^t + λ x^s, token by token, with the losses of Eq. 1-2.

    Target tokens without a source token at their place do not change. λ in the loss is multiplied
    by the share of tokens that are mixed.
    """

    citation = _CITATION
    needs_source = True

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mix."""
        partner = source_needed(source, "mixup")
        mixed, lam = mix(target.tokens, partner.tokens, self.config.draw(progress, self._generator))
        self._warn(target.tokens, partner.tokens)
        # Eq. 1: L_mix = (1 − λ) L_tar(p^mt, y^t) + λ L_src(p^ms, y^s)
        terms = (Term(target.head, target.y, 1 - lam), Term(partner.head, partner.y, lam))
        return plain_and_changed(
            target, self.config, mixed if lam > 0 else None, terms, {"lambda": lam}
        )

    def _warn(self, target: Tokens, source: Tokens) -> None:
        if self._noted or target.grid == source.grid:
            return
        self._noted = True
        count = int((counterparts(target.grid, source.grid) >= 0).sum())
        self._note(
            f"mixup: {grid_text(source.grid)} source tokens for {grid_text(target.grid)} target "
            f"tokens; {count} of {target.x_BND.shape[1]} are mixed"
        )


class TargetMixup(DrawnMixer):
    """x^m = (1 − λ) x_a + λ x_b of two target samples; no source ("target_mixup" of Table 18).

    The two labels give two loss terms, (1 − λ) L_tar(p^m, y_a) + λ L_tar(p^m, y_b), which works for
    every kind of label. The partner of a sample is its neighbour in the micro-batch, whose order is
    random.
    """

    citation = _CITATION

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mix. A micro-batch with a single sample is not mixed."""
        lam = self.config.draw(progress, self._generator)
        if len(target.tokens.x_BND) == 1:
            self._note("target-mixup: micro-batches with a single sample are not mixed")
            lam = 0.0
        partner = Tokens(target.tokens.x_BND.roll(1, 0), target.tokens.grid)
        mixed, _ = mix(target.tokens, partner, lam)
        terms = (
            Term(target.head, target.y, 1 - lam),
            Term(target.head, target.y.roll(1, 0), lam),
        )
        return plain_and_changed(
            target, self.config, mixed if lam > 0 else None, terms, {"lambda": lam}
        )


def mix(target: Tokens, source: Tokens, lam: float) -> tuple[Tokens, float]:
    """(1 − λ) x^t + λ x^s wherever the source has a token, and λ averaged over target tokens."""
    x_BND, s_BMD = target.x_BND, source.x_BND.to(target.x_BND.dtype)
    if target.grid == source.grid:
        return Tokens((1 - lam) * x_BND + lam * s_BMD, target.grid), lam
    place_N = counterparts(target.grid, source.grid).flatten()
    share = int((place_N >= 0).sum()) / len(place_N)
    place_N = place_N.to(x_BND.device, non_blocking=True)
    met_N1 = (place_N >= 0).unsqueeze(1)
    s_BND: Tensor = s_BMD[:, place_N.clamp_min(0)]
    mixed_BND = torch.where(met_N1, (1 - lam) * x_BND + lam * s_BND, x_BND)
    return Tokens(mixed_BND, target.grid), lam * share
