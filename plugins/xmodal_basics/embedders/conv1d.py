"""The ``conv-1d`` embedder: sequences of any number of channels, cut into equal pieces.

Shapes: B samples, C channels, L length, N tokens, D width.
"""

from __future__ import annotations

from math import ceil, nan
from typing import Any, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from xmodal.interfaces import BackboneFacts, Context, TaskFacts, Use
from xmodal_basics.embedders.base import TokenEmbedder, TokenSettings, check

FEWEST_TOKENS = 4
"""If the published rule gives fewer tokens (a long prime length gives one), ``pad: auto`` pads."""


class Conv1d(TokenEmbedder):
    """Cuts ``[B, C, L]`` into pieces and projects each with one convolution.

    The length of a piece is the smallest divisor of L that gives at most ``target_length`` tokens
    (ORCA's rule). With padding, the length is ``ceil(L / target_length)``, and zeros fill the last
    piece. The projection always starts from Xavier's uniform distribution, as in the published
    code.
    """

    class Config(TokenSettings):
        target_length: PositiveInt = Field(512, description="The largest number of tokens.")
        kernel: PositiveInt | None = Field(
            None,
            description="Length of a piece (L is padded to a multiple); null applies the rule.",
        )
        pad: bool | Literal["auto"] = Field(
            "auto",
            description="Pad L instead of looking for a divisor; 'auto' pads if the divisor gives "
            f"fewer than {FEWEST_TOKENS} tokens.",
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        channels, length = context.facts.task.shape
        kernel, count = pieces(config, length, context.facts.backbone.max_tokens)
        self.padding = (0, kernel * count - length)
        if self.padding[1]:
            context.note(
                f"embedder: length {length} padded to {kernel * count}: {count} tokens of {kernel}"
            )
        self.projection = nn.Conv1d(channels, self.width, kernel, stride=kernel)
        gain = nn.init.calculate_gain("relu")
        nn.init.xavier_uniform_(self.projection.weight, gain, generator=context.generator)
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    @classmethod
    def grid(cls, config: Config, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """``(N,)``. Raises ValueError with the reason if the task gives no sequence."""
        check("conv-1d", "a sequence (C, L)", "sequence", task, backbone)
        _, count = pieces(config, task.shape[1], backbone.max_tokens)
        return (count,)

    @classmethod
    def shortened(
        cls, use: Use[Any], task: TaskFacts, backbone: BackboneFacts, most: int
    ) -> Use[Any]:
        """Longer pieces, the last one padded."""
        longer = {"target_length": most, "kernel": None, "pad": True}
        return Use(use.name, cls, use.config.model_copy(update=longer))

    def project(self, x: Tensor) -> Tensor:
        """Pad and project ``[B, C, L]`` to ``[B, N, D]``."""
        x_BDN = self.projection(functional.pad(x, self.padding))
        return x_BDN.transpose(1, 2)  # type: ignore[no-any-return]

    def pieces(self, x: Tensor) -> Tensor:
        """``[B, N, C * K]``: channel after channel the K steps of each piece."""
        x_BCL = functional.pad(x, self.padding, value=nan)
        kernel = self.projection.kernel_size[0]
        return x_BCL.unfold(2, kernel, kernel).transpose(1, 2).flatten(2)


def pieces(config: Conv1d.Config, length: int, max_tokens: int | None) -> tuple[int, int]:
    """The length of a piece and the number of pieces; their product is at least ``length``."""
    if config.kernel is not None:
        return config.kernel, ceil(length / config.kernel)
    limit = min(config.target_length, max_tokens or config.target_length)
    padded = ceil(length / limit)
    if config.pad is True:
        return padded, ceil(length / padded)
    divisor = next(i for i in range(padded, length + 1) if length % i == 0)
    if config.pad == "auto" and length // divisor < min(FEWEST_TOKENS, limit):
        return padded, ceil(length / padded)
    return divisor, length // divisor
