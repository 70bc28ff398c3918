"""The frozen encoder's features of the source samples, computed once if they fit into memory.

Shapes: n source samples, B samples of a batch, N tokens, F features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xmodal.batch import SOURCE, Tokens
from xmodal.data import loader
from xmodal.interfaces import Pair, Session
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
    x, _ = loader.first(session.source, PROBED)
    return encode(session, x.to(session.device))


class SourceFeatures:
    """Source features and labels by index, for an encoder that does not train.

    ``pooled`` keeps only the mean token. The features are kept on the CPU if they fit into
    ``memory`` bytes; otherwise every batch is encoded again, and ``kept`` is None.
    """

    def __init__(self, session: Session, pooled: bool, memory: float) -> None:
        assert session.source is not None
        self._session, self._source, self._pooled = session, session.source, pooled
        self.kept: Pair | None = None
        probe = self._encode(loader.first(self._source, 1)[0])
        self._grid = probe.grid
        if probe.x_BND.nbytes * loader.count(self._source) <= memory:
            self.kept = self._all()
        else:
            session.note(
                "source features are computed again in every epoch: they need more memory than "
                "stage 'source-head' may use (cache_gb)"
            )

    def _encode(self, x: Tensor) -> Tokens:
        features = encode(self._session, x.to(self._session.device))
        return mean_token(features) if self._pooled else features

    def _all(self) -> Pair:
        parts, labels = [], []
        size, workers = self._session.evaluation_batch, self._session.workers
        for x, y in loader.in_order(self._source, size, workers):
            parts.append(self._encode(x).x_BND.cpu())
            labels.append(y)
        return torch.cat(parts), torch.cat(labels)

    def batches(self, indices: list[Tensor]) -> Iterator[tuple[Tokens, Tensor]]:
        """Features and labels for every index tensor, on the device."""
        device = self._session.device
        if self.kept is not None:
            for index in indices:
                x_BNF, y = (part[index].to(device) for part in self.kept)
                yield Tokens(x_BNF, self._grid), y
            return
        for x, y in loader.batches(self._source, indices, self._session.workers):
            yield self._encode(x), y.to(device)
