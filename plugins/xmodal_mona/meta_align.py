"""The stage of MoNA (Ma et al., ICML 2024) that trains the target embedder before fine-tuning.

The stage looks for an embedder that lets the encoder take a fine-tuning step without losing what
it knows: after that step, the encoder must still separate the source labels. ``bilevel`` defines
the objective.

Each step is one bi-level problem over all its samples. The stage therefore hands the engine a
single piece, whatever ``batch.micro`` says, and computes the gradient itself: target samples
micro-batch by micro-batch, source samples all at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xmodal import randomness
from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.errors import UsageError
from xmodal.interfaces import Facts, Session
from xmodal.optimize import BatchSize, OptimizingStage, Schedule, StageSettings
from xmodal.text import shortlist
from xmodal_mona.bilevel import LossOf, Weights, first_order, gradients
from xmodal_mona.paths import repeatable, source_features, target_loss
from xmodal_mona.terms import alignment, positive_pairs, uniformity


class MetaAlign(OptimizingStage):
    """Trains the embedder so that a fine-tuning step keeps the encoder good on the source."""

    citation = (
        "Ma, Li, Cai, Kang: Learning Modality Knowledge Alignment for Cross-Modality Transfer "
        "(MoNA), ICML 2024"
    )

    needs_source = True
    evaluates = False
    divides = True

    class Config(StageSettings):
        """Settings of the stage."""

        epochs: int = Field(
            5, ge=1, description="Passes over the training split with the whole objective."
        )
        warmup_epochs: int = Field(
            1, ge=0, description="Earlier passes that minimise the target loss alone."
        )
        train: tuple[str, ...] = Field(
            ("embedder.*",),
            min_length=1,
            description="Patterns over parameter names of the embedder and the predictor.",
        )
        inner: tuple[str, ...] = Field(
            ("backbone.*",),
            min_length=1,
            description="What the virtual step changes: patterns over the names of the backbone's "
            "parameters.",
        )
        alpha: float = Field(0.01, gt=0, description="Learning rate of the virtual step (SGD).")
        weight: float = Field(1.0, gt=0, description="Lambda, the weight of the outer loss.")
        source_batch: int = Field(32, ge=2, description="Source samples per step, read at once.")
        exponent: float = Field(2.0, ge=1, description="The power of the distances in L_align.")
        temperature: float = Field(2.0, gt=0, description="t in L_uniform's exp(-t d^2).")
        gradient: Literal["exact", "finite-difference"] = Field(
            "exact",
            description="How to compute second derivatives: by a second backward pass, or by "
            "finite differences as in DARTS (keeps fused attention; needs two more target passes "
            "and float32).",
        )
        epsilon: float = Field(
            0.01, gt=0, description="How far the finite difference moves the weights."
        )
        batch: BatchSize = Field(BatchSize(), description="Samples per step, and how many at once.")
        schedule: Schedule = Field(
            Schedule(decay="none"), description="Warm-up and decay of the learning rate."
        )

        @field_validator("train")
        @classmethod
        def _outside_the_backbone(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
            for pattern in patterns:
                if pattern.split(".")[0] not in ("embedder", "predictor"):
                    raise ValueError(
                        f"'{pattern}': this stage does not train the backbone; patterns must start "
                        "with 'embedder.' or 'predictor.'"
                    )
            return patterns

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """The backbone needs weights for the virtual step to change."""
        if facts.backbone.feature_width == 0:
            yield f"backbone '{facts.backbone.name}' has no weights for a virtual step"

    @classmethod
    def planned_epochs(cls, config: Any) -> int:
        """Warm-up and bi-level epochs together."""
        return int(config.warmup_epochs + config.epochs)

    def begin(self, session: Session) -> None:
        """Check the patterns. Raises UsageError if the virtual step would change nothing."""
        if not self._phi(session):
            inner = shortlist(self.config.inner)
            raise UsageError(f"no parameter of the backbone matches meta-align's inner: {inner}")
        source = session.facts.source
        if source is not None and source.target.kind != "classification":
            session.note(
                f"meta-align: source '{source.name}' has {source.target.kind} labels, not classes; "
                "the samples with the nearest labels in a batch count as one class"
            )

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per epoch, including the last, smaller batch."""
        return self.at_most(math.ceil(loader.count(session.data.train) / self.config.batch.size))

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterator[BilevelStep]]:
        """One bi-level problem per step, from ``progress.step`` on."""
        batch: BatchSize = self.config.batch
        source = self._source(session, progress)
        for target in session.batches(progress, batch.size, batch.micro, mixed=False):
            yield problem(target, source)

    def _source(self, session: Session, progress: Progress) -> Iterator[Labelled] | None:
        """The source samples of the coming steps, or None during the warm-up."""
        epoch = progress.epoch - self.config.warmup_epochs
        if epoch < 0:
            return None
        assert session.source is not None
        order = source_order(
            loader.count(session.source),
            self.config.source_batch,
            epoch * progress.steps + progress.step,
            progress.steps - progress.step,
            session.seed,
            "meta-align source",
            progress.stage,
        )
        if self._divides_source(session):
            order = (index[session.rank :: session.world] for index in order)
        return session.fetch(session.source, order)

    def _divides_source(self, session: Session) -> bool:
        """Whether to divide the source samples among processes; no process may get none."""
        assert session.source is not None
        size: int = min(self.config.source_batch, loader.count(session.source))
        return 1 < session.world <= size

    def loss(
        self, session: Session, micro: Any, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """weight * L_outer(phi'(e)) + L_inner(phi, e), with its gradient at the trained weights."""
        step: BilevelStep = micro
        embedder = [p for p in session.model.parameters() if p.requires_grad]
        inner = [self._inner(session, batch) for batch in step.target]
        mean = partial(mean_over_processes, session)
        if step.source is None:
            value, g_e = first_order(inner, embedder)
            return _with_gradient(value, embedder, mean(g_e)), {"inner": value}
        log: dict[str, Tensor | float] = {}
        found = gradients(
            inner,
            self._outer(session, step.source, log),
            self._phi(session),
            embedder,
            alpha=self.config.alpha,
            exact=self.config.gradient == "exact",
            epsilon=self.config.epsilon,
            mean=mean,
        )
        weight = self.config.weight
        g_e = [a + weight * b for a, b in zip(found.first, found.second, strict=True)]
        log["inner"] = found.inner
        # How much the source contributes: the norm of its gradient over the norm of the target's.
        log["gradient share"] = weight * _norm(found.second) / _norm(found.first).clamp_min(1e-30)
        return _with_gradient(weight * found.outer + found.inner, embedder, g_e), log

    def _phi(self, session: Session) -> Weights:
        """The encoder weights that the virtual step changes, by their names in the backbone."""
        model = session.model
        return {
            name: weight
            for name, weight in model.backbone.named_parameters()
            if id(weight) not in model.frozen
            and any(fnmatchcase(f"backbone.{name}", pattern) for pattern in self.config.inner)
        }

    def _inner(self, session: Session, batch: Batch) -> LossOf:
        """phi -> share * L_inner of one micro-batch, the same in every call."""
        exact = self.config.gradient == "exact"

        def loss_of(phi: Weights) -> Tensor:
            with ExitStack() as stack:
                if exact:
                    # Fused attention kernels have no second derivative.
                    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                    stack.enter_context(session.autocast())
                return batch.share * target_loss(session.model, phi, batch.x, batch.y)

        return repeatable(loss_of, session.device)

    def _outer(self, session: Session, source: Labelled, log: dict[str, Tensor | float]) -> LossOf:
        """phi' -> L_outer = L_align + L_uniform; logs both."""
        x, y = source

        def loss_of(phi: Weights) -> Tensor:
            with session.autocast():
                z_BF = source_features(session.model, phi, x)
            divided = self._divides_source(session)
            z_BF, labels = rows_of_all(session, z_BF, y) if divided else (z_BF, y)
            align = alignment(z_BF, positive_pairs(labels), self.config.exponent)
            uniform = uniformity(z_BF, self.config.temperature)
            log.update({"align": align.detach(), "uniform": uniform.detach()})
            return own_part(align + uniform, session.world) if divided else align + uniform

        return loss_of


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(tensors)


def _with_gradient(value: Tensor, variables: Sequence[Tensor], gradient: list[Tensor]) -> Tensor:
    """A scalar with this value whose backward pass gives the variables this gradient."""
    surrogate = [((v - v.detach()) * g).sum() for v, g in zip(variables, gradient, strict=True)]
    return value.detach() + torch.stack(surrogate).sum()


# --- what a step is made of: a function of seed, stage, epoch and step, so nothing is saved ---


Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BilevelStep:
    """One step: micro-batches of target samples, and source samples (or none).

    Without source samples only L_inner is minimised.
    """

    target: tuple[Batch, ...]
    source: Labelled | None


def problem(target: Iterator[Batch], source: Iterator[Labelled] | None) -> Iterator[BilevelStep]:
    """The one piece of a step; reads its samples when it is asked for."""
    yield BilevelStep(tuple(target), None if source is None else next(source))


def source_order(
    count: int, size: int, first: int, number: int, seed: int, *names: str | int
) -> Iterator[Tensor]:
    """Indices of the batches ``first .. first + number`` over ``count`` source samples.

    Every pass over the source has an order of its own. A batch never holds a sample twice, which
    would be its own positive: what a pass leaves over is dropped, and a source smaller than
    ``size`` is read whole.
    """
    size = min(size, count)
    each = count // size
    for turn in range(first // each, (first + number - 1) // each + 1):
        order = randomness.permutation(count, seed, *names, turn)
        for place in range(each):
            if first <= turn * each + place < first + number:
                yield order[place * size : (place + 1) * size]


def mean_over_processes(session: Session, tensors: list[Tensor]) -> list[Tensor]:
    """What the gradients are over all processes' samples."""
    if session.world == 1:
        return tensors
    reduced: list[Tensor] = [session.average(tensor) for tensor in tensors]
    return reduced


def rows_of_all(session: Session, z_BF: Tensor, y: Tensor) -> Labelled:
    """The features and labels of all processes; those of others come without a gradient."""
    found = session.gather([(z_BF.detach().cpu(), y.cpu())])
    rows = [z.to(z_BF.device) for z, _ in found]
    rows[session.rank] = z_BF
    return torch.cat(rows), torch.cat([labels for _, labels in found]).to(y.device)


def own_part(value: Tensor, world: int) -> Tensor:
    """The same value with ``world`` times its gradient.

    Each process differentiates one value of all rows through its own ones alone: the whole
    gradient is the sum over the processes, where ``mean_over_processes`` will take the mean.
    """
    return value.detach() + world * (value - value.detach())
