"""The ``identity`` backbone: no backbone at all, for baselines that read the samples themselves."""

from __future__ import annotations

from torch import Tensor

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.interfaces import Backbone, BackboneFacts, Context, Settings


class Identity(Backbone):
    """Passes tokens through unchanged. Its width of 0 stands for "as the embedder makes them"."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.facts = context.facts.backbone

    @classmethod
    def describe(cls, config: Settings, store: Store) -> BackboneFacts:
        """The facts of no backbone."""
        return BackboneFacts(name="identity", modality="any", width=0, feature_width=0)

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the tokens."""
        return tokens

    def embed(self, x: Tensor) -> Tokens:
        """A source sample as one token ``[B, 1, numel]``."""
        return Tokens(x.flatten(1)[:, None], (1,))
