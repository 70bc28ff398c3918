"""The ``flat`` embedder: a whole sample as one token, for backbones that take any width."""

from __future__ import annotations

from math import prod

from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import BackboneFacts, Embedder, TaskFacts


class Flat(Embedder):
    """Flattens every sample to a single token that holds all its numbers; trains nothing."""

    @classmethod
    def grid(cls, config: object, task: TaskFacts, backbone: BackboneFacts) -> tuple[int, ...]:
        """``(1,)``. Raises ValueError if the backbone reads tokens of another width."""
        width = prod(task.shape)
        if backbone.width not in (0, width):
            raise ValueError(
                f"embedder 'flat' makes one token of width {width}; backbone '{backbone.name}' "
                f"reads tokens of width {backbone.width} (use it with backbone 'identity')"
            )
        return (1,)

    def forward(self, x: Tensor) -> Tokens:
        """``[B, *shape]`` to ``[B, 1, numel]``."""
        return Tokens(x.flatten(1)[:, None], (1,))
