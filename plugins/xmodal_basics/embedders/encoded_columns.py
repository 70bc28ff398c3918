"""The ``row-ple`` embedder: columns as tokens whose numbers are encoded before they are projected.

Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning",
NeurIPS 2022 (arXiv 2203.05556). Shapes: B samples, F columns (= N tokens), T numbers of a code, D
width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from xmodal.interfaces import Context
from xmodal_basics.embedders.base import TokenSettings
from xmodal_basics.embedders.columns import Columns

START = 2.0
"""Before data have been seen, bins are even between -START and START: numbers are standardised."""


class EncodedColumns(Columns):
    """``columns``, but a number x becomes ``code(x) @ weight_f + bias_f`` with a code of T numbers.

    ``ple``, piecewise linear (section 3.2 of the paper): bins b_0 < ... < b_T lie at quantiles of
    the training samples, and of the t-th number, (x - b_(t-1)) / (b_t - b_(t-1)), what is below 0
    becomes 0 and what is above 1 becomes 1, but not below the first and above the last bin.
    ``periodic`` (section 3.3): sin(2 pi c x) and cos(2 pi c x) for T/2 frequencies c that train,
    drawn from a normal distribution. Categories and missing values are those of ``columns``.
    """

    citation = (
        "Gorishniy, Rubachev, Babenko: On Embeddings for Numerical Features in Tabular Deep "
        "Learning, NeurIPS 2022"
    )

    class Config(TokenSettings):
        """Settings of ``row-ple``."""

        numbers: Literal["ple", "periodic"] = Field(
            "ple", description="The code: piecewise linear, or waves."
        )
        bins: PositiveInt = Field(
            16, description="Bins of 'ple'; fewer where quantiles of a column are equal."
        )
        frequencies: PositiveInt = Field(24, description="Frequencies of 'periodic'.")
        sigma: PositiveFloat = Field(
            0.1, description="Deviation of the first frequencies, in turns per standard deviation."
        )

    low_FT: Tensor
    width_FT: Tensor
    bins_F: Tensor
    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        columns, bound = len(self.weight_FD), self.width**-0.5
        del self.weight_FD  # instead of a number a column there is one for every part of its code
        waves = config.numbers == "periodic"
        size = 2 * config.frequencies if waves else config.bins
        weight_FTD = torch.empty(columns, size, self.width)
        self.weight_FTD = nn.Parameter(
            nn.init.uniform_(weight_FTD, -bound, bound, generator=context.generator)
        )
        if waves:
            drawn_FK = torch.randn(columns, config.frequencies, generator=context.generator)
            self.frequency_FK = nn.Parameter(config.sigma * drawn_FK)
            return
        edges_T = torch.linspace(-START, START, size + 1)
        self.register_buffer("low_FT", edges_T[:-1].repeat(columns, 1))
        self.register_buffer("width_FT", edges_T.diff().repeat(columns, 1))
        self.register_buffer("bins_F", torch.full((columns,), size))

    def fit(self, x: Tensor) -> None:
        """Put the bins at the quantiles of training samples ``[n, F]``, without missing values.

        Bins that would be empty are left out: their part of the code is always 0.
        """
        if self.config.numbers == "periodic":
            return
        share_T = torch.linspace(0, 1, self.config.bins + 1, dtype=torch.float64)
        for column, x_N in enumerate(x.double().unbind(1)):
            known_N = x_N[~x_N.isnan()]
            if self.levels_F[column] or not len(known_N):
                continue
            edges_E = torch.unique(known_N.quantile(share_T).float())
            if len(edges_E) == 1:  # a constant
                edges_E = torch.cat([edges_E, edges_E + 1])
            count = len(edges_E) - 1
            self.low_FT[column] = math.inf
            self.low_FT[column, :count] = edges_E[:-1]
            self.width_FT[column] = 1.0
            self.width_FT[column, :count] = edges_E.diff()
            self.bins_F[column] = count

    def code(self, number_BF: Tensor) -> Tensor:
        """The code of numbers, ``[B, F, T]``."""
        if self.config.numbers == "periodic":
            turns_BFK = 2 * math.pi * number_BF[..., None] * self.frequency_FK
            return torch.cat([turns_BFK.sin(), turns_BFK.cos()], dim=-1)
        part_BFT = (number_BF[..., None] - self.low_FT) / self.width_FT
        at_T = torch.arange(self.low_FT.shape[1], device=number_BF.device)
        part_BFT = torch.where(at_T > 0, part_BFT.clamp_min(0), part_BFT)
        last_FT = at_T == self.bins_F[:, None] - 1
        return torch.where(last_FT, part_BFT, part_BFT.clamp_max(1))

    def numbers(self, number_BF: Tensor) -> Tensor:
        """Tokens of numbers, ``[B, F, D]``."""
        x_BFD = torch.einsum("bft,ftd->bfd", self.code(number_BF), self.weight_FTD)
        return x_BFD + self.bias_FD

    def projection_parameters(self) -> Iterable[nn.Parameter]:
        """Weights, biases, and the vectors of categories and of missing values."""
        return self.weight_FTD, self.bias_FD, self.missing_FD, self.category_MD
