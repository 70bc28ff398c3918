"""Sets of points to compare: pooled embeddings and features of target, source and mixed samples.

Pooling is the mean over tokens, as in a classification head. The run's seed decides which samples
are used.

Shapes: B samples of a batch, n samples in all, N tokens, D and F widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal import randomness
from xmodal.batch import Batch, Points, Tokens
from xmodal.data import loader
from xmodal.interfaces import Target
from xmodal.workbench import Opened
from xmodal_analysis.restore import dial
from xmodal_analysis.watch import SILENT, Watch

EMBEDDINGS, FEATURES = "embeddings", "features"
SPACES = (EMBEDDINGS, FEATURES)


@dataclass(frozen=True)
class Cloud:
    """Pooled points of one set of samples, before and after the encoder, with classes."""

    embeddings_ND: Tensor
    features_NF: Tensor
    classes_N: Tensor | None

    def points(self, space: str) -> Points:
        """The points of one of ``SPACES``."""
        chosen = self.embeddings_ND if space == EMBEDDINGS else self.features_NF
        return Points(chosen, self.classes_N)


class Clouds:
    """Reads the samples of a run in memory and runs its model on them."""

    def __init__(self, opened: Opened, samples: int, watch: Watch = SILENT) -> None:
        self.opened, self.dial = opened, dial(opened)
        self.session = opened.session
        self.watch = watch
        self.target_index = self._chosen(self.session.data.train, samples, "target")
        self.source_index = (
            None if opened.source is None else self._chosen(opened.source, samples, "source")
        )
        self.batch = opened.plan.recipe.evaluation_batch

    def target(self) -> Cloud:
        """Training samples of the target."""
        label = self.session.facts.task.target
        return self._run("target", self._target_tokens(), self.target_index, label)

    def source(self) -> Cloud:
        """Samples of the source; the run must have one."""
        facts = self.session.facts.source
        assert self.source_index is not None
        assert facts is not None
        return self._run("source", self._source_tokens(), self.source_index, facts.target)

    def mixed(self, k: int) -> Cloud:
        """The intermediate modality: the target samples with ``k`` tokens replaced."""
        label = self.session.facts.task.target
        return self._run(f"k = {k}", self._mixed_tokens(k), self.target_index, label)

    def most(self) -> int:
        """N, the most tokens that the mixer can replace; 0 if no schedule counts tokens."""
        if self.dial is None:
            return 0
        if self.dial.most < 0:
            with torch.no_grad():
                next(self._mixed_tokens(0))
        return max(0, self.dial.most)

    def _chosen(self, dataset: Dataset[Any], samples: int, name: str) -> Tensor:
        order = randomness.permutation(loader.count(dataset), self.session.seed, "analysis", name)
        return order[:samples].sort().values

    def _pieces(self, dataset: Dataset[Any], index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return self.session.fetch(dataset, torch.split(index, self.batch))

    def _target_tokens(self) -> Iterator[tuple[Tokens, Tensor]]:
        for x, y in self._pieces(self.session.data.train, self.target_index):
            yield self.session.model.embedder(x), y

    def _source_tokens(self) -> Iterator[tuple[Tokens, Tensor]]:
        assert self.opened.source is not None
        assert self.source_index is not None
        for x, y in self._pieces(self.opened.source, self.source_index):
            yield self.session.model.embed_source(x), y

    def _mixed_tokens(self, k: int) -> Iterator[tuple[Tokens, Tensor]]:
        model, progress = self.session.model, self.opened.progress()
        assert self.dial is not None
        self.dial.wanted = k
        partners = self._partners()
        for x, y in self._pieces(self.session.data.train, self.target_index):
            unlabelled = self.session.partners(len(x))[1]
            views = model.views(Batch(x, y, next(partners), unlabelled), progress)
            mixed = [view for view in views if view.origin_BN is not None]
            yield (mixed or views)[-1].tokens, y

    def _partners(self) -> Iterator[tuple[Tensor, Tensor] | None]:
        """For each batch, as many source samples as target samples; chosen samples repeat."""
        sizes = [len(part) for part in torch.split(self.target_index, self.batch)]
        if not self.session.model.mixer.needs_source or self.opened.source is None:
            yield from (None for _ in sizes)
            return
        assert self.source_index is not None
        index = self.source_index[torch.arange(sum(sizes)) % len(self.source_index)]
        yield from self.session.fetch(self.opened.source, torch.split(index, sizes))

    @torch.no_grad()
    def _run(
        self, what: str, batches: Iterator[tuple[Tokens, Tensor]], index: Tensor, label: Target
    ) -> Cloud:
        embeddings, features, labels = [], [], []
        count = len(torch.split(index, self.batch))
        for tokens, y in self.watch.steps(f"encoding {what}", batches, count):
            with self.session.autocast():
                encoded = self.session.model.backbone(tokens)
            embeddings.append(tokens.x_BND.float().mean(dim=1).cpu())
            features.append(encoded.x_BND.float().mean(dim=1).cpu())
            labels.append(y.cpu())
        classes = torch.cat(labels).long() if label.kind == "classification" else None
        return Cloud(torch.cat(embeddings), torch.cat(features), classes)
