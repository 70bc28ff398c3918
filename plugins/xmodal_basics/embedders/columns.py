"""The ``columns`` embedder: every column of a table becomes a token.

Shapes: B samples, F columns (= N tokens), D width, M levels of all categorical columns together.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor, nn

from xmodal.interfaces import BackboneFacts, Context, TaskFacts
from xmodal_basics.embedders.base import TokenEmbedder, TokenSettings, check


class Columns(TokenEmbedder):
    """Turns ``[B, F]`` into F tokens (FT-Transformer's feature tokenizer, Gorishniy et al. 2021).

    A number x in column f becomes ``x * weight_f + bias_f``. A category has its own vector. A
    missing value (NaN, or an unknown code) becomes a learned vector of its column.
    """

    levels_F: Tensor
    offset_F: Tensor

    Config = TokenSettings

    def __init__(self, config: TokenSettings, context: Context) -> None:
        super().__init__(config, context)
        task = context.facts.task
        levels = task.levels or (0,) * task.shape[0]
        offsets = list(accumulate(levels, initial=0))
        self.register_buffer("levels_F", torch.tensor(levels), persistent=False)
        self.register_buffer("offset_F", torch.tensor(offsets[:-1]), persistent=False)
        # FT-Transformer's start: uniform within 1 / sqrt(D), for numbers and categories alike.
        bound = self.width**-0.5

        def start(rows: int) -> nn.Parameter:
            empty = torch.empty(rows, self.width)
            return nn.Parameter(nn.init.uniform_(empty, -bound, bound, generator=context.generator))

        self.weight_FD = start(len(levels))
        self.bias_FD = start(len(levels))
        self.missing_FD = start(len(levels))
        self.category_MD = start(offsets[-1])

    @classmethod
    def grid(
        cls, config: TokenSettings, task: TaskFacts, backbone: BackboneFacts
    ) -> tuple[int, ...]:
        """``(F,)``. Raises ValueError with the reason if the task gives no table rows."""
        check("columns", "a table row (F,)", "row", task, backbone)
        return (task.shape[0],)

    def project(self, x: Tensor) -> Tensor:
        """Tokens ``[B, F, D]`` of rows ``[B, F]``."""
        number_BF = torch.nan_to_num(x)
        x_BFD = self.numbers(number_BF)
        categorical_F = self.levels_F > 0
        missing_BF = x.isnan() | (categorical_F & ((x < 0) | (x >= self.levels_F)))
        if self.category_MD.shape[0]:
            known_BF = categorical_F & ~missing_BF
            code_BF = torch.where(known_BF, number_BF.long() + self.offset_F, 0)
            x_BFD = torch.where(categorical_F[:, None], self.category_MD[code_BF], x_BFD)
        return torch.where(missing_BF[..., None], self.missing_FD, x_BFD)

    def pieces(self, x: Tensor) -> Tensor:
        """``[B, F, 1]``: the number, or the code of the category, of each column."""
        unknown_BF = (self.levels_F > 0) & ((x < 0) | (x >= self.levels_F))
        return torch.where(unknown_BF, torch.nan, x)[..., None]

    def numbers(self, number_BF: Tensor) -> Tensor:
        """Tokens of numbers, ``[B, F, D]``."""
        return number_BF[..., None] * self.weight_FD + self.bias_FD

    def projection_parameters(self) -> Iterable[nn.Parameter]:
        """Weights, biases, and the vectors of categories and of missing values."""
        return self.weight_FD, self.bias_FD, self.missing_FD, self.category_MD
