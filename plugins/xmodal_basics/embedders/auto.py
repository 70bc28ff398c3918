"""The ``auto`` embedder: picks the embedder that fits the task's samples, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import BackboneFacts, Context, Embedder, TaskFacts, Use
from xmodal_basics.embedders.base import TokenEmbedder, TokenSettings
from xmodal_basics.embedders.columns import Columns
from xmodal_basics.embedders.conv1d import Conv1d
from xmodal_basics.embedders.patch import Patch

PARTS: dict[str, type[TokenEmbedder]] = {"grid": Patch, "sequence": Conv1d, "row": Columns}
NAMES = {"grid": "patch", "sequence": "conv-1d", "row": "columns"}


class AutoEmbedder(Embedder):
    """``patch`` for grids, ``conv-1d`` for sequences, ``columns`` for table rows.

    To set what only one of them has, such as the patch size, name that embedder instead.
    """

    Config = TokenSettings
    parts: ClassVar[Mapping[str, type[TokenEmbedder]]] = PARTS
    names: ClassVar[Mapping[str, str]] = NAMES

    def __init__(self, config: TokenSettings, context: Context) -> None:
        super().__init__(config, context)
        part = self.parts[context.facts.task.form]
        self.part = part(_settings(part, config), context)

    @classmethod
    def grid(
        cls, config: TokenSettings, task: TaskFacts, backbone: BackboneFacts
    ) -> tuple[int, ...]:
        """The grid of the embedder that fits."""
        part = cls.parts[task.form]
        return part.grid(_settings(part, config), task, backbone)

    @classmethod
    def shortened(
        cls, use: Use[Any], task: TaskFacts, backbone: BackboneFacts, most: int
    ) -> Use[Any]:
        """The embedder that fits, by its own name, with fewer tokens."""
        part = cls.parts[task.form]
        own = Use(cls.names[task.form], part, _settings(part, use.config))
        shorter = part.shortened(own, task, backbone, most)
        return use if shorter is own else shorter

    def forward(self, x: Tensor) -> Tokens:
        """Embed a batch."""
        tokens: Tokens = self.part(x)
        return tokens

    def pieces(self, x: Tensor) -> Tensor | None:
        """The pieces of the embedder that fits."""
        return self.part.pieces(x)

    def masked(self, x: Tensor, mask_BN: Tensor, fill_D: Tensor) -> Tokens:
        """Embed a batch with some tokens masked, by the embedder that fits."""
        return self.part.masked(x, mask_BN, fill_D)

    def calibrate(self, x: Tensor, source_norm: float | None) -> None:
        """Calibrate the embedder that fits."""
        self.part.calibrate(x, source_norm)


def _settings(part: type[TokenEmbedder], config: TokenSettings) -> TokenSettings:
    settings = part.Config(**config.model_dump())
    assert isinstance(settings, TokenSettings)
    return settings
