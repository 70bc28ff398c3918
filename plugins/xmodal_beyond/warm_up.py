"""The stage ``warm-up``: the body learns nested brackets before it meets the target.

Sequences of k-Dyck (k kinds of brackets, correctly nested) are made by a rule and mean nothing. A
body that gained from them has learned to work with structure, not what photos or texts look like:
a control for what pretraining is worth.

Shapes: B sequences, N tokens, D width. Brackets are numbered: 0 .. k-1 open, k .. 2k-1 close, and
2k stands for a hidden one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from xmodal import randomness
from xmodal.batch import Batch, Progress, Tokens
from xmodal.data import loader
from xmodal.interfaces import Context, Facts, Session
from xmodal.optimize import BatchSize, OptimizingStage, StageSettings
from xmodal_beyond.decoding import TokenDecoder, cells, masks

UNTOLD = -100
"""The label of a token that is not hidden; torch's cross-entropy leaves it out."""


class WarmUp(OptimizingStage):
    """Tells hidden brackets of k-Dyck sequences as long as the target's token sequence.

    The embedding of brackets and their places is random and fixed, so that the body has to learn;
    embedding and decoder are thrown away. The target's embedder and data are not touched.
    """

    citation = (
        "Shinnick, Jiang, Saratchandran, Teney, van den Hengel: Can You Learn to See Without "
        "Images? Procedural Warm-Up for Vision Transformers, CVPR 2026, arXiv 2511.13945"
    )
    evaluates = False

    class Config(StageSettings):
        """Settings of ``warm-up``."""

        epochs: int = Field(10, ge=1, description="How often to take the steps below.")
        steps: int | None = Field(
            None, ge=1, description="Steps per epoch; null: as many as the training split gives."
        )
        kinds: int = Field(64, ge=1, description="k, the kinds of brackets.")
        share: float = Field(0.4, gt=0, lt=1, description="The share of brackets that is hidden.")
        train: tuple[str, ...] = Field(
            ("backbone.*",), description="Patterns over parameter names."
        )
        batch: BatchSize = Field(
            BatchSize(), description="Sequences per step, and how many at once."
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._facts = context.facts

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """There must be a body, and room for brackets."""
        if facts.backbone.feature_width == 0:
            yield f"backbone '{facts.backbone.name}' has nothing to train"
        elif facts.grid and prod(cells(facts.grid, facts.backbone)) < 2:
            yield "needs at least two tokens: one to hide and one to see"

    def helper(self, session: Session) -> nn.Module:
        """Fixed embedding and places of the norm that the target's tokens have, and the decoder."""
        facts, kinds = self._facts, self.config.kinds
        x, _ = loader.first(session.data.train, 16)
        with torch.no_grad():
            norm = float(session.model.embedder(x).x_BND.float().norm(dim=-1).mean())
        self._brackets = Brackets(kinds, norm, facts)
        return self._brackets

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per epoch."""
        whole = math.ceil(loader.count(session.data.train) / self.config.batch.size)
        return self.at_most(self.config.steps or whole)

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterator[Batch]]:
        """Micro-batches of new sequences; a function of seed, stage, epoch and step."""
        for step in range(progress.step, progress.steps):
            yield self._step(session, progress, step)

    def _step(self, session: Session, progress: Progress, step: int) -> Iterator[Batch]:
        config, facts = self.config, self._facts
        place = (progress.stage, progress.epoch, step)
        seed = randomness.derive(session.seed, "k-dyck", *place)
        size = config.batch.size
        id_BN = torch.from_numpy(dyck(size, facts.num_tokens, config.kinds, seed))
        generator = randomness.generator(seed, "hidden")
        mask_BN = masks(size, facts.grid, facts.backbone, config.share, generator)
        seen_BN = id_BN.masked_fill(mask_BN, 2 * config.kinds)
        told_BN = id_BN.masked_fill(~mask_BN, UNTOLD)
        parts = (torch.split(t, config.batch.micro or size) for t in (seen_BN, told_BN))
        for seen, told in zip(*parts, strict=True):
            x, y = seen.to(session.device), told.to(session.device)
            yield Batch(x, y, share=len(seen) / size)

    def loss(
        self, session: Session, micro: Batch, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The cross-entropy of hidden brackets, times the micro-batch's share of the step."""
        grid = self._facts.grid
        with session.autocast():
            features = session.model.backbone(Tokens(self._brackets(micro.x), grid))
            logits_BNO = self._brackets.decoder(features, grid)
        loss = functional.cross_entropy(
            logits_BNO.float().flatten(0, 1), micro.y.flatten(), ignore_index=UNTOLD
        )
        return loss * micro.share, {"brackets": loss.detach()}


class Brackets(nn.Module):
    """A fixed random embedding of 2k + 1 symbols and of N places, and a decoder that learns."""

    symbols: Tensor
    places: Tensor

    def __init__(self, kinds: int, norm: float, facts: Facts) -> None:
        super().__init__()
        width = facts.backbone.width
        scale = norm / (2 * width) ** 0.5  # a symbol and a place together have the norm
        self.register_buffer("symbols", torch.randn(2 * kinds + 1, width) * scale)
        self.register_buffer("places", torch.randn(facts.num_tokens, width) * scale)
        self.decoder = TokenDecoder(2 * kinds, facts)

    def forward(self, id_BN: Tensor) -> Tensor:
        """Tokens ``[B, N, D]``."""
        return self.symbols[id_BN] + self.places


def dyck(number: int, length: int, kinds: int, seed: int) -> NDArray[np.int64]:
    """Random k-Dyck sequences ``[B, N]``; of an odd length, the last bracket is cut off.

    An open bracket comes with probability 1/2 where both may come; its kind is uniform.
    """
    random = np.random.default_rng(seed)
    whole = length + length % 2
    made = np.empty((number, whole), dtype=np.int64)
    stack = np.empty((number, whole // 2 + 1), dtype=np.int64)
    depth = np.zeros(number, dtype=np.int64)
    rows = np.arange(number)
    for place in range(whole):
        may_open = depth < whole - place
        opens = may_open & ((depth == 0) | (random.random(number) < 0.5))
        kind = random.integers(kinds, size=number)
        top = stack[rows, np.maximum(depth - 1, 0)]
        made[:, place] = np.where(opens, kind, kinds + top)
        stack[rows[opens], depth[opens]] = kind[opens]
        depth += np.where(opens, 1, -1)
    return made[:, :length]
