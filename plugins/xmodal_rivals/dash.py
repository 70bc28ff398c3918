"""A wide ResNet whose kernel sizes and dilations are searched on the target data, after DASH.

First the stage ``search-kernels`` trains a network in which every convolution holds all candidates.
Then each convolution keeps the candidate that counts most, and the stage ``finetune`` trains that
network from new random weights.

Shapes: B samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.errors import UsageError
from xmodal.interfaces import Context, Facts, Session
from xmodal.optimize import BatchSize, OptimizingStage, StageSettings, make_optimizer
from xmodal_rivals.neural import NeuralRival, seeded
from xmodal_rivals.searched import Kernel, SearchedConvolution, candidates, chosen
from xmodal_rivals.wide_resnet import Residual, WideResNet, WideResNetSettings

SIZES: Mapping[int, tuple[int, ...]] = {1: (3, 5, 7, 9, 11), 2: (3, 5, 7, 9)}
DILATIONS = (1, 3, 7, 15)


class Dash(NeuralRival):
    """A wide ResNet with searched kernels; needs the stage ``search-kernels`` before training.

    Candidates that reach farther than a sample is wide are left out, layer by layer.
    """

    name = "dash"
    citation = (
        "Shen et al., DASH, NeurIPS 2022 (arXiv 2204.07554); as a rival of foundation models Xu "
        "et al., ICLR 2025 (arXiv 2411.02796)"
    )

    class Config(WideResNetSettings):
        sizes: tuple[PositiveInt, ...] | None = Field(
            None,
            min_length=1,
            description="Odd kernel sizes to choose from; null takes 3 to 9 for images and 3 to "
            "11 for sequences.",
        )
        dilations: tuple[PositiveInt, ...] = Field(
            DILATIONS, min_length=1, description="Dilations to choose from."
        )

        @field_validator("sizes")
        @classmethod
        def _odd(cls, sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
            if any(size % 2 == 0 for size in sizes or ()):
                raise ValueError("kernel sizes must be odd, or they have no middle")
            return sizes

    choice: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.note = context.note
        self.generator = context.generator
        layers = len(self.searched())
        self.register_buffer("choice", torch.zeros(layers, 2, dtype=torch.int64))

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """As of a wide ResNet."""
        yield from super().problems(config, facts)
        yield from (line for line in WideResNet.problems(config, facts) if "depth" in line)

    def network(self, config: Any) -> nn.Module:
        """The network that holds all candidates."""
        sizes = config.sizes or SIZES[len(self.shape) - 1]

        def make(inputs: int, outputs: int, stride: int, sides: Sequence[int]) -> nn.Module:
            kernels = candidates(sizes, config.dilations, sides)
            return SearchedConvolution(inputs, outputs, stride, len(sides), kernels)

        return Residual(self.shape, self.output, config, make)

    def searched(self) -> list[SearchedConvolution]:
        """The convolutions that still hold all candidates, in order; none after the search."""
        return [part for part in self.body.modules() if isinstance(part, SearchedConvolution)]

    def settle(self) -> None:
        """Keep the best candidate of every convolution, with new random weights."""
        found = [part.best() for part in self.searched()]
        if not found:
            return
        device = self.choice.device
        pairs = [[kernel.size, kernel.dilation] for kernel in found]
        self.choice = torch.tensor(pairs, dtype=torch.int64, device=device)
        with seeded(self.generator):
            self._rebuild()
        self.body.to(device)
        told = Counter(f"{kernel.size}x{kernel.dilation}" for kernel in found)
        told_text = ", ".join(f"{kernel} ({number})" for kernel, number in told.most_common())
        self.note(f"dash: kernel size x dilation (convolutions): {told_text}")

    def _rebuild(self) -> None:
        """The network of ``choice``."""
        kernels = iter(Kernel(size, dilation) for size, dilation in self.choice.tolist())

        def make(inputs: int, outputs: int, stride: int, sides: Sequence[int]) -> nn.Module:
            return chosen(inputs, outputs, stride, len(sides), next(kernels))

        self.body = Residual(self.shape, self.output, self.config, make)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        choice = state_dict.get(f"{prefix}choice")
        if choice is not None and choice.shape == self.choice.shape:
            device = self.choice.device
            settled = bool(choice.any())
            if settled and not torch.equal(choice.cpu(), self.choice.cpu()):
                self.choice.copy_(choice)
                self._rebuild()
            elif not settled and not self.searched():
                self.choice.zero_()
                self.body = self.network(self.config)
            self.body.to(device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SearchKernels(OptimizingStage):
    """Trains all candidates and how much each counts, then keeps the best of every convolution.

    Weights and importances are trained at once on the training split, as DASH does.
    """

    evaluates = False
    divides = True

    class Config(StageSettings):
        """Settings of the search."""

        epochs: int = Field(10, ge=1, description="Passes over the training split.")
        train: tuple[str, ...] = Field(("*",), description="Patterns over parameter names.")
        batch: BatchSize = Field(BatchSize(), description="Samples per step, and how many at once.")
        importance_lr: float = Field(
            0.05, gt=0, description="Learning rate of how much a candidate counts."
        )

    def begin(self, session: Session) -> None:
        """Raises UsageError for any predictor but ``dash``."""
        if not isinstance(session.model.predictor, Dash):
            raise UsageError("stage 'search-kernels' needs the predictor 'dash'")

    def steps_per_epoch(self, session: Session) -> int:
        """Optimizer steps per epoch, including the last, smaller batch."""
        return self.at_most(math.ceil(loader.count(session.data.train) / self.config.batch.size))

    def optimizer(self, named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimizer; importances have a learning rate of their own."""
        settings = self.config.optimizer
        factors = {"*.importance": self.config.importance_lr / settings.lr}
        return make_optimizer(settings, named, factors)

    def steps(self, session: Session, progress: Progress) -> Iterator[Iterable[Batch]]:
        """All batches of the epoch; after those of the last epoch, the choice is made."""
        yield from session.batches(progress, self.config.batch.size, self.config.batch.micro)
        predictor = session.model.predictor
        if progress.epoch + 1 == self.epochs and isinstance(predictor, Dash):
            predictor.settle()

    def loss(
        self, session: Session, micro: Batch, progress: Progress
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The task's loss, times the micro-batch's share of the step."""
        with session.autocast():
            loss, log = session.model(micro, progress)
        return loss if micro.share == 1 else loss * micro.share, log
