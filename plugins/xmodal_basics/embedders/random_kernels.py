"""The ``random-kernels`` embedder: what series classifiers look at, kept in order of time.

ROCKET and its kin convolve a series with many random kernels and pool each response over all of
time; a linear model on that is hard to beat. Here responses are pooled over short segments instead,
so that a backbone reads a sequence of them.

Shapes: B samples, C channels, L length, N tokens (segments), J kernels, K steps of a kernel, D
width.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from xmodal.interfaces import BackboneFacts, Context, TaskFacts
from xmodal_basics.embedders.base import TokenEmbedder, TokenSettings, check

STEPS = 9
"""K, as in MiniRocket."""
GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, spread evenly: where among its responses a kernel's threshold lies."""


class RandomKernels(TokenEmbedder):
    """Features of N equal segments of ``[B, C, L]``, then one linear layer.

    For each of J fixed random kernels: the share of responses in the segment that are above the
    kernel's threshold, and the largest one; for each channel: mean, standard deviation, least and
    largest value. Kernels have 9 normal weights less their mean, on a random set of channels, with
    dilations 1, 2, 4, ... up to the length. Thresholds are quantiles of responses in a first batch,
    by which the features are standardised, too. Only the linear layer trains.
    """

    citation = (
        "Dempster, Petitjean, Webb: ROCKET: Exceptionally Fast and Accurate Time Series "
        "Classification Using Random Convolutional Kernels, DMKD 2020; and MiniRocket, KDD 2021"
    )

    class Config(TokenSettings):
        kernels: PositiveInt = Field(256, description="J, the number of kernels.")
        tokens: PositiveInt = Field(16, description="N, the number of segments, at most.")

    thresholds_J: Tensor
    mean_E: Tensor
    scale_E: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        channels, length = context.facts.task.shape
        self.dilations = dilations(length)
        # Kernels go in turn to the dilations, so that any number of them covers all.
        for number, dilation in enumerate(self.dilations):
            count = len(range(number, config.kernels, len(self.dilations)))
            weights = kernels(count, channels, context.generator)
            self.register_buffer(f"kernels_{dilation}", weights)
        features = 2 * config.kernels + 4 * channels
        self.register_buffer("thresholds_J", torch.zeros(config.kernels))
        self.register_buffer("mean_E", torch.zeros(features))
        self.register_buffer("scale_E", torch.ones(features))
        self.projection = nn.Linear(features, self.width)
        nn.init.xavier_uniform_(self.projection.weight, generator=context.generator)
        nn.init.zeros_(self.projection.bias)

    @classmethod
    def grid(cls, config: Config, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """``(N,)``. Raises ValueError with the reason if the task gives no sequence."""
        check("random-kernels", "a sequence (C, L)", "sequence", task, backbone)
        return (min(config.tokens, task.shape[1], backbone.max_tokens or config.tokens),)

    def responses(self, x: Tensor) -> Tensor:
        """``[B, J, L]``: zeros are beyond the ends. Ordered by dilation."""
        parts = []
        for dilation in self.dilations:
            weights: Any = getattr(self, f"kernels_{dilation}")
            if len(weights):
                reach = dilation * (STEPS // 2)
                parts.append(functional.conv1d(x, weights, padding=reach, dilation=dilation))
        return torch.cat(parts, dim=1)

    def features(self, x: Tensor) -> Tensor:
        """``[B, N, 2 J + 4 C]``, not yet standardised.

        Segment n reaches from floor(n L / N) to ceil((n + 1) L / N): neighbours share a step where
        N does not divide L.
        """
        count, length = self.token_grid[0], x.shape[2]
        # Slices, because ONNX knows no adaptive pooling into segments of unequal length.
        segments = [(n * length // count, ceil((n + 1) * length / count)) for n in range(count)]
        response_BJL = self.responses(x)
        above_BJL = (response_BJL > self.thresholds_J[:, None]).to(x.dtype)

        def mean(value: Tensor) -> Tensor:
            return torch.stack([value[..., a:b].mean(2) for a, b in segments], dim=2)

        def largest(value: Tensor) -> Tensor:
            return torch.stack([value[..., a:b].amax(2) for a, b in segments], dim=2)

        mean_BCN = mean(x)
        variance_BCN = (mean(x.square()) - mean_BCN.square()).clamp_min(0)
        parts = (
            mean(above_BJL), largest(response_BJL),
            mean_BCN, variance_BCN.sqrt(), -largest(-x), largest(x),
        )  # fmt: skip
        return torch.cat(parts, dim=1).transpose(1, 2)

    @torch.no_grad()
    def calibrate(self, x: Tensor, source_norm: float | None) -> None:
        """Thresholds and scales from a first batch, then the norm of the tokens."""
        response = self.responses(x).transpose(0, 1).flatten(1).sort(dim=1).values
        kernels = len(response)
        share_J = (torch.arange(1, kernels + 1) * GOLDEN) % 1
        place_J1 = (share_J * (response.shape[1] - 1)).long()[:, None].to(x.device)
        # Between two responses: one that is equal to it would fall on either side by rounding.
        below, above = response.gather(1, place_J1), response.gather(1, place_J1 + 1)
        self.thresholds_J.copy_((below + above)[:, 0] / 2)
        feature_XE = self.features(x).flatten(0, 1)
        self.mean_E.copy_(feature_XE.mean(0))
        scale_E = feature_XE.std(0, correction=0)
        self.scale_E.copy_(torch.where(scale_E > 1e-6 * (1 + self.mean_E.abs()), scale_E, 1))
        super().calibrate(x, source_norm)

    def project(self, x: Tensor) -> Tensor:
        """Features of ``[B, C, L]``, standardised and projected to ``[B, N, D]``."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            # In half precision a response may fall on the other side of its threshold.
            feature_BNE = (self.features(x.float()) - self.mean_E) / self.scale_E
        return self.projection(feature_BNE)  # type: ignore[no-any-return]


def dilations(length: int) -> list[int]:
    """1, 2, 4, ... as long as a kernel fits into the series; at least 1."""
    found = [1]
    while 2 * found[-1] * (STEPS - 1) < length:
        found.append(2 * found[-1])
    return found


def kernels(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """Random kernels ``[J, C, K]`` as in ROCKET: normal weights less their mean.

    Each reads a random set of channels, of a size that is uniform in its logarithm.
    """
    weight_JCK = torch.randn(count, channels, STEPS, generator=generator)
    weight_JCK = weight_JCK - weight_JCK.mean(2, keepdim=True)
    exponent_J = torch.rand(count, generator=generator)
    size_J = (channels + 1.0) ** exponent_J
    order_JC = torch.rand(count, channels, generator=generator).argsort(1).argsort(1)
    return weight_JCK * (order_JC < size_J.long().clamp(1, channels)[:, None])[..., None]
