"""The predictor ``kernels``: a linear model on how series respond to many convolution kernels.

The features are those of MiniRocket (shares of responses above a threshold) and of Hydra (how often
a kernel responds most or least of its group).

Shapes: B and n samples, C channels, L length, J kernels, T thresholds of a kernel, G groups of 8
kernels, F features, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Facts, FitData, too_large
from xmodal_basics.embedders import random_kernels
from xmodal_basics.embedders.random_kernels import STEPS
from xmodal_basics.fit import BATCH
from xmodal_basics.penalised import Penalised, PenaltySettings
from xmodal_basics.series_features import series_in

ROWS = tuple(combinations(range(STEPS), 3))
"""The 84 kernels of MiniRocket: 2 at three steps, -1 at the others."""
GOLDEN = (math.sqrt(5) + 1) / 2
MOST_DILATIONS, MOST_CHANNELS = 8, 9
GROUP, MOST_SHARED = 8, 8
GRID, FARTHEST = 2.0**11, 64.0
"""Samples are rounded to 1/2048 of a standard deviation and cut off at 64. Then sums over 9
channels are exact in float32, in any order: no response passes a threshold by rounding.
"""
MOST_RESPONSES, RESPONSES_IN_CACHE = 2**27, 2**18
"""Of one batch at most, for memory; and on a processor, where fewer at a time are twice as fast."""


class Shares(nn.Module):
    """MiniRocket: of each of 84 kernels and dilations, the shares of responses above thresholds.

    A threshold is a quantile of the responses of one training sample, by multiples of the golden
    ratio. Every second kernel leaves out the responses that reach beyond the ends. A kernel reads
    the sum of a random set of channels.
    """

    def __init__(
        self, channels: int, length: int, features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        each = max(1, features // len(ROWS))
        self.plan = list(dilations(length, each))
        weight_JK = -torch.ones(len(ROWS), STEPS)
        for j, row in enumerate(ROWS):
            weight_JK[j, list(row)] = 2
        for number, (_, count) in enumerate(self.plan):
            read_JC = torch.stack([_some(channels, generator) for _ in ROWS])
            self.register_buffer(f"weight_{number}", weight_JK[:, None] * read_JC[:, :, None])
            self.register_buffer(f"threshold_{number}", torch.zeros(len(ROWS), count))

    def calibrate(self, x_NCL: Tensor, generator: torch.Generator) -> None:
        """Set the thresholds from training samples that ``generator`` draws."""
        position = 1
        for number, (dilation, count) in enumerate(self.plan):
            place_JT = torch.arange(position, position + len(ROWS) * count).view(-1, count)
            position += place_JT.numel()
            drawn_J = torch.randint(len(x_NCL), (len(ROWS),), generator=generator)
            weight = self.get_buffer(f"weight_{number}")
            for j, sample in enumerate(drawn_J.tolist()):
                own = _responses(x_NCL[sample : sample + 1], weight[j : j + 1], dilation)[0, 0]
                share_T = place_JT[j].double() * GOLDEN % 1
                # Halfway between two neighbours of the grid, where no response lies.
                below_T = (torch.quantile(own.double(), share_T) * GRID).floor()
                self.get_buffer(f"threshold_{number}")[j] = ((below_T + 0.5) / GRID).float()

    def forward(self, x_BCL: Tensor) -> Tensor:
        """``[B, F]`` of samples on the grid."""
        length, parts = x_BCL.shape[2], []
        for number, (dilation, count) in enumerate(self.plan):
            weight = self.get_buffer(f"weight_{number}")
            response_BJL = _responses(x_BCL, weight, dilation)
            threshold_JT = self.get_buffer(f"threshold_{number}")
            reach = dilation * (STEPS // 2)
            inner = torch.arange(len(ROWS), device=x_BCL.device)[:, None] % 2 != number % 2
            for t in range(count):
                # In place: a comparison that gives booleans takes three times as long.
                above_BJL = response_BJL.clone().gt_(threshold_JT[:, t, None])
                share_BJ = above_BJL.mean(2)
                if length > 2 * reach:
                    inner_BJ = above_BJL[:, :, reach : length - reach].mean(2)
                    share_BJ = torch.where(inner[:, 0], inner_BJ, share_BJ)
                parts.append(share_BJ)
        return torch.cat(parts, dim=1)


class Competition(nn.Module):
    """Hydra: of each group of 8 random kernels, who responds most and who least, summed over time.

    Half of the groups read the series, half its differences. Of the largest response its size is
    summed up, of the least one the number of times; then the root is taken. A group reads the sum
    of some channels.
    """

    def __init__(
        self, channels: int, length: int, features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        dilated = random_kernels.dilations(length)
        groups = max(2, features // (2 * GROUP * len(dilated)))
        self.plan = [(one, part) for one in dilated for part in (0, 1)]
        halves = (groups - groups // 2, groups // 2)
        for number, (_, part) in enumerate(self.plan):
            weight_JK = torch.randn(halves[part] * GROUP, STEPS, generator=generator)
            weight_JK = weight_JK - weight_JK.mean(1, keepdim=True)
            weight_JK = weight_JK / weight_JK.abs().sum(1, keepdim=True)
            read_GC = torch.zeros(halves[part], channels)
            shared = min(max(channels // 2, 1), MOST_SHARED)
            for row_C in read_GC:
                row_C += torch.randint(channels, (shared,), generator=generator).bincount(
                    minlength=channels
                )
            read_JC = read_GC.repeat_interleave(GROUP, dim=0)
            self.register_buffer(f"weight_{number}", weight_JK[:, None] * read_JC[:, :, None])

    def forward(self, x_BCL: Tensor) -> Tensor:
        """``[B, F]``."""
        step_BCL, parts = x_BCL[:, :, 1:] - x_BCL[:, :, :-1], []
        for number, (dilation, part) in enumerate(self.plan):
            weight = self.get_buffer(f"weight_{number}")
            response_BJL = _responses(step_BCL if part else x_BCL, weight, dilation)
            # Equality with the extreme is some times as fast as its place, and only differs where
            # kernels tie, as in a gap: there all of them count.
            response_BGJL = response_BJL.view(
                x_BCL.shape[0], len(weight) // GROUP, GROUP, response_BJL.shape[2]
            )
            wins_BGJL = response_BGJL.clone().eq_(response_BGJL.amax(2, keepdim=True))
            most_BGJ = wins_BGJL.mul_(response_BGJL).sum(3).clamp_min(0)
            least_BGJ = response_BGJL.eq_(response_BGJL.amin(2, keepdim=True)).sum(3)
            parts += [most_BGJ.sqrt().flatten(1), least_BGJ.sqrt().flatten(1)]
        return torch.cat(parts, dim=1)


class ConvolutionKernels(Penalised):
    """Logistic regression or ridge on features of MiniRocket and Hydra, in torch throughout.

    Of sequences every channel is read; of grids with few rows, such as spectrograms, every row is a
    channel. A missing point counts as 0, the standardised mean.
    """

    citation = (
        "Dempster, Schmidt, Webb: MiniRocket, KDD 2021; and: Hydra: competing convolutional "
        "kernels for fast and accurate time series classification, DMKD 2023"
    )

    class Config(PenaltySettings):
        """Settings of ``kernels``."""

        shares: NonNegativeInt = Field(
            2_500, description="Features of MiniRocket, about; 10,000 in the paper."
        )
        wins: NonNegativeInt = Field(
            1_536, description="Features of Hydra, about; 1,024 for each dilation in the paper."
        )

    config: Config
    most_samples: ClassVar[int | None] = 10_000

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        size = series_in(context.facts.task.shape)
        assert size is not None  # or ``problems`` had said so
        self.size = size
        generator = torch.Generator().manual_seed(self.seed)
        parts: list[nn.Module] = []
        if config.shares:
            parts.append(Shares(*size, config.shares, generator))
        if config.wins:
            parts.append(Competition(*size, config.wins, generator))
        self.parts = nn.ModuleList(parts)

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """Report samples that are no series, too short ones, and a split too large for memory."""
        size = series_in(facts.task.shape)
        if size is None:
            yield "kernels are for series, and for grids of at most 128 rows"
        elif size[1] < STEPS:
            yield f"kernels have {STEPS} steps, the series {size[1]}"
        if not config.shares and not config.wins:
            yield "with shares=0 and wins=0 there are no features"
        yield from too_large(facts)

    @property
    def traceable(self) -> bool:
        """It is torch throughout; long series are read in pieces of a batch, which no graph is."""
        return self._at_once(MOST_RESPONSES) >= BATCH

    def fit(self, data: FitData) -> None:
        """Draw thresholds from training samples; then choose the penalty."""
        x_NCL = self._series(data.x_NF)
        generator = torch.Generator().manual_seed(self.seed + 1)
        for part in self.parts:
            if isinstance(part, Shares):
                part.calibrate(x_NCL, generator)
        found, checked = (self._in_pieces(x) for x in (x_NCL, self._series(data.validation_x_NF)))
        _, how = self.choose([(found, checked)], data)
        if how:
            self.note(f"kernels: {found.shape[1]:,} features: {how}")

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``: log-probabilities of classes, log-odds of labels, or numbers."""
        self.check_fitted()
        with torch.autocast(features.x_BND.device.type, enabled=False):
            x_BCL = self._series(features.x_BND.flatten(1).float())
            whole = torch.compiler.is_compiling() and self.traceable
            return self.predicted((self._features if whole else self._in_pieces)(x_BCL))

    def _series(self, x_BF: Tensor) -> Tensor:
        """``[B, C, L]`` on the grid."""
        x_BCL = torch.nan_to_num(x_BF).clamp(-FARTHEST, FARTHEST).view(-1, *self.size)
        return (x_BCL * GRID).round() / GRID

    @torch.no_grad()
    def _features(self, x_BCL: Tensor) -> Tensor:
        return torch.cat([part(x_BCL) for part in self.parts], dim=1)

    def _in_pieces(self, x_NCL: Tensor) -> Tensor:
        most = RESPONSES_IN_CACHE if x_NCL.device.type == "cpu" else MOST_RESPONSES
        pieces = torch.split(x_NCL, min(self._at_once(most), BATCH))
        return torch.cat([self._features(x_BCL) for x_BCL in pieces])

    def _at_once(self, responses: int) -> int:
        """Samples that have so many ``responses`` together."""
        kernels = max(weight.shape[0] for part in self.parts for weight in part.buffers())
        return max(1, responses // (kernels * self.size[1]))


def dilations(length: int, features: int) -> Iterator[tuple[int, int]]:
    """MiniRocket's dilations and how many of ``features`` thresholds each gets, at least one.

    They grow exponentially, at most 8 of them, as long as a kernel fits into the series.
    """
    count = min(features, MOST_DILATIONS)
    most = math.log2(max(1.0, (length - 1) / (STEPS - 1)))
    found, times = np.unique(np.logspace(0, most, count, base=2).astype(int), return_counts=True)
    each = (times * (features / count)).astype(int)
    each[: features - each.sum()] += 1  # what rounding has left
    yield from ((int(d), int(n)) for d, n in zip(found, each, strict=True) if n)


def _some(channels: int, generator: torch.Generator) -> Tensor:
    """A random set of channels as 0 and 1; its size is uniform in its logarithm, at most 9."""
    exponent = torch.rand(1, generator=generator).item()
    size = int(2 ** (exponent * math.log2(min(channels, MOST_CHANNELS) + 1)))
    read_C = torch.zeros(channels)
    read_C[torch.randperm(channels, generator=generator)[: max(1, size)]] = 1
    return read_C


def _responses(x_BCL: Tensor, weight_JCK: Tensor, dilation: int) -> Tensor:
    """``[B, J, L]``; zeros are beyond the ends."""
    reach = dilation * (STEPS // 2)
    return functional.conv1d(x_BCL, weight_JCK, padding=reach, dilation=dilation)
