"""The ``identity`` backbone: changes nothing, for baselines that read the raw samples."""

from __future__ import annotations

from torch import Tensor

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.interfaces import Backbone, BackboneFacts, Context, Settings


class Identity(Backbone):
    """Passes tokens through unchanged. Its width of 0 means any width that the embedder makes."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.facts = context.facts.backbone

    @classmethod
    def describe(cls, config: Settings, store: Store) -> BackboneFacts:
        """The facts of a backbone that changes nothing."""
        return BackboneFacts(name="identity", modality="any", width=0, feature_width=0)

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the tokens."""
        return tokens

    def embed(self, x: Tensor) -> Tokens:
        """A source sample as one token ``[B, 1, numel]``."""
        return Tokens(x.flatten(1)[:, None], (1,))
