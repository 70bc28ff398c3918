"""What the mixers of this plugin share: Eq. 1-2 of PaRe for any pair of views, and the draw of λ.

PaRe (Cai et al., ICML 2024): L_total = β1 L_tar(p^t, y^t) + β2 L_mix (Eq. 2), with
L_mix = (1 − λ) L_tar(p^mt, y^t) + λ L_src(p^ms, y^s) (Eq. 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.errors import UsageError
from xmodal.interfaces import Settings


class Betas(Settings):
    """The weights of the two views (Eq. 2)."""

    beta_target: float = Field(1.0, ge=0, description="β1, the weight of the target loss (Eq. 2).")
    beta_mix: float = Field(
        1.0, ge=0, description="β2, the weight of the changed view's loss (Eq. 2)."
    )

    @model_validator(mode="after")
    def _some_loss(self) -> Betas:
        if self.beta_target == 0 and self.beta_mix == 0:
            raise ValueError("beta_target and beta_mix are both 0: there is no loss to train on")
        return self


class Drawn(Betas):
    """Settings of mixers whose share λ is drawn."""

    alpha: float = Field(
        1.0, gt=0, description="λ ~ Beta(alpha, alpha), once a micro-batch; 1 is uniform."
    )
    fade: Literal["none", "linear"] = Field(
        "none",
        description="none: one distribution throughout. linear: λ times 1 − epoch/epochs, so that "
        "mixing fades out as PaRe's does.",
    )

    def draw(self, progress: Progress, generator: torch.Generator) -> float:
        """λ in [0, 1], the share of the partner (Zhang et al., 2018, write 1 − λ for it)."""
        from scipy.special import betaincinv

        uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
        lam = float(betaincinv(self.alpha, self.alpha, uniform))
        return lam * (1 - progress.share) if self.fade == "linear" else lam


def plain_and_changed(
    target: Sample,
    betas: Betas,
    changed: Tokens | None,
    terms: Iterable[Term] = (),
    log: Mapping[str, float] | None = None,
    origin_BN: Tensor | None = None,
) -> tuple[View, ...]:
    """The plain view at weight β1, and the changed one with ``terms`` times β2 (Eq. 2).

    Where nothing was changed (``changed`` is None) or β2 is 0 there is the plain view alone, at
    weight β1 + β2, so that the encoder runs once. Terms of weight 0 are left out.
    """
    beta_1, beta_2, log = betas.beta_target, betas.beta_mix, log or {}
    if changed is None or beta_2 == 0:
        return (View(target.tokens, (Term(target.head, target.y, beta_1 + beta_2),), log=log),)
    weighted = tuple(Term(t.head, t.y, beta_2 * t.weight) for t in terms if t.weight > 0)
    plain = (Term(target.head, target.y, beta_1),) if beta_1 > 0 else ()
    both = (View(target.tokens, plain), View(changed, weighted, origin_BN))
    *before, last = [view for view in both if view.terms]
    return (*before, replace(last, log=log))


def needed(source: Sample | None, name: str) -> Sample:
    """The source, or a UsageError that says it is missing."""
    if source is None:
        raise UsageError(f"mixer '{name}' needs source samples; set 'source' in the recipe")
    return source
