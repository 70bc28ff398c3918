"""Mixup of tokens: target with source (PaRe, Table 4) and target with target (Table 18).

Zhang, Cissé, Dauphin, Lopez-Paz: mixup, ICLR 2018, in the space of the embedded tokens.
Shapes: B samples, N target tokens, M source tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.ops import full_precision, grid_text, plain_and_changed, source_needed, used
from xmodal.steps import as_input, from_host
from xmodal_mix.objective import DrawnMixer
from xmodal_mix.places import counterparts

_CITATION = "Zhang, Cissé, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization, ICLR 2018"


class _Mixing(DrawnMixer):
    """A mixer that moves tokens towards those at their place in other samples."""

    def _mixed(
        self, target: Tokens, source: Tokens, progress: Progress
    ) -> tuple[Tokens | None, Tensor | float]:
        """The mixed tokens, None if none is mixed, and λ averaged over all target tokens."""
        grids = target.grid, source.grid

        def draw(at: Progress) -> dict[str, Any]:
            lam = self.config.draw(at, self._generator)
            place_N = None if grids[0] == grids[1] else counterparts(*grids).flatten()
            share = 1.0 if place_N is None else int((place_N >= 0).sum()) / len(place_N)
            # At 0 the step is another: a single view. At 1 it has a term less.
            mean = as_input(lam * share, 0, 1)
            return {"lambda": as_input(lam, 0), "mean": mean, "place": place_N}

        drawn = from_host(draw, progress, target.x_BND.device)
        if not used(drawn["lambda"]):
            return None, 0.0
        return mix(target, source, drawn["lambda"], drawn["place"]), drawn["mean"]


class Mixup(_Mixing):
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
        mixed, lam = self._mixed(target.tokens, partner.tokens, progress)
        self._warn(target.tokens, partner.tokens)
        # Eq. 1: L_mix = (1 − λ) L_tar(p^mt, y^t) + λ L_src(p^ms, y^s)
        terms = (Term(target.head, target.y, 1 - lam), Term(partner.head, partner.y, lam))
        return plain_and_changed(target, self.config, mixed, terms, {"lambda": lam})

    def _warn(self, target: Tokens, source: Tokens) -> None:
        if self._noted or target.grid == source.grid:
            return
        self._noted = True
        count = int((counterparts(target.grid, source.grid) >= 0).sum())
        self._note(
            f"mixup: {grid_text(source.grid)} source tokens for {grid_text(target.grid)} target "
            f"tokens; {count} of {target.x_BND.shape[1]} are mixed"
        )


class TargetMixup(_Mixing):
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
        single = len(target.tokens.x_BND) == 1
        if single:
            self._note("target-mixup: micro-batches with a single sample are not mixed")
        partner = Tokens(target.tokens.x_BND.roll(1, 0), target.tokens.grid)
        mixed, lam = self._mixed(target.tokens, partner, progress)
        if single:
            mixed, lam = None, 0.0
        terms = (
            Term(target.head, target.y, 1 - lam),
            Term(target.head, target.y.roll(1, 0), lam),
        )
        return plain_and_changed(target, self.config, mixed, terms, {"lambda": lam})


def mix(target: Tokens, source: Tokens, lam: Tensor, place_N: Tensor | None = None) -> Tokens:
    """(1 − λ) x^t + λ x^s wherever the source has a token.

    ``place_N`` are the ``counterparts`` in the source; None if the grids are equal.
    """
    x_BND, s_BND = target.x_BND, source.x_BND.to(target.x_BND.dtype)
    if place_N is not None:
        s_BND = s_BND[:, place_N.clamp_min(0)]
    # In half precision, λ and 1 − λ as tensors would lose digits before they are used.
    high_BND = full_precision(x_BND)
    mixed_BND = ((1 - lam) * high_BND + lam * full_precision(s_BND)).to(x_BND.dtype)
    if place_N is not None:
        mixed_BND = torch.where((place_N >= 0).unsqueeze(1), mixed_BND, x_BND)
    return Tokens(mixed_BND, target.grid)
