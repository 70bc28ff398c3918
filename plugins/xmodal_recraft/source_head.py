"""RECRAFT's first stage: a source head whose loss is Lipschitz in the embedding it is given.

RECRAFT's bound assumes that the source loss l_s(z) = l(h_s(g(z)), y) changes by at most τ when the
embedding z changes by 1. The stage trains the head h_s on the frozen encoder g and penalises
gradients larger than τ. A setting chooses z: the default τ suits gradients in the encoder's
features.

Shapes: B source samples, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from xmodal import randomness
from xmodal.batch import SOURCE, Progress, Tokens
from xmodal.data import loader
from xmodal.interfaces import Session
from xmodal.ops import evaluating
from xmodal.optimize import BatchSize, StageSettings
from xmodal_recraft.preparing import Prepare, is_frozen
from xmodal_recraft.source_features import SourceFeatures, mean_token, reads_the_mean

Micro = tuple[Tensor | Tokens, Tensor, float]


class SourceHead(Prepare):
    """Trains the source head: first on its loss alone, then with a penalty on steep gradients."""

    class Config(StageSettings):
        """Settings of the stage that trains the source head."""

        epochs: int = Field(20, ge=1, description="Passes over the source.")
        penalty_from: int = Field(
            10, ge=0, description="The first epoch with the gradient penalty, counted from 0."
        )
        rho: float = Field(100.0, ge=0, description="ρ, the weight of the gradient penalty.")
        tau: float = Field(0.4, ge=0, description="τ, the largest gradient norm without penalty.")
        lipschitz_in: Literal["features", "tokens"] = Field(
            "features",
            description="The z in which to make the loss Lipschitz. features: the encoder's output "
            "(only the mean token if the head reads no more), computed once. tokens: the encoder's "
            "input; needs encoder passes and another tau than the default.",
        )
        label_smoothing: float | None = Field(
            0.1,
            ge=0,
            lt=1,
            description="Label smoothing of the cross-entropy, for source labels that are classes. "
            "null, or labels of another kind: use the source's own loss.",
        )
        train: tuple[str, ...] = Field(
            ("source_predictor.*",), description="Patterns over parameter names."
        )
        batch: BatchSize = Field(BatchSize(), description="Samples per step, and how many at once.")
        cache_gb: float = Field(
            2.0, ge=0, description="Memory for the features of the frozen encoder, in gigabytes."
        )

    config: Config
    needs_source_head = True
    _features: SourceFeatures | None = None
    _pooled = False

    def begin(self, session: Session) -> None:
        """Encode the source once if the encoder is frozen; a resumed run does so again."""
        super().begin(session)
        self._pooled, self._features = reads_the_mean(session), None
        if is_frozen(session.model.backbone):
            self._features = SourceFeatures(session, self._pooled, self.config.cache_gb * 1e9)

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per pass over the source, including the last, smaller batch."""
        assert session.source is not None
        return self.at_most(math.ceil(loader.count(session.source) / self.config.batch.size))

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterator[Micro]]:
        """Micro-batches of every step from ``progress.step`` on, each with its share."""
        assert session.source is not None
        count, batch = loader.count(session.source), self.config.batch
        order = randomness.permutation(
            count, session.seed, "source head", progress.stage, progress.epoch
        )
        steps = torch.split(order, batch.size)[progress.step : progress.steps]
        parts = [torch.split(step, batch.micro or batch.size) for step in steps]
        stream = self._stream(session, progress, [part for step in parts for part in step])
        for step, pieces in zip(steps, parts, strict=True):
            yield self._step(stream, [len(piece) / len(step) for piece in pieces])

    def _stream(
        self, session: Session, progress: Progress, indices: list[Tensor]
    ) -> Iterator[tuple[Tensor | Tokens, Tensor]]:
        """Precomputed features if z allows them; otherwise raw samples for the encoder."""
        through = self._punished(progress) and self.config.lipschitz_in == "tokens"
        if self._features is not None and not through:
            yield from self._features.batches(indices)
            return
        assert session.source is not None
        yield from session.fetch(session.source, indices)

    def _step(
        self, stream: Iterator[tuple[Tensor | Tokens, Tensor]], shares: list[float]
    ) -> Iterator[Micro]:
        for share in shares:
            yield (*next(stream), share)

    def _punished(self, progress: Progress) -> bool:
        return self.config.rho > 0 and progress.epoch >= self.config.penalty_from

    def loss(
        self, session: Session, micro: Any, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """L_s + (ρ/n) Σ max(0, ‖∇_z l_s‖₂ − τ)², times the micro-batch's share of the step."""
        x, y, share = micro
        punished = self._punished(progress)
        # Fused attention has no second derivative.
        kernels = sdpa_kernel(SDPBackend.MATH) if punished else nullcontext()
        with session.autocast(), kernels:
            z, prediction = self._predict(session, x, punished)
            loss_B = self.source_loss(session, prediction, y)
            total = loss_B.mean()
            log: dict[str, Tensor | float] = {"source loss": total.detach()}
            if punished:
                penalty, norm_B = gradient_penalty(loss_B, z, self.config.tau)
                total = total + self.config.rho * penalty
                log |= {"penalty": penalty.detach(), "gradient in z": norm_B.detach().mean()}
        return total * share, log

    def _predict(
        self, session: Session, x: Tensor | Tokens, punished: bool
    ) -> tuple[Tensor, Tensor]:
        """z, and the head's prediction from it."""
        model = session.model
        if isinstance(x, Tokens):
            features = Tokens(x.x_BND.requires_grad_(punished), x.grid)
            return features.x_BND, model.apply_head(SOURCE, features)
        with evaluating(*([model.backbone] if is_frozen(model.backbone) else [])):
            tokens = model.embed_source(x)
            tokens = Tokens(tokens.x_BND.detach().requires_grad_(punished), tokens.grid)
            features = model.backbone(tokens)
        if self._pooled:
            features = mean_token(features)
        z = tokens if self.config.lipschitz_in == "tokens" else features
        return z.x_BND, model.apply_head(SOURCE, features)

    def source_loss(self, session: Session, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss l_s of every sample, ``[B]``."""
        source, smoothing = session.facts.source, self.config.label_smoothing
        assert source is not None
        if smoothing is None or source.target.kind != "classification":
            loss_B: Tensor = session.model.loss_of(SOURCE)(prediction, y)
            return loss_B
        return functional.cross_entropy(prediction, y, reduction="none", label_smoothing=smoothing)


def gradient_penalty(loss_B: Tensor, z: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """(1/n) Σ_i max(0, ‖∇_z l_i‖₂ − τ)² and the norms ``[B]``; differentiable in the parameters.

    ``z`` is ``[B, ...]``. l_i must depend only on row i of z; norm i is over that row.
    """
    (gradient,) = torch.autograd.grad(loss_B.sum(), z, create_graph=True)
    norm_B: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norm_B - tau).clamp_min(0).square().mean(), norm_B
