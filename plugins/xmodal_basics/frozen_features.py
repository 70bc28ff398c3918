"""The predictor ``frozen-features``: a linear model on one layer of a frozen backbone.

Shapes: B and n samples, L layers (the first is the embedding), F numbers per layer, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.interfaces import Facts, FitData
from xmodal_basics.penalised import Penalised, PenaltySettings


class FrozenFeatures(Penalised):
    """Logistic regression (classes, labels) or ridge (numbers) on what one layer says of a sample.

    The backbone gives a vector for each layer (``every_layer``). Layer and penalty are those with
    the smallest squared error of probabilities or numbers on validation; without validation
    samples, the last layer and the first penalty.
    """

    citation = (
        "Alain, Bengio: Understanding intermediate layers using linear classifier probes, 2016"
    )

    class Config(PenaltySettings):
        """Settings of ``frozen-features``."""

        layer: NonNegativeInt | None = Field(
            None, description="The layer, 0 for the embedding; null: the best on validation."
        )

    config: Config
    most_samples: ClassVar[int | None] = 20_000
    reads_features = True
    names: ClassVar[tuple[str, ...]] = ("chosen_L", "penalty")
    chosen_L: Tensor
    """1 at the layer that is read, and 0."""

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """A layer that the backbone does not have. Training samples are at most 20,000."""
        there = facts.backbone.layers
        if there and config.layer is not None and config.layer > there:
            yield f"layer {config.layer} is none of 0 to {there}, those of the backbone"

    @property
    def traceable(self) -> bool:
        """It is torch throughout."""
        return True

    def fit(self, data: FitData) -> None:
        """Try every layer, then every penalty at the best one."""
        size = (data.tokens, data.x_NF.shape[1] // data.tokens)
        x_NLF = data.x_NF.reshape(-1, *size)
        check_NLF = data.validation_x_NF.reshape(-1, *size)
        layers = [self.config.layer]
        if self.config.layer is None:
            layers = [*range(data.tokens)] if len(check_NLF) else [data.tokens - 1]
        place, how = self.choose(((x_NLF[:, one], check_NLF[:, one]) for one in layers), data)
        self.chosen_L = functional.one_hot(torch.tensor(layers[place]), data.tokens).float()
        if how:
            self.note(f"frozen-features: layer {layers[place]} of {data.tokens - 1}: {how}")

    def chosen(self) -> dict[str, Any]:
        """The layer, and the penalty of what is not ridge."""
        return {"layer": int(self.chosen_L.argmax()), **super().chosen()}

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``: log-probabilities of classes, log-odds of labels, or numbers."""
        self.check_fitted()
        with torch.autocast(features.x_BND.device.type, enabled=False):
            x_BLF = features.x_BND.float()
            x_BLF = x_BLF.reshape(len(x_BLF), len(self.chosen_L), -1)
            return self.predicted((x_BLF * self.chosen_L[:, None]).sum(1))
