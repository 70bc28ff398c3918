"""The predictor ``frozen-features``: a linear model on one layer of a frozen backbone.

Shapes: B and n samples, L layers (the first is the embedding), F numbers per layer, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Facts, FitData, FittedPredictor, Settings, Target
from xmodal_basics.fit import label_scale
from xmodal_basics.sklearn_models import Array, LinearModel, logistic, ridge


class FrozenFeatures(FittedPredictor):
    """Logistic regression (classes, labels) or ridge (numbers) on what one layer says of a sample.

    The backbone gives a vector for each layer (``every_layer``). Layer and penalty are those with
    the smallest squared error of probabilities or numbers on validation. Checkpoints hold the
    coefficients.
    """

    citation = (
        "Alain, Bengio: Understanding intermediate layers using linear classifier probes, 2016"
    )

    class Config(Settings):
        """Settings of ``frozen-features``."""

        alphas: tuple[PositiveFloat, ...] = Field(
            tuple(10.0**i for i in range(-1, 7)),
            min_length=1,
            description="Penalties that ridge chooses from, by leave-one-out error.",
        )
        inverse_penalties: tuple[PositiveFloat, ...] = Field(
            (1e-2, 1e-4, 1e-3, 1e-1, 1.0),
            min_length=1,
            description="C of logistic regression: the first chooses the layer, and then all are "
            "tried there.",
        )
        layer: NonNegativeInt | None = Field(
            None, description="The layer, 0 for the embedding; null: the best on validation."
        )
        components: PositiveInt = Field(
            512, description="Largest number of principal directions of a layer's features."
        )
        iterations: PositiveInt = Field(500, description="Most steps of logistic regression.")

    config: Config
    most_samples: ClassVar[int | None] = 20_000
    reads_features = True
    weighs = True
    names: ClassVar[tuple[str, ...]] = ("chosen_L", "penalty")
    chosen_L: Tensor
    """1 at the layer that is read, and 0."""
    penalty: Tensor
    """The inverse penalty, of those that there are to choose from."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.output = context.output or context.facts.task.target
        self.seed = int(torch.randint(2**31, (), generator=context.generator))
        self.note = context.note
        self.model = LinearModel()

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Everything but dense labels."""
        return output.kind != "dense"

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """A layer that the backbone does not have. Training samples are at most 20,000."""
        there = facts.backbone.layers
        if there and config.layer is not None and config.layer > there:
            yield f"layer {config.layer} is none of 0 to {there}, those of the backbone"

    @property
    def fitted(self) -> bool:
        """Whether the model has its numbers."""
        return len(self.model.bias_K) > 0

    @property
    def traceable(self) -> bool:
        """It is torch throughout."""
        return True

    def fit(self, data: FitData) -> None:
        """Try every layer, then every penalty at the best one; without validation, the last."""
        size = (data.tokens, data.x_NF.shape[1] // data.tokens)
        x_NLF = data.x_NF.reshape(-1, *size)
        check_NLF = data.validation_x_NF.reshape(-1, *size)
        first, *others = self.config.inverse_penalties
        if self.output.kind == "regression":
            others = []  # ridge has chosen
        only = self.config.layer
        if only is None and not len(check_NLF):
            only, others = data.tokens - 1, []
        tries = [(one, first) for one in (range(data.tokens) if only is None else (only,))]
        least, kept, chosen = np.inf, LinearModel(), (0, first)
        for layer, penalty in tries:
            found = self._solved(x_NLF[:, layer], data, penalty)
            error = self._error(found, check_NLF[:, layer], data)
            if error < least or not fitted_yet(kept):
                least, kept, chosen = error, found, (layer, penalty)
        for penalty in others:
            found = self._solved(x_NLF[:, chosen[0]], data, penalty)
            error = self._error(found, check_NLF[:, chosen[0]], data)
            if error < least:
                least, kept, chosen = error, found, (chosen[0], penalty)
        self.model.load_state_dict(kept.state_dict())
        self.chosen_L = functional.one_hot(torch.tensor(chosen[0]), data.tokens).float()
        self.penalty = torch.tensor(chosen[1], dtype=torch.float64)
        if len(check_NLF):
            strength = f", C = {chosen[1]:g}" if self.output.kind != "regression" else ""
            self.note(
                f"frozen-features: layer {chosen[0]} of {data.tokens - 1}{strength} chosen on "
                f"validation (squared error {least:.4g})"
            )

    def chosen(self) -> dict[str, Any]:
        """The layer, and the penalty of what is not ridge."""
        return {"layer": int(self.chosen_L.argmax()), "inverse_penalties": [float(self.penalty)]}

    def _solved(self, x_NF: Tensor, data: FitData, penalty: float) -> LinearModel:
        settings = {"C": penalty, "max_iter": self.config.iterations}
        y, weight_N = data.y, None if data.weight_N is None else data.weight_N.numpy()

        def solve(z_NR: Array) -> tuple[Array, Array]:
            if self.output.kind == "regression":
                return ridge(z_NR, y.flatten(1).double().numpy(), self.config.alphas, weight_N)
            labels = np.asarray(y.nan_to_num(-1).long())
            return logistic(z_NR, labels, self.output.size, settings, weight_N)

        model = LinearModel()
        rank = self.config.components
        model.fit(x_NF.double().numpy(), solve, rank, own_scales=True, seed=self.seed)
        return model

    def _error(self, model: LinearModel, x_NF: Tensor, data: FitData) -> float:
        """The mean squared error of probabilities or numbers on validation; numbers count alike."""
        if not len(x_NF):
            return np.inf
        y_NK, y = model(x_NF), data.validation_y
        if self.output.kind == "classification":
            wanted_NK = functional.one_hot(y.long(), self.output.size)
            return float((y_NK.softmax(1) - wanted_NK).square().sum(1).mean())
        if self.output.kind == "multi-label":
            return float((y_NK.sigmoid() - y).square().nanmean())
        scale_K = label_scale(data.y, self.output.kind)
        return float(((y_NK - y.flatten(1)) / scale_K).square().nanmean())

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``: log-probabilities of classes, log-odds of labels, or numbers."""
        self.check_fitted()
        with torch.autocast(features.x_BND.device.type, enabled=False):
            x_BLF = features.x_BND.float()
            x_BLF = x_BLF.reshape(len(x_BLF), len(self.chosen_L), -1)
            y_BK: Tensor = self.model((x_BLF * self.chosen_L[:, None]).sum(1))
        return y_BK.log_softmax(1) if self.output.kind == "classification" else y_BK


def fitted_yet(model: LinearModel) -> bool:
    """Whether a linear model has its numbers."""
    return len(model.bias_K) > 0
