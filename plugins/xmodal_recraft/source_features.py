"""The frozen encoder's features of the source samples, computed once if they fit into memory.

Shapes: n source samples, B samples of a batch, N tokens, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from xmodal.batch import SOURCE, Tokens
from xmodal.data import loader
from xmodal.interfaces import Session
from xmodal.ops import evaluating

PROBED = 8


@torch.no_grad()
def encode(session: Session, x: Tensor) -> Tokens:
    """Features of source samples on the device, without dropout, in float32."""
    model = session.model
    with evaluating(model.backbone), session.autocast():
        features = model.backbone(model.embed_source(x))
    return Tokens(features.x_BND.float(), features.grid)


def mean_token(features: Tokens) -> Tokens:
    """The mean over the tokens, as features of one token."""
    return Tokens(features.x_BND.mean(1, keepdim=True), (1,) * len(features.grid))


@torch.no_grad()
def reads_the_mean(session: Session) -> bool:
    """Whether the source head predicts the same from the mean token as from all tokens."""
    model = session.model
    head = model.predictor if model.share_head else model.source_predictor
    assert head is not None
    features = _probe(session)
    with evaluating(head):
        whole = model.apply_head(SOURCE, features)
        try:
            pooled = model.apply_head(SOURCE, mean_token(features))
        except (RuntimeError, ValueError):
            return False  # a head that builds maps needs the grid
    return whole.shape == pooled.shape and torch.allclose(whole, pooled, rtol=1e-4, atol=1e-5)


def _probe(session: Session) -> Tokens:
    assert session.source is not None
    return encode(session, session.first(session.source, PROBED)[0])


class SourceFeatures:
    """Source features and labels by index, for an encoder that does not train.

    ``pooled`` keeps only the mean token. The features are kept on the CPU if they fit into
    ``memory`` bytes; otherwise every batch is encoded again, and ``kept`` is None.
    """

    def __init__(self, session: Session, pooled: bool, memory: float) -> None:
        assert session.source is not None
        self._session, self._source, self._pooled = session, session.source, pooled
        self.kept: TensorDataset | None = None
        probe = next(self._encoded([torch.arange(1)]))[0]
        self._grid = probe.grid
        if probe.x_BND.nbytes * loader.count(self._source) <= memory:
            self.kept = self._all()
        else:
            session.note(
                "source features are computed again in every epoch: they need more memory than "
                "stage 'source-head' may use (cache_gb)"
            )

    def _encoded(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tokens, Tensor]]:
        for x, y in self._session.fetch(self._source, indices):
            features = encode(self._session, x)
            yield mean_token(features) if self._pooled else features, y

    def _all(self) -> TensorDataset:
        everything = torch.arange(loader.count(self._source))
        pieces = torch.split(everything, self._session.evaluation_batch)
        pairs = [(features.x_BND.cpu(), y.cpu()) for features, y in self._encoded(pieces)]
        return TensorDataset(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))

    def batches(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tokens, Tensor]]:
        """Features and labels for every index tensor, on the device."""
        if self.kept is None:
            yield from self._encoded(indices)
            return
        for x_BNF, y in self._session.fetch(self.kept, indices):
            yield Tokens(x_BNF, self._grid), y
