"""A gate whose noise does not drown out its scores and whose relaxed mask stays in (0, 1).

Shapes: B samples, N tokens, D their width, H width after the first layer.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import Progress, Selection, Tokens
from xmodal.interfaces import Context, Selector, Settings
from xmodal.ops import gumbel, hard_subset
from xmodal.steps import from_host
from xmodal_beyond.capped_simplex import top_k

# Mean square below which the tokens of a sample count as equal.
_EQUAL = 1e-12


class LMLGate(Selector):
    """Scores tokens by logits and takes the k best, with the gradient of the LML projection.

    The scores are s = FC(x) of standardised tokens, without a sigmoid. In training, the keys are
    s + c·G with standard Gumbel noise G and a scale c that falls over the training. The mask is the
    hard top k of the keys and has the gradient of y = σ((keys + ν)/τ), Σ y = k, in every epoch;
    ``scores_BN`` are the keys. In evaluation, the mask is the plain top k of s without a gradient.
    """

    citation = (
        "Amos, Koltun, Kolter: The Limited Multi-Label Projection Layer, 2019, arXiv 1906.08707"
    )

    class Config(Settings):
        """Settings of the gate."""

        network: Literal["fc", "mlp"] = Field(
            "fc", description="fc: one linear layer. mlp: linear, ReLU, linear."
        )
        hidden: int = Field(64, ge=1, description="Hidden width of mlp.")
        standardise: bool = Field(
            True,
            description="Centre and scale the tokens of every sample before scoring, so that noise "
            "and temperature have the same meaning on every backbone.",
        )
        temperature: float = Field(
            1.0, gt=0, description="τ of the relaxed mask, in units of the logits."
        )
        noise_start: float = Field(
            1.0, ge=0, description="Scale of the Gumbel noise at the start; 0 for no noise."
        )
        noise_stop: float = Field(0.0, ge=0, description="Scale of the Gumbel noise at the end.")
        noise_until: float = Field(
            1.0,
            gt=0,
            le=1,
            description="Share of the training after which noise_stop is reached, linearly.",
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        width = context.facts.backbone.width
        mlp = config.network == "mlp"
        self.first = nn.Linear(width, config.hidden if mlp else 1)
        self.rest = (
            nn.Sequential(nn.ReLU(), nn.Linear(config.hidden, 1)) if mlp else nn.Sequential()
        )
        self._generator = context.generator

    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        """Select ``k`` tokens per row; 0 <= k <= N."""
        if not self.training:
            with torch.no_grad():
                scores_BN = self.score(tokens.x_BND)
                return Selection(hard_subset(scores_BN, k), scores_BN, k)
        x_BND = tokens.x_BND
        noise_BN = from_host(partial(self._noise, x_BND.shape[:2]), progress, x_BND.device)["noise"]
        keys_BN = self.score(x_BND)
        if noise_BN is not None:
            keys_BN = keys_BN + noise_BN
        return Selection(top_k(keys_BN, k, self.config.temperature), keys_BN.detach(), k)

    def score(self, x_BND: Tensor) -> Tensor:
        """The logits s ``[B, N]``, without noise."""
        # Compute in full precision: in half precision, hundreds of scores would tie.
        with torch.autocast(x_BND.device.type, enabled=False):
            x_BND = x_BND.to(self.first.weight.dtype)
            h_BNH = functional.linear(x_BND, self.first.weight)
            if self.config.standardise:
                # W (x − mean)/size = (W x − mean of W x)/size: avoids a copy of the wide tokens.
                h_BNH = (h_BNH - h_BNH.mean(dim=1, keepdim=True)) / spread(x_BND)
            scores_BN1: Tensor = self.rest(h_BNH + self.first.bias)
        return scores_BN1.squeeze(-1)

    def _noise(self, shape: torch.Size, progress: Progress) -> dict[str, Tensor | None]:
        scale, dtype = self.noise(progress), self.first.weight.dtype
        if scale == 0:
            return {"noise": None}
        return {"noise": scale * gumbel(shape, dtype, self._generator, exponential=True)}

    def noise(self, progress: Progress) -> float:
        """c, the scale of the noise at this point of the training."""
        done = progress.share_of_steps / self.config.noise_until
        start, stop = self.config.noise_start, self.config.noise_stop
        return float(start + (stop - start) * min(1.0, done))


@torch.no_grad()
def spread(x_BND: Tensor) -> Tensor:
    """The root mean square ``[B, 1, 1]`` of each sample's tokens minus their mean; no gradient.

    Without this division, initial logits spread as little as the tokens, possibly far below the
    noise.
    """
    mean_B1D = x_BND.mean(dim=1, keepdim=True)
    count = x_BND.shape[1] * x_BND.shape[2]
    total_B11: Tensor = torch.linalg.vector_norm(x_BND, dim=(1, 2), keepdim=True).square() / count
    return (total_B11 - mean_B1D.square().mean(dim=2, keepdim=True)).clamp_min(_EQUAL).sqrt()
