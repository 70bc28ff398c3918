"""Classical baselines: scikit-learn models, fitted once to flattened samples.

The predictor ``sklearn`` works with embedder ``flat``, backbone ``identity`` and stage ``fit``.

Shapes: B and n samples, F numbers per sample, P numbers after one-hot coding, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Facts, FitData, FittedPredictor, Settings, Target, too_large
from xmodal_basics.sklearn_models import BoostedTrees, LinearModel, logistic, ridge


class Sklearn(FittedPredictor):
    """Ridge, logistic regression or gradient boosting on the flattened sample.

    Linear models read categories as one 0/1 number per level. They standardise the numbers (one
    scale per column for tables, otherwise one scale for all) and project them to their principal
    directions. Checkpoints hold the coefficients of linear models. For gradient boosting they hold
    the training data, and the same trees are grown again when first needed. Dense labels that are
    all 0 or 1 are predicted as the log-odds of ridge's estimate.
    """

    uses_validation = False
    weighs = True

    class Config(Settings):
        estimator: Literal["auto", "ridge", "logistic", "hist-gradient-boosting"] = Field(
            "auto",
            description="'auto' takes gradient boosting for tables; otherwise logistic regression "
            "for classes and 0/1 labels, and ridge for numbers.",
        )
        alphas: tuple[PositiveFloat, ...] = Field(
            tuple(10.0**i for i in range(-2, 9)),
            min_length=1,
            description="Penalties that ridge chooses from, by leave-one-out error.",
        )
        inverse_penalty: PositiveFloat = Field(1.0, description="C of logistic regression.")
        components: PositiveInt = Field(
            512, description="Largest number of principal directions in a linear model."
        )
        iterations: PositiveInt = Field(
            100, description="Boosting rounds; logistic regression takes ten times as many steps."
        )

    zero_one: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        task = context.facts.task
        self.output = context.output or task.target
        self.levels = task.levels if any(task.levels) else ()
        self.is_table = task.form == "row"
        self.estimator = chosen(config, context.facts, self.output)
        self.seed = int(torch.randint(2**31, (), generator=context.generator))
        self.note = context.note
        self.model: LinearModel | BoostedTrees = LinearModel()
        if self.estimator == "hist-gradient-boosting":
            settings = {"max_iter": config.iterations, "random_state": self.seed}
            self.model = BoostedTrees(self.output.kind, self.output.size, self.levels, settings)
        self.register_buffer("zero_one", torch.tensor(False))

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """Report estimators that cannot predict the labels, and tasks too large for memory."""
        target = facts.task.target
        try:
            estimator = chosen(config, facts, target)
        except ValueError as error:
            yield str(error)
            return
        yield from (f"{estimator} {problem}" for problem in too_large(facts))

    @property
    def fitted(self) -> bool:
        """Whether the model has its numbers."""
        known = self.model.bias_K if isinstance(self.model, LinearModel) else self.model.train_x_NF
        return len(known) > 0

    @property
    def traceable(self) -> bool:
        """Linear models are; trees are scikit-learn's."""
        return self.estimator != "hist-gradient-boosting"

    def fit(self, data: FitData) -> None:
        """Fit to the training split; validation samples select nothing."""
        x_NF, y = data.x_NF, data.y
        if isinstance(self.model, BoostedTrees):
            self.model.fit(x_NF, y, data.weight_N)
            return
        weight_N = None if data.weight_N is None else data.weight_N.numpy()
        x_NP = self._columns(x_NF).double().numpy()
        rank = self.config.components
        if rank < min(x_NP.shape):
            self.note(f"sklearn: {rank} principal directions of {min(x_NP.shape)} used")
        self.model.fit(
            x_NP, lambda z_NR: self._solve(z_NR, y, weight_N), rank, self.is_table, self.seed
        )
        known = y[~y.isnan()]
        self.zero_one = torch.tensor(
            self.output.kind == "dense" and bool(((known == 0) | (known == 1)).all())
        )

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]`` (log-probabilities, log-odds or numbers) or ``[B, K, *shape]``."""
        self.check_fitted()
        x_BF = features.x_BND.flatten(1)
        if isinstance(self.model, BoostedTrees):
            trees_BK: Tensor = self.model(x_BF)
            return trees_BK
        # Half precision would lose digits and save nothing here.
        with torch.autocast(x_BF.device.type, enabled=False):
            y_BK: Tensor = self.model(self._columns(x_BF.float()))
        if self.output.kind == "classification":
            return y_BK.log_softmax(1)
        # Do not branch on a buffer: exporters must be able to trace the model.
        y_BK = torch.where(self.zero_one, torch.logit(y_BK, eps=1e-4), y_BK)
        return y_BK.view(y_BK.shape[0], self.output.size, *self.output.shape)

    def _columns(self, x_BF: Tensor) -> Tensor:
        """Every category as one 0/1 number per level (all 0 if missing): ``[B, P]``."""
        if not self.levels:
            return x_BF
        parts = []
        for x_B, count in zip(x_BF.unbind(1), self.levels, strict=True):
            level_M = torch.arange(count, device=x_B.device)
            parts.append((x_B[:, None] == level_M).to(x_B) if count else x_B[:, None])
        return torch.cat(parts, dim=1)

    def _solve(self, z_NR: Any, y: Tensor, weight_N: Any) -> Any:
        if self.estimator == "ridge":
            return ridge(z_NR, y.flatten(1).double().numpy(), self.config.alphas, weight_N)
        settings = {"C": self.config.inverse_penalty, "max_iter": 10 * self.config.iterations}
        labels = np.asarray(y.nan_to_num(-1).long())
        return logistic(z_NR, labels, self.output.size, settings, weight_N)


def chosen(config: Sklearn.Config, facts: Facts, output: Target) -> str:
    """The estimator. Raises ValueError if it cannot predict that kind of label."""
    labels = output.kind in ("classification", "multi-label")
    if config.estimator == "auto":
        if facts.task.form == "row" and output.kind != "dense":
            return "hist-gradient-boosting"
        return "logistic" if labels else "ridge"
    able = {
        "ridge": not labels,
        "logistic": labels,
        "hist-gradient-boosting": output.kind != "dense",
    }
    if not able[config.estimator]:
        raise ValueError(f"estimator '{config.estimator}' cannot predict {output.kind} labels")
    return config.estimator
