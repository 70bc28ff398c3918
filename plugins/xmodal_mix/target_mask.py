"""Masking of target tokens: "target_mask" of PaRe's Table 18, patch replacement without a source.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.interfaces import Context, Mixer, Scheduler, Selector
from xmodal.ops import ViewWeights, plain_and_changed, used
from xmodal.steps import as_input, from_host


class TargetMask(Mixer):
    """Masks the k lowest-ranked target tokens and predicts the target's label from the others.

    The scheduler sets k; the selector ranks the tokens. If the selector's mask has a gradient, the
    gradient flows through the factors of kept and masked tokens, as in PaRe's Algorithm 1.
    """

    citation = (
        "Cai, Li, Ma, Kang, Xie, Sun, Zhu: Enhancing Cross-Modal Fine-Tuning with Gradually "
        "Intermediate Modality Generation (PaRe), ICML 2024"
    )

    class Config(ViewWeights):
        """Settings of the mixer."""

        beta_target: float = Field(
            1.0, gt=0, description="β1, the weight of the target loss (Eq. 2)."
        )
        fill: Literal["zero", "mean", "learned"] = Field(
            "zero",
            description="What replaces a masked token. zero: zeros, as after multiplying by the "
            "mask in PaRe's Algorithm 1. mean: the sample's mean token. learned: one trained token "
            "for all slots.",
        )
        weight: Literal["kept", "whole"] = Field(
            "kept",
            description="Weight of the masked view's loss, besides β2. kept: 1 − λ, the share of "
            "kept tokens, as for the target term in Eq. 1. whole: 1.",
        )

    config: Config
    keeps_samples = True
    uses = ("selector", "scheduler")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.selector: Selector = context.components["selector"]
        self._scheduler: Scheduler = context.components["scheduler"]
        self.token_D: nn.Parameter | None = None
        if config.fill == "learned":
            start_D = torch.randn(context.facts.backbone.width, generator=context.generator)
            self.token_D = nn.Parameter(0.02 * start_D)

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mask."""
        total = target.tokens.x_BND.shape[1]

        def amount(at: Progress) -> dict[str, Any]:
            k = self._scheduler(at, total)
            # At the ends the step is another: a single view.
            return {"k": as_input(k, 0, total), "lambda": as_input(k / total, 0, 1)}

        drawn = from_host(amount, progress, target.tokens.x_BND.device)
        k, lam = drawn["k"], drawn["lambda"]
        log = {"k": k, "lambda": lam}
        weight = 1.0 if self.config.weight == "whole" else 1 - lam
        if not used(k) or self.config.beta_mix == 0:
            return plain_and_changed(target, self.config, None, log=log)
        masked = self._mask(target.tokens, k, progress)
        terms = (Term(target.head, target.y, weight),)
        return plain_and_changed(target, self.config, masked, terms, log)

    def _mask(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Tokens:
        x_BND = tokens.x_BND
        keep_BN = self.selector(tokens, x_BND.shape[1] - k, progress).mask_BN
        keep_BN1 = keep_BN.unsqueeze(-1).to(x_BND.dtype)
        masked_BND = x_BND * keep_BN1
        fill = self._fill(x_BND)
        if fill is not None:
            masked_BND = masked_BND + fill * (1 - keep_BN1)
        return Tokens(masked_BND, tokens.grid)

    def _fill(self, x_BND: Tensor) -> Tensor | None:
        if self.config.fill == "mean":
            return x_BND.mean(dim=1, keepdim=True)
        return None if self.token_D is None else self.token_D.to(x_BND.dtype)
