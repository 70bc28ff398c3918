"""RECRAFT's label alignment: samples of one target class should look like one source class.

The source head and the encoder do not train. The target embedder f^t minimises the feature-label
distortion H(Y^s | Y^t) of the head's predictions for target samples.

Shapes: B target samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from xmodal import randomness
from xmodal.batch import SOURCE, Progress
from xmodal.data import members, target_classes
from xmodal.interfaces import Facts, Session
from xmodal.ops import evaluating
from xmodal.optimize import StageSettings
from xmodal_recraft.preparing import Prepare

Micro = tuple[list[Tensor], float]


class AlignLabels(Prepare):
    """Trains the target embedder to minimise Σ_c w_c H(mean_{x in c} softmax(h_s(g(f^t(x))))).

    An epoch reads every class in chunks of ``chunk`` samples, so that a class counts by its
    frequency w_c. The mean is taken over one chunk.
    """

    class Config(StageSettings):
        """Settings of label alignment."""

        epochs: int = Field(3, ge=1, description="Passes over the training split.")
        chunk: int = Field(
            16,
            ge=2,
            description="Samples of one class per chunk; a chunk's loss is the entropy of its mean "
            "prediction.",
        )
        chunks: int = Field(1, ge=1, description="Chunks per optimizer step.")
        subtract_marginal: bool = Field(
            False,
            description="Minimise H(Y^s|Y^t) - H(Y^s), the negative mutual information, so that "
            "not all target classes look like one source class; needs several chunks per step.",
        )
        clusters: int = Field(
            10, ge=2, description="Largest number of pseudo-classes, where labels are not classes."
        )
        train: tuple[str, ...] = Field(
            ("embedder.*",), description="Patterns over parameter names."
        )

        @model_validator(mode="after")
        def _several_chunks(self) -> AlignLabels.Config:
            if self.subtract_marginal and self.chunks < 2:
                raise ValueError(
                    "subtract_marginal compares the chunks of a step; set chunks to 2 or more"
                )
            return self

    config: Config
    needs_source_head = True
    _classes: Tensor | None = None

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """The source head must predict labels that have an entropy."""
        if facts.source is not None and facts.source.target.kind == "regression":
            yield (
                f"source '{facts.source.name}' has numeric labels, whose predictions have no "
                "entropy; use a source with classes, several 0/1 labels or 0/1 maps"
            )

    def _target_classes(self, session: Session) -> Tensor:
        """The class of every training sample, computed once."""
        if self._classes is None:
            self._classes = target_classes(
                session.data.train,
                session.facts.task,
                self.config.clusters,
                randomness.derive(session.seed, "align labels", "pseudo-classes"),
                session.workers,
            )
        return self._classes

    def _chunks(self, session: Session, stage: int, epoch: int) -> list[Tensor]:
        generator = randomness.generator(session.seed, "align labels", stage, epoch)
        return class_chunks(self._target_classes(session), self.config.chunk, generator)

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per epoch; the same in every epoch."""
        return self.at_most(math.ceil(len(self._chunks(session, 0, 0)) / self.config.chunks))

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterator[Micro]]:
        """The chunks of every step from ``progress.step`` on, with their weights.

        A chunk is weighted by its size, so that over an epoch a class has weight w_c; a step of
        full chunks has weight 1. Each chunk is one micro-batch; with ``subtract_marginal``, the
        whole step is one micro-batch.
        """
        chunks, take = self._chunks(session, progress.stage, progress.epoch), self.config.chunks
        chunks = chunks[progress.step * take : progress.steps * take]
        stream = session.fetch(session.data.train, chunks)
        for start in range(0, len(chunks), take):
            sizes = [len(chunk) for chunk in chunks[start : start + take]]
            yield self._step(stream, sizes)

    def _step(self, stream: Iterator[tuple[Tensor, Tensor]], sizes: list[int]) -> Iterator[Micro]:
        samples = (x for x, _ in islice(stream, len(sizes)))
        whole = self.config.chunk * self.config.chunks
        if self.config.subtract_marginal:
            yield list(samples), sum(sizes) / whole
            return
        for size, x in zip(sizes, samples, strict=True):
            yield [x], size / whole

    def loss(
        self, session: Session, micro: Any, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """H(Y^s | Y^t), minus H(Y^s) with ``subtract_marginal``, times its weight."""
        samples, weight = micro
        source = session.facts.source
        assert source is not None
        prediction = self._predict(session, torch.cat(samples))
        p_BQK = answers(prediction, source.target.kind)
        parts = torch.split(p_BQK, [len(x) for x in samples])
        value = conditional_entropy(parts)
        log: dict[str, Tensor | float] = {"H(Ys|Yt)": value.detach()}
        if self.config.subtract_marginal:
            marginal = marginal_entropy(parts)
            value = value - marginal
            log["H(Ys)"] = marginal.detach()
        return value * weight, log

    def _predict(self, session: Session, x: Tensor) -> Tensor:
        """h_s(g(f^t(x))): the source head's predictions for target samples, without dropout."""
        model = session.model
        head = model.predictor if model.share_head else model.source_predictor
        assert head is not None
        with evaluating(model.backbone, head), session.autocast():
            return model.apply_head(SOURCE, model.backbone(model.embedder(x)))


def class_chunks(classes: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of chunks of ``size`` samples of one class each, a class's spread over the list.

    Samples of a negative class are in no class and in no chunk.
    A class's rest is a chunk if it is at least half of one, or if the class has no other: the mean
    of very few predictions says little about the class. How many chunks there are does not depend
    on ``generator``.
    """
    placed: list[tuple[float, Tensor]] = []
    for index in members(classes):
        shuffled = index[torch.randperm(len(index), generator=generator)]
        chunks = list(torch.split(shuffled, size))
        if len(chunks) > 1 and 2 * len(chunks[-1]) < size:
            chunks.pop()
        start = float(torch.rand((), generator=generator))
        placed += [((start + i) / len(chunks), chunk) for i, chunk in enumerate(chunks)]
    return [chunk for _, chunk in sorted(placed, key=lambda place: place[0])]


# --- H(Y^s | Y^t): small where samples of one class of the target look like one of the source ---


# As in the released code; below it, the logarithm's gradient would drown the others'.
TINY = 1e-10


def answers(prediction: Tensor, kind: str) -> Tensor:
    """Probabilities ``[B, Q, K]`` of the source labels from the source head's logits.

    ``classification``: one question. Otherwise every number is the logit of a yes/no question.
    """
    if kind == "classification":
        return prediction.float().softmax(dim=1)[:, None]
    logits_BQ = prediction.float().flatten(1)
    return torch.stack([torch.sigmoid(-logits_BQ), torch.sigmoid(logits_BQ)], dim=2)


def entropy(p_QK: Tensor) -> Tensor:
    """H in nats, the mean over the questions."""
    h: Tensor = torch.special.entr(p_QK.clamp_min(TINY)).sum(-1).mean(-1)
    return h


def conditional_entropy(parts: Sequence[Tensor]) -> Tensor:
    """H(Y^s | Y^t) = Σ_c w_c H(mean_{x in c} p(x)) of ``[B_c, Q, K]`` with w_c = B_c / B."""
    total = sum(len(part) for part in parts)
    terms = [len(part) / total * entropy(part.mean(0)) for part in parts]
    return torch.stack(terms).sum()


def marginal_entropy(parts: Sequence[Tensor]) -> Tensor:
    """H(Y^s) of all samples together; never below ``conditional_entropy``, by concavity."""
    return entropy(torch.cat(list(parts)).mean(0))
