"""The random share λ of mixers, for the loss of PaRe (Cai et al., ICML 2024).

L_total = β1 L_tar(p^t, y^t) + β2 L_mix (Eq. 2), with
L_mix = (1 − λ) L_tar(p^mt, y^t) + λ L_src(p^ms, y^s) (Eq. 1).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from xmodal.batch import Progress
from xmodal.interfaces import Context, Mixer
from xmodal.ops import ViewWeights


class Drawn(ViewWeights):
    """Settings of mixers that draw their share λ at random."""

    alpha: float = Field(
        1.0, gt=0, description="λ ~ Beta(alpha, alpha), once per micro-batch; 1 is uniform."
    )
    fade: Literal["none", "linear"] = Field(
        "none",
        description="none: the same distribution in all epochs. linear: λ times 1 − epoch/epochs, "
        "so that mixing fades out as in PaRe.",
    )

    def draw(self, progress: Progress, generator: torch.Generator) -> float:
        """λ in [0, 1], the share of the partner (1 − λ in Zhang et al., 2018)."""
        from scipy.special import betaincinv

        uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
        lam = float(betaincinv(self.alpha, self.alpha, uniform))
        return lam * (1 - progress.share) if self.fade == "linear" else lam


class DrawnMixer(Mixer):
    """A mixer whose share λ is drawn."""

    Config = Drawn
    config: Drawn

    def __init__(self, config: Drawn, context: Context) -> None:
        super().__init__(config, context)
        self._generator, self._note, self._noted = context.generator, context.note, False
