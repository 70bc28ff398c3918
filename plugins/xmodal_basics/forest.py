"""The predictor ``forest``: randomised trees on the samples and on numbers that describe series.

Shapes: B and n samples, F numbers per sample, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Facts, FitData, FittedPredictor, Settings, Target, too_large
from xmodal_basics.fit import squared_error
from xmodal_basics.series_features import (
    Array,
    count_of_quantiles,
    described,
    interval_quantiles,
    series_in,
)
from xmodal_basics.tree_arrays import TreeArrays

LEAST = 1e-6
"""The probability of what no tree predicts."""
MOST_TRIED = 300
"""The most numbers that a split of a regression tree tries; of classes it is the square root."""
LARGEST_LEAVES_GB = 2.0
AT_ONCE = 1024
READ = ("both", "summary", "intervals")
SAID = ("points and description", "description alone", "quantiles of intervals")
MOST_QUANTILES = 20_000
"""Of samples with more quantiles of intervals, 'auto' does not read them: it would take minutes."""


class Forest(FittedPredictor):
    """Extremely randomised trees (Geurts, Ernst and Wehenkel 2006), by scikit-learn.

    Of sequences they read the points and a description of every channel (``series_features``), the
    description alone, or quantiles of intervals; of grids with few rows, such as spectrograms, the
    same of every row. Everything that they read belongs to one channel, and splits move with its
    unit, so units do not matter. Checkpoints hold the trees.
    """

    citation = "Geurts, Ernst, Wehenkel: Extremely randomized trees, Machine Learning 63 (2006)"

    class Config(Settings):
        """Settings of ``forest``."""

        features: Literal["auto", "both", "raw", "summary", "intervals"] = Field(
            "auto",
            description="What the trees read: the numbers of the sample, those that describe its "
            "series, both, or quantiles of intervals; 'auto' chooses all but the first on "
            "validation. Tables and pictures have the first alone.",
        )
        trees: PositiveInt = Field(200, description="Number of trees.")
        samples: PositiveInt = Field(
            20_000,
            description="A tree sees at most so many training samples, drawn with replacement if "
            "there are more.",
        )

    config: Config
    weighs = True
    summary: Tensor
    """What the trees read, as a place in ``READ``; it was once whether they read a summary."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        task = context.facts.task
        self.output = context.output or task.target
        self.rows = series_in(task.shape)
        self.seed = int(torch.randint(2**31, (), generator=context.generator))
        self.note = context.note
        self.trees = TreeArrays()
        place = READ.index(config.features) if config.features in READ else 0
        self.register_buffer("summary", torch.tensor(place))

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Everything but dense labels."""
        return output.kind != "dense"

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """Report dense labels, samples that are no series, and forests too large for memory."""
        task = facts.task
        if task.target.kind == "dense":
            yield "a forest predicts one number per label, not maps or series"
        if config.features in READ[1:] and series_in(task.shape) is None:
            yield f"features '{config.features}' are for series, and for grids of at most 128 rows"
        yield from (f"the forest {problem}" for problem in too_large(facts))
        if task.target.kind != "classification":
            leaves = config.trees * min(task.samples.get("train", 0), config.samples)
            gigabytes = 8e-9 * leaves * task.target.size
            if gigabytes > LARGEST_LEAVES_GB:
                yield (
                    f"the forest would need {gigabytes:.0f} GB for its leaves with "
                    f"{task.target.size} labels each (at most {LARGEST_LEAVES_GB:.0f})"
                )

    @property
    def fitted(self) -> bool:
        """Whether there are trees."""
        return len(self.trees.root_T) > 0

    def fit(self, data: FitData) -> None:
        """Grow the trees on the training split; validation samples say what they are to read."""
        self._grow(data)
        if self.config.features != "auto" or self.rows is None or not len(data.validation_x_NF):
            return
        channels, length = self.rows
        few = channels * count_of_quantiles(length) <= MOST_QUANTILES
        tried = [self._tried(data)]
        for place in range(1, len(READ) if few else READ.index("intervals")):
            self.trees, self.summary = TreeArrays(), torch.tensor(place)
            self._grow(data)
            tried.append(self._tried(data))
        error, place, self.trees = min(tried, key=lambda one: one[:2])
        self.summary = torch.tensor(place)
        self.note(f"forest: {SAID[place]} chosen on validation (squared error {error:.4g})")

    def chosen(self) -> dict[str, Any]:
        """What the trees read."""
        if self.config.features != "auto" or self.rows is None:
            return {}
        return {"features": READ[int(self.summary)]}

    def _tried(self, data: FitData) -> tuple[float, int, TreeArrays]:
        return self._error(data), int(self.summary), self.trees

    def _error(self, data: FitData) -> float:
        """The squared error of shares or numbers on validation."""
        y_BK = self.trees(torch.from_numpy(self._read(data.validation_x_NF)))
        return squared_error(y_BK, data, self.output)

    def _grow(self, data: FitData) -> None:
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        settings: dict[str, Any] = {
            "n_estimators": self.config.trees,
            "max_features": "sqrt",
            "random_state": self.seed,
            "n_jobs": torch.get_num_threads(),
        }
        if len(data.x_NF) > self.config.samples:
            settings |= {"bootstrap": True, "max_samples": self.config.samples}
        x_NF, y = self._read(data.x_NF), data.y.numpy()
        weight_N = None if data.weight_N is None else data.weight_N.numpy()
        if self.output.kind == "classification":
            forest = ExtraTreesClassifier(**settings).fit(x_NF, y, weight_N)
            self.trees.keep(forest.estimators_)
            self._spread(forest.classes_)
            return
        # Every label counts alike in what a split gains, whatever its unit. One that is unknown
        # says nothing: it becomes the mean.
        y_NK = y.reshape(len(y), -1).astype(np.float64)
        known_NK = ~np.isnan(y_NK)
        count_K = known_NK.sum(0).clip(1)
        mean_K = np.where(known_NK, y_NK, 0.0).sum(0) / count_K
        y_NK = np.where(known_NK, y_NK - mean_K, 0.0)
        scale_K = np.sqrt(np.square(y_NK).sum(0) / count_K)
        scale_K[scale_K == 0] = 1.0
        if self.output.kind == "regression":
            # The paper's choice for numbers, but for long samples.
            tried = min(1.0, MOST_TRIED / x_NF.shape[1])
            settings |= {"max_features": tried, "min_samples_split": 5}
        y_NK /= scale_K
        labels = y_NK.ravel() if y_NK.shape[1] == 1 else y_NK
        forest = ExtraTreesRegressor(**settings).fit(x_NF, labels, weight_N)
        self.trees.keep(forest.estimators_, scale_K, mean_K)

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``: log-probabilities of classes, log-odds of labels, or numbers."""
        self.check_fitted()
        x_BF = features.x_BND.flatten(1)
        with torch.autocast(x_BF.device.type, enabled=False):
            rows_BF = torch.from_numpy(self._read(x_BF.detach().float().cpu())).to(x_BF.device)
            y_BK: Tensor = self.trees(rows_BF)
        if self.output.kind == "classification":
            y_BK = y_BK.clamp_min(LEAST).log()
        elif self.output.kind == "multi-label":
            y_BK = torch.logit(y_BK, eps=LEAST)
        return y_BK.float()

    def _read(self, x_BF: Tensor) -> Any:
        """What the trees read of samples: float32 numbers, in pieces that fit into memory."""
        raw_BF = x_BF.numpy()
        if self.rows is None or self.config.features == "raw" or not len(raw_BF):
            return raw_BF
        reads = READ[int(self.summary)]
        describe = interval_quantiles if reads == "intervals" else described
        parts = [
            describe(raw_BF[start : start + AT_ONCE].reshape(-1, *self.rows))
            for start in range(0, len(raw_BF), AT_ONCE)
        ]
        described_BF = np.concatenate(parts)
        return np.concatenate([raw_BF, described_BF], axis=1) if reads == "both" else described_BF

    def _spread(self, classes: Array) -> None:
        """Columns for the classes that no training sample has."""
        value_UK = self.trees.value_UK
        every_UK = value_UK.new_zeros(len(value_UK), self.output.size)
        every_UK[:, torch.from_numpy(classes).long()] = value_UK
        self.trees.value_UK = every_UK
