"""Points of data sets: their raw values, or their encoding by a frozen backbone.

A backbone reads sources through its own pretrained embedding. It reads tasks through the embedder
that fits them, initialised from that embedding as at the start of a run. A point is the mean over
the tokens of a sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmodal import randomness, workbench
from xmodal.batch import Points, Tokens
from xmodal.data import Store
from xmodal.errors import UsageError
from xmodal.interfaces import NO_FACTS, Backbone, Context, Embedder, Facts, SourceRequest, TaskFacts
from xmodal.settings import Use
from xmodal.workbench import Registry
from xmodal_analysis.clouds import EMBEDDINGS
from xmodal_analysis.named import LoadedSamples, Named, load_source, load_task
from xmodal_analysis.watch import SILENT, Watch

RAW = "raw"
SIDE, PATCHES = 32, 16
BATCH = 64
_EMBEDDER = "auto"


def choose(text: str, registry: Registry) -> Use[Backbone] | None:
    """The backbone that ``--embed`` names, by name or block; None for raw values."""
    if text == RAW:
        return None
    return workbench.choose("backbone", text, registry, f"--embed (a backbone, or {RAW})")


class RawReader:
    """Reads raw values; both data sets must have samples of the same shape."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.seed = store, seed

    def load(self, named: tuple[Named, Named], samples: int) -> tuple[LoadedSamples, LoadedSamples]:
        """Both data sets; a source takes the size of the other's images. Raises UsageError."""
        loaded: dict[int, LoadedSamples] = {}
        side: tuple[int, ...] = (SIDE, SIDE)
        for i, one in enumerate(named):
            if one.task is not None:
                loaded[i] = load_task(one, samples, self.store, self.seed)
                if loaded[i].x.ndim == 4:
                    side = tuple(loaded[i].x.shape[2:])
        for i, one in enumerate(named):
            if one.source is not None:
                facts = one.source.component.describe(one.source.config)
                if facts.modality == "text":
                    raise UsageError(f"'{one.name}' is text, which has no raw values; set --embed")
                request = SourceRequest(side, side, prepare=lambda raw: raw)
                loaded[i] = load_source(one, samples, self.store, self.seed, request)
        first, second = loaded[0], loaded[1]
        if first.x.shape[1:] != second.x.shape[1:]:
            shapes = [" x ".join(map(str, s.x.shape[1:])) for s in (first, second)]
            raise UsageError(
                f"samples of '{first.name}' are {shapes[0]}, those of '{second.name}' {shapes[1]}: "
                "raw values cannot be compared; choose a backbone with --embed"
            )
        return first, second

    def points(self, samples: LoadedSamples) -> Points:
        """Every sample, flattened to one row."""
        return Points(samples.x.flatten(1).float(), samples.classes_N)


class EmbeddedReader:
    """Reads samples through a frozen pretrained backbone."""

    def __init__(
        self,
        use: Use[Backbone],
        registry: Registry,
        store: Store,
        seed: int,
        space: str = EMBEDDINGS,
        watch: Watch = SILENT,
    ) -> None:
        self.use, self.registry, self.store, self.seed = use, registry, store, seed
        self.space, self.watch = space, watch
        self.facts = use.component.describe(use.config, store)
        facts = Facts(NO_FACTS.task, self.facts)
        self.backbone = workbench.build(use, "backbone", seed, facts, store).eval()

    def load(self, named: tuple[Named, Named], samples: int) -> tuple[LoadedSamples, LoadedSamples]:
        """Both data sets; sources have the size that this backbone was trained on."""
        for one in named:
            if one.source is not None:
                modality = one.source.component.describe(one.source.config).modality
                if self.facts.modality not in (modality, "any"):
                    raise UsageError(
                        f"source '{one.name}' holds {modality}, but backbone '{self.use.name}' was "
                        f"trained on {self.facts.modality}"
                    )
        return self._load(named[0], samples), self._load(named[1], samples)

    def _load(self, one: Named, samples: int) -> LoadedSamples:
        if one.task is not None:
            return load_task(one, samples, self.store, self.seed)
        patch, sides = self.facts.patch, self.facts.grid[:2] or (PATCHES, PATCHES)
        size = (SIDE, SIDE) if patch is None else tuple(min(s, PATCHES) * patch for s in sides)
        text = self.facts.modality == "text"
        request = SourceRequest(
            self.facts.grid if text else size,
            (),
            prepare=self.backbone.prepare_source,
            tokenize=self.backbone.tokenize if text else None,
        )
        return load_source(one, samples, self.store, self.seed, request)

    @torch.no_grad()
    def points(self, samples: LoadedSamples) -> Points:
        """Mean tokens, before or after the encoder."""
        embed = self.backbone.embed if samples.task is None else self._embedder(samples)
        parts = torch.split(samples.x, BATCH)
        pooled = []
        for x in self.watch.steps(f"embedding {samples.name}", parts, len(parts)):
            tokens: Tokens = embed(x)
            if self.space != EMBEDDINGS:
                tokens = self.backbone(tokens)
            pooled.append(tokens.x_BND.float().mean(dim=1))
        return Points(torch.cat(pooled), samples.classes_N)

    def _embedder(self, samples: LoadedSamples) -> Any:
        task: TaskFacts | None = samples.task
        assert task is not None
        use: Use[Embedder] = workbench.chosen("embedder", _EMBEDDER, self.registry, "--embed")
        try:
            grid = use.component.grid(use.config, task, self.facts)
        except ValueError as error:
            raise UsageError(f"'{samples.name}' does not fit '{self.use.name}': {error}") from None
        facts = Facts(task, self.facts, None, grid)
        given = Context.outside(self.store, "e", self.seed, facts, backbone=self.backbone)
        with randomness.seeded(self.seed, "initialise", "embedder"):
            embedder = use.build(given).eval()
        embedder.calibrate(samples.x[:BATCH], self.backbone.reference_norm())
        return embedder


def halves(points: Points) -> tuple[Points, Points]:
    """Two halves of a set, with equally many points."""
    middle = len(points.x_ND) // 2
    return _part(points, slice(0, middle)), _part(points, slice(middle, 2 * middle))


def _part(points: Points, rows: slice | Tensor) -> Points:
    classes = None if points.classes_N is None else points.classes_N[rows]
    return Points(points.x_ND[rows], classes)


def of_class(points: Points, label: int) -> Points:
    """The points of one class, without labels."""
    assert points.classes_N is not None
    return Points(points.x_ND[points.classes_N == label])
