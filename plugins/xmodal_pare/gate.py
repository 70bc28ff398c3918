"""PaRe's gate: a small network scores tokens and draws the k best, with a gradient.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal.batch import Progress, Selection, Tokens
from xmodal.interfaces import Context, Selector, Settings
from xmodal.ops import gumbel, hard_subset, straight_through
from xmodal.steps import from_host
from xmodal_pare import CITATION
from xmodal_pare.draw import relaxed_subset, relaxed_subset_exact

# Each of the two draws of a step takes N softmaxes. At N = 64, batch 32, both take 10 ms more than
# the closed form on one core; at N = 196 it is 60 ms, at N = 3136 seconds.
SHORT_LOOP = 64
"""The largest number of tokens for which ``auto`` takes the loop."""


class Gate(Selector):
    """Scores each token with a sigmoid in (0, 1) and selects the k best (PaRe, section 3.3).

    During training, Gumbel noise is added to the scores, and the mask has the straight-through
    gradient of the relaxed draw; ``scores_BN`` are then the noisy keys, which the mask ranks. In
    evaluation, and from epoch ``gumbel_epochs`` on, the mask is the plain top k without a gradient,
    and ``scores_BN`` are the scores.
    """

    citation = CITATION

    class Config(Settings):
        """Settings of the gate."""

        network: Literal["fc", "mlp", "mlp-dropout"] = Field(
            "fc",
            description="fc: one linear layer. mlp: linear, ReLU, linear. mlp-dropout: the same "
            "with dropout after the ReLU (PaRe, Table 6).",
        )
        hidden: int = Field(64, ge=1, description="Hidden width of mlp and mlp-dropout.")
        dropout: float = Field(0.5, ge=0, lt=1, description="Dropout rate of mlp-dropout.")
        temperature: float = Field(
            0.9, gt=0, description="Softmax temperature of the relaxed draw."
        )
        gumbel_epochs: int | None = Field(
            None,
            ge=0,
            description="Draw with Gumbel noise and train the gate only in the first so many "
            "epochs, then take the plain top k; null draws in all epochs, as in the paper.",
        )
        draw: Literal["auto", "closed", "exact"] = Field(
            "auto",
            description="exact: the relaxed draw as published, a loop of k softmaxes. closed: its "
            "limit for many tokens. auto: exact for up to 64 tokens, where it costs nothing, and "
            "closed for more.",
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.network = _network(config, context.facts.backbone.width)
        self._generator = context.generator

    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        """Select ``k`` tokens per row; 0 <= k <= N."""
        x_BND = tokens.x_BND
        noise_BN = from_host(partial(self._noise, x_BND.shape[:2]), progress, x_BND.device)["noise"]
        if noise_BN is None:
            with torch.no_grad():
                scores_BN = self.score(x_BND)
            return Selection(hard_subset(scores_BN, k), scores_BN, k)
        keys_BN = self.score(x_BND) + noise_BN
        ranking_BN = keys_BN.detach()
        draw = self.config.draw
        if draw == "exact" or (draw == "auto" and keys_BN.shape[1] <= SHORT_LOOP):
            khot_BN = relaxed_subset_exact(keys_BN, k, self.config.temperature)
            return Selection(straight_through(khot_BN, k), ranking_BN, k)
        khot_BN = relaxed_subset(keys_BN, k, self.config.temperature)
        return Selection(straight_through(khot_BN, k, ranking_BN), ranking_BN, k)

    def score(self, x_BND: Tensor) -> Tensor:
        """S = σ(FC(x)) ``[B, N]`` (PaRe, section 3.3), without noise."""
        # Compute in full precision: in half precision, hundreds of scores would tie.
        with torch.autocast(x_BND.device.type, enabled=False):
            weight = next(self.network.parameters())
            scores_BN1: Tensor = torch.sigmoid(self.network(x_BND.to(weight.dtype)))
        return scores_BN1.squeeze(-1)

    def _noise(self, shape: torch.Size, progress: Progress) -> dict[str, Tensor | None]:
        """Gumbel noise of ``shape``; None where the mask is the plain top k."""
        epochs = self.config.gumbel_epochs
        if not self.training or (epochs is not None and progress.epoch >= epochs):
            return {"noise": None}
        dtype = next(self.network.parameters()).dtype
        return {"noise": gumbel(shape, dtype, self._generator)}


def _network(config: Gate.Config, width: int) -> nn.Sequential:
    if config.network == "fc":
        return nn.Sequential(nn.Linear(width, 1))
    layers: list[nn.Module] = [nn.Linear(width, config.hidden), nn.ReLU()]
    if config.network == "mlp-dropout":
        layers.append(nn.Dropout(config.dropout))
    return nn.Sequential(*layers, nn.Linear(config.hidden, 1))
