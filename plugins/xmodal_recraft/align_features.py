"""RECRAFT's feature alignment: the target's embeddings move to where the source's are.

The published distance is a Wasserstein distance between mean tokens: its labels are all 0.

Shapes: B target samples, n source samples, D width of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from xmodal.batch import Points, Progress
from xmodal.data import loader
from xmodal.engine import randomness
from xmodal.interfaces import Context, Distance, Facts
from xmodal.recipe.use import Use, default
from xmodal_recraft.preparing import Prepare, Preparing, still

if TYPE_CHECKING:
    from xmodal.engine.session import Session


class AlignFeatures(Prepare):
    """Trains the target embedder to bring the mean tokens of both modalities together.

    The source's mean tokens are computed once. No labels are looked at.
    """

    class Config(Preparing):
        """Settings of feature alignment."""

        epochs: int = Field(1, ge=1, description="Times ``steps`` optimizer steps.")
        steps: int = Field(60, ge=1, description="Optimizer steps an epoch.")
        samples: int = Field(128, ge=1, description="Target samples a step, drawn at random.")
        source_samples: int = Field(5000, ge=1, description="Source samples, at most.")
        distance: Use[Distance] = Field(
            default("sinkhorn"), description="Distance between the two sets of mean tokens."
        )
        train: tuple[str, ...] = Field(
            ("embedder.*",), description="Patterns over parameter names."
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._distance: Distance = config.distance.build(context)

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """What the distance says of itself."""
        for line in config.distance.component.problems(config.distance.config, facts):
            yield f"distance '{config.distance.name}': {line}"

    @torch.no_grad()
    def begin(self, session: Session) -> None:
        """Embed the source once, without drop-out."""
        super().begin(session)
        assert session.source is not None
        model, parts = session.model, []
        count = min(loader.count(session.source), self.config.source_samples)
        indices = torch.split(torch.arange(count), session.evaluation_batch)
        with still(model.backbone):
            for x, _ in loader.batches(session.source, indices, session.workers):
                parts.append(model.embed_source(x.to(session.device)).x_BND.float().mean(1))
        self._distance.fit(Points(torch.cat(parts)))

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps an epoch."""
        return self._at_most(self.config.steps)

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterator[Tensor]]:
        """The target samples of every step from ``progress.step`` on, one micro-batch each."""
        draws = [
            randomness.permutation(
                session.train_size,
                session.seed,
                "align features",
                progress.stage,
                progress.epoch,
                s,
            )[: self.config.samples]
            for s in range(progress.step, progress.steps)
        ]
        for x, _ in loader.batches(session.data.train, draws, session.workers):
            yield iter([x.to(session.device)])

    def loss(
        self, session: Session, micro: Any, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The distance between the mean tokens of the target samples and the source's."""
        with session.accelerator.autocast():
            x_BND = session.model.embedder(micro).x_BND
        return self._distance(Points(x_BND.float().mean(1))), {}
