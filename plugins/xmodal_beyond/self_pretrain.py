"""The stage ``self-pretrain``: learn to reconstruct masked pieces of the target's own samples.

It sits before fine-tuning, needs neither labels nor a source, and leaves embedder and backbone
behind; what decodes and what stands for a masked token are thrown away.

Shapes: B samples, N tokens, P raw numbers of a token's piece, D width of the tokens, O outputs for
a token (P, or 1 and one for each category of a table).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.errors import UsageError
from xmodal.interfaces import Context, Facts, Session
from xmodal.optimize import BatchSize, OptimizingStage, StageSettings
from xmodal.steps import from_host
from xmodal_beyond.decoding import TokenDecoder, cells, masks

LOOKED_AT = 256
"""Training samples from which mean and scale of the raw numbers are measured."""


class SelfPretrain(OptimizingStage):
    """Masks some tokens and minimises the squared error of their raw numbers.

    Every sample loses the same number of tokens, drawn anew in every step. One linear layer decodes
    the backbone's features; the loss counts masked pieces only. Categories of a table are told by
    cross-entropy instead.
    """

    citation = (
        "Amos, Berant, Gupta: Never Train from Scratch: Fair Comparison of Long-Sequence Models "
        "Requires Data-Driven Priors, ICLR 2024, arXiv 2310.02980"
    )
    evaluates = False
    divides = True

    class Config(StageSettings):
        """Settings of ``self-pretrain``."""

        epochs: int = Field(10, ge=1, description="Passes over the samples.")
        share: float = Field(0.4, gt=0, lt=1, description="The share of tokens that is masked.")
        normalise: Literal["data", "piece"] = Field(
            "data",
            description="What the decoder predicts: raw numbers standardised over the training "
            "samples, or each piece by its own mean and scale (as MAE does), which leaves out its "
            "level.",
        )
        unlabelled: bool = Field(
            True, description="Use samples without labels too, where the task has some."
        )
        train: tuple[str, ...] = Field(
            ("embedder.*", "backbone.*"), description="Patterns over parameter names."
        )
        batch: BatchSize = Field(BatchSize(), description="Samples per step, and how many at once.")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._generator = context.generator
        self._facts = context.facts

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """There must be a token left to see."""
        if facts.backbone.feature_width == 0:
            yield f"backbone '{facts.backbone.name}' has nothing to pretrain"
        elif facts.grid and prod(cells(facts.grid, facts.backbone)) < 2:
            yield "needs at least two tokens: one to mask and one to see"

    def helper(self, session: Session) -> nn.Module:
        """The decoder and the token that stands for masked ones. Raises UsageError."""
        embedder, train = session.model.embedder, session.data.train
        total = loader.count(train)
        index = torch.linspace(0, total - 1, min(total, LOOKED_AT)).round().long()
        x, _ = next(loader.batches(train, [index], session.workers))
        with torch.no_grad():
            pieces_BNP = embedder.pieces(x.float())
        if pieces_BNP is None:
            raise UsageError(
                "stage 'self-pretrain' needs an embedder whose tokens have pieces of their own to "
                f"reconstruct; {type(embedder).__name__} has none (use conv-1d, patch or columns)"
            )
        if self.config.normalise == "piece" and pieces_BNP.shape[2] == 1:
            raise UsageError(
                "stage 'self-pretrain': a piece of one number has no scale of its own; set "
                "normalise to data, or longer pieces"
            )
        own = self._facts.task.form == "row"  # columns are no repetition of each other
        levels = self._facts.task.levels if own else ()
        self._denoiser = Denoiser(pieces_BNP, levels, own, self._facts, self.config.normalise)
        return self._denoiser

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per epoch, including the last, smaller batch."""
        count, further = loader.count(session.data.train), session.data.unlabelled
        if self.config.unlabelled and further is not None:
            count += loader.count(further)
        return self.at_most(math.ceil(count / self.config.batch.size))

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterator[Batch]]:
        """This process's micro-batches of every step from ``progress.step`` on."""
        batch, further = self.config.batch, self.config.unlabelled
        return session.batches(progress, batch.size, batch.micro, mixed=False, unlabelled=further)

    def loss(
        self, session: Session, micro: Batch, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The error on masked pieces, times the micro-batch's share of the step."""
        model, number = session.model, len(micro.x)
        grid, facts, share = self._facts.grid, self._facts.backbone, self.config.share

        def draw(progress: Progress) -> dict[str, Tensor]:
            return {"mask": masks(number, grid, facts, share, self._generator)}

        mask_BN = from_host(draw, progress, micro.x.device)["mask"]
        with torch.no_grad():
            pieces_BNP = model.embedder.pieces(micro.x)
        assert pieces_BNP is not None
        with session.autocast():
            tokens = model.embedder.masked(micro.x, mask_BN, self._denoiser.fill_D)
            decoded_BNO = self._denoiser.decoder(model.backbone(tokens), tokens.grid)
        loss = self._denoiser.error(decoded_BNO.float(), pieces_BNP, mask_BN)
        return loss * micro.share, {"masked error": loss.detach()}


class Denoiser(nn.Module):
    """A linear decoder, the token for masked ones, and the scale of the raw numbers."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        pieces_BNP: Tensor,
        levels: tuple[int, ...],
        each: bool,
        facts: Facts,
        normalise: Literal["data", "piece"],
    ) -> None:
        """``each``: mean and scale of every token apart; ``levels``: of columns, 0 for numbers."""
        super().__init__()
        self.levels = levels if any(levels) else ()
        self.by_piece = normalise == "piece"
        outputs = pieces_BNP.shape[2] + sum(self.levels)
        self.fill_D = nn.Parameter(torch.randn(facts.backbone.width) * 0.02)
        self.decoder = TokenDecoder(outputs, facts)
        mean, scale = _moments(pieces_BNP if each else pieces_BNP.flatten(0, 1))
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def target(self, pieces_BNP: Tensor) -> Tensor:
        """What the decoder should say: the raw numbers, standardised; NaN where unknown."""
        if not self.by_piece:
            return (pieces_BNP - self.mean) / self.scale
        mean_BN1 = pieces_BNP.nanmean(2, keepdim=True)
        variance_BN1 = (pieces_BNP - mean_BN1).square().nanmean(2, keepdim=True)
        return (pieces_BNP - mean_BN1) / (variance_BN1 + 1e-6).sqrt()

    def error(self, decoded_BNO: Tensor, pieces_BNP: Tensor, mask_BN: Tensor) -> Tensor:
        """The mean over masked, known numbers of the squared error, or -log p of a category."""
        known_BNP = mask_BN[..., None] & ~pieces_BNP.isnan()
        target_BNP = self.target(pieces_BNP).nan_to_num()
        squares_BNP = (decoded_BNO[..., : pieces_BNP.shape[2]] - target_BNP).square()
        parts = []
        first = 1
        for column, count in enumerate(self.levels):
            if not count:
                parts.append(squares_BNP[:, column, 0])
                continue
            logits_BK = decoded_BNO[:, column, first : first + count]
            code_B = pieces_BNP[:, column, 0].nan_to_num().long()
            parts.append(functional.cross_entropy(logits_BK, code_B, reduction="none"))
            first += count
        errors = torch.stack(parts, dim=1)[..., None] if parts else squares_BNP
        return torch.where(known_BNP, errors, 0).sum() / known_BNP.sum().clamp_min(1)


def _moments(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale over the first axis, without unknown numbers; constant ones keep scale 1."""
    mean = numbers.nanmean(0).nan_to_num()
    scale = (numbers - mean).square().nanmean(0).nan_to_num().sqrt()
    return mean, torch.where(scale > 1e-6 * (1 + mean.abs()), scale, 1)
