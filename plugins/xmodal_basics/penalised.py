"""Linear models whose penalty is chosen on validation, for predictors that make features first.

Shapes: n samples, F numbers per sample, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from xmodal.interfaces import Context, FitData, FittedPredictor, Settings, Target
from xmodal_basics.fit import squared_error
from xmodal_basics.sklearn_models import Array, LinearModel, logistic, ridge


class PenaltySettings(Settings):
    """Settings of linear models that choose their penalty."""

    alphas: tuple[PositiveFloat, ...] = Field(
        tuple(10.0**i for i in range(-1, 7)),
        min_length=1,
        description="Penalties that ridge chooses from, by leave-one-out error.",
    )
    inverse_penalties: tuple[PositiveFloat, ...] = Field(
        (1e-2, 1e-4, 1e-3, 1e-1, 1.0),
        min_length=1,
        description="C of logistic regression, chosen on validation; the first is tried first.",
    )
    components: PositiveInt = Field(
        512, description="Largest number of principal directions of the features."
    )
    iterations: PositiveInt = Field(500, description="Most steps of logistic regression.")


class Penalised(FittedPredictor):
    """Logistic regression (classes, labels) or ridge (numbers) on standardised features.

    A subclass calls ``choose`` with the features that there are to choose from. Checkpoints hold
    the coefficients.
    """

    weighs = True
    names: ClassVar[tuple[str, ...]] = ("penalty",)
    config: PenaltySettings
    penalty: Tensor
    """The inverse penalty, of those that there are to choose from."""

    def __init__(self, config: PenaltySettings, context: Context) -> None:
        super().__init__(config, context)
        self.output = context.output or context.facts.task.target
        self.seed = int(torch.randint(2**31, (), generator=context.generator))
        self.note = context.note
        self.model = LinearModel()

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Everything but dense labels."""
        return output.kind != "dense"

    @property
    def fitted(self) -> bool:
        """Whether the model has its numbers."""
        return len(self.model.bias_K) > 0

    def choose(self, candidates: Iterable[tuple[Tensor, Tensor]], data: FitData) -> tuple[int, str]:
        """Fit to the features ``[n, F]`` of training samples that do best, with the best penalty.

        ``candidates``: features of the training samples and of those of validation. By the squared
        error on validation: features with the first penalty, then every other penalty. Returns the
        place of the features, and what was chosen in words (empty without validation samples).
        """
        first, *others = self.config.inverse_penalties
        if self.output.kind == "regression" or not len(data.validation_y):
            others = []  # ridge has chosen
        least, best, penalty = np.inf, -1, first
        z_NR, check_NF = np.empty((0, 0)), data.validation_x_NF
        for place, (x_NF, validation_x_NF) in enumerate(candidates):
            model = LinearModel()
            rank = self.config.components
            directions = model.directions(x_NF.double().numpy(), rank, True, self.seed)
            model.take(*self._solved(directions, data, first))
            error = self._error(model, validation_x_NF, data)
            if error < least or best < 0:
                least, best, z_NR, check_NF = error, place, directions, validation_x_NF
                self.model.load_state_dict(model.state_dict())
        model = LinearModel()
        model.load_state_dict(self.model.state_dict())
        for other in others:
            model.take(*self._solved(z_NR, data, other))
            error = self._error(model, check_NF, data)
            if error < least:
                least, penalty = error, other
                self.model.load_state_dict(model.state_dict())
        self.penalty = torch.tensor(penalty, dtype=torch.float64)
        if not len(data.validation_y):
            return best, ""
        strength = f"C = {penalty:g}, " if self.output.kind != "regression" else ""
        return best, f"{strength}squared error {least:.4g} on validation"

    def chosen(self) -> dict[str, Any]:
        """The penalty of what is not ridge."""
        return {"inverse_penalties": [float(self.penalty)]}

    def predicted(self, x_BF: Tensor) -> Tensor:
        """What the model says of features: log-probabilities, log-odds or numbers, ``[B, K]``."""
        y_BK: Tensor = self.model(x_BF)
        return y_BK.log_softmax(1) if self.output.kind == "classification" else y_BK

    def _solved(self, z_NR: Array, data: FitData, penalty: float) -> tuple[Array, Array]:
        """Weights ``[K, R]`` and biases ``[K]``."""
        y, weight_N = data.y, None if data.weight_N is None else data.weight_N.numpy()
        if self.output.kind == "regression":
            return ridge(z_NR, y.flatten(1).double().numpy(), self.config.alphas, weight_N)
        settings = {"C": penalty, "max_iter": self.config.iterations}
        labels = np.asarray(y.nan_to_num(-1).long())
        return logistic(z_NR, labels, self.output.size, settings, weight_N)

    def _error(self, model: LinearModel, x_NF: Tensor, data: FitData) -> float:
        """The squared error of probabilities or numbers on validation; infinite without samples."""
        if not len(x_NF):
            return np.inf
        y_NK = model(x_NF)
        if self.output.kind == "classification":
            y_NK = functional.softmax(y_NK, dim=1)
        elif self.output.kind == "multi-label":
            y_NK = y_NK.sigmoid()
        return squared_error(y_NK, data, self.output)
