"""What gradient-boosted trees of all libraries share: labels, early stopping, and search.

Shapes: B and n samples, F numbers per sample, S classes that occur, M models, K outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import (
    Context,
    Facts,
    FitData,
    FittedPredictor,
    Settings,
    Target,
    as_bytes,
    from_bytes,
    too_large,
)
from xmodal_rivals.packages import absent
from xmodal_rivals.units import units

LEAST = -13.8  # log 1e-6: the log-odds of what no training sample has
MOST_MODELS = 128
COLUMNS_TO_SAMPLE = 10
"""Trees draw some of so many columns or more; of fewer they see all."""
EXTRA = "rivals-tables"
Array = NDArray[np.float32]
Split = tuple[Array, Any, Any]
"""Samples, the labels of one model in float64, and the weights of the samples or None."""


class BoostingSettings(Settings):
    """Settings of all three."""

    rounds: PositiveInt = Field(1000, description="The most trees, or trees per class.")
    patience: PositiveInt = Field(
        100, description="Rounds without a better validation loss after which it stops."
    )
    trials: NonNegativeInt = Field(
        0,
        description="Random settings to try beside the defaults (ranges: docs/rivals.md); the "
        "least validation loss decides.",
    )
    parameters: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="Parameters in the library's own words; see docs/rivals.md for the others.",
    )


class Range(NamedTuple):
    """What a parameter is drawn from: ``low`` to ``high``, evenly or evenly in its logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, generator: np.random.Generator) -> float | int:
        """A value."""
        ends = (np.log(self.low), np.log(self.high)) if self.log else (self.low, self.high)
        value = float(generator.uniform(*ends))
        value = float(np.exp(value)) if self.log else value
        return round(value) if self.whole else value


class Boosted(FittedPredictor):
    """Trees on the flattened sample: one model for all classes, else one per number or label."""

    names = ("joined", "length_M", "constant_M", "seen_S", "mean_M", "scale_M")
    joined: Tensor
    length_M: Tensor
    constant_M: Tensor
    seen_S: Tensor
    mean_M: Tensor
    scale_M: Tensor

    weighs = True
    package: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    samples_columns: ClassVar[str] = ""  # the parameter that says what share of them, if any
    ranges: ClassVar[Mapping[str, Range]]

    Config = BoostingSettings

    def __init__(self, config: BoostingSettings, context: Context) -> None:
        super().__init__(config, context)
        task = context.facts.task
        self.output = context.output or task.target
        self.categories = tuple(i for i, count in enumerate(task.levels) if count)
        self.seed = int(torch.randint(2**31, (), generator=context.generator))
        self.models: list[Any] = []
        self.note = context.note

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Everything but dense labels."""
        return output.kind != "dense"

    @classmethod
    def problems(cls, config: BoostingSettings, facts: Facts) -> Iterable[str]:
        """Report dense labels, too many labels, and tasks too large for memory."""
        target = facts.task.target
        if target.kind == "dense":
            yield f"{cls.package} predicts one number per model, not maps or series"
        elif target.kind != "classification" and target.size > MOST_MODELS:
            yield (
                f"{cls.package} fits one model per label: {target.size} of them (at most "
                f"{MOST_MODELS})"
            )
        yield from (f"{cls.package} {problem}" for problem in too_large(facts))

    @classmethod
    def missing(cls, config: BoostingSettings, store: Store) -> Iterable[str]:
        """The package."""
        return absent(cls.package, EXTRA)

    @property
    def fitted(self) -> bool:
        """Whether there are models."""
        return len(self.length_M) > 0

    def loaded(self) -> None:
        """Read other models when they are needed."""
        self.models = []

    def fit(self, data: FitData) -> None:
        """Fit the models that the labels ask for. Labels that never change need none."""
        x_NF, more_NF = self._rows(data.x_NF), self._rows(data.validation_x_NF)
        weight_N = None if data.weight_N is None else data.weight_N.numpy()
        self.seen_S = torch.empty(0, dtype=torch.int64)
        parts, constants, y_units = [], [], []
        for y_N, more_N in self._columns(data):
            mean, scale = 0.0, 1.0
            if self.output.kind == "regression":
                mean, scale = (float(one) for one in units(torch.from_numpy(y_N)[:, None]))
            y_units.append((mean, scale))
            kept_N, held_N = ~np.isnan(y_N), ~np.isnan(more_N)
            known = np.unique(y_N[kept_N])
            constants.append(float(known[0]) if len(known) else 0.0)
            if len(known) < 2:
                parts.append(b"")
                continue
            # The library sees the classes that occur as 0 .. S-1; others have no loss.
            classes = self.output.kind == "classification"
            if classes:
                self.seen_S = torch.from_numpy(known).long()
                held_N &= np.isin(more_N, known)
                y_N, more_N = (np.searchsorted(known, one).astype(float) for one in (y_N, more_N))
            y_N, more_N = (y_N - mean) / scale, (more_N - mean) / scale
            validation = (more_NF[held_N], more_N[held_N], None) if held_N.any() else None
            size = len(known) if classes and len(known) > 2 else 1
            weight_M = None if weight_N is None else weight_N[kept_N]
            parts.append(self._best((x_NF[kept_N], y_N[kept_N], weight_M), validation, size))
        if self.output.kind == "classification" and not len(self.seen_S):
            self.seen_S = torch.tensor(constants).long()
        self.joined, self.length_M = as_bytes(parts)
        self.constant_M = torch.tensor(constants)
        self.mean_M, self.scale_M = torch.tensor(y_units).T.clone()
        self.loaded()

    def chosen(self) -> dict[str, Any] | None:
        """The rounds; None where each of several models has its own, and of drawn settings."""
        texts = from_bytes(self.joined, self.length_M)
        rounds = [self.rounds_of(self.read(text)) for text in texts if text]
        if self.config.trials or len(rounds) > 1:
            return None
        return {"rounds": max(1, rounds[0])} if rounds else {}

    def _best(self, training: Split, validation: Split | None, size: int) -> bytes:
        """The model with the least validation loss among the defaults and the trials."""
        best = self._trained(training, validation, size, {})
        if not self.config.trials:
            return best
        if validation is None:
            self.note(f"{self.package}: nothing chooses among trials without validation samples")
            return best
        generator = np.random.default_rng(self.seed)
        least = self._loss(best, validation)
        for _ in range(self.config.trials):
            drawn = {name: one.draw(generator) for name, one in self.ranges.items()}
            trial = self._trained(training, validation, size, drawn)
            if (loss := self._loss(trial, validation)) < least:
                best, least = trial, loss
        return best

    def _trained(
        self, training: Split, validation: Split | None, size: int, drawn: Mapping[str, Any]
    ) -> bytes:
        """``train_one``; what the library complains about as one line."""
        try:
            return self.train_one(training, validation, size, drawn)
        except Exception as error:
            if self.package not in type(error).__module__:
                raise
            said = next((line for line in str(error).splitlines() if line.strip()), "")
            if given := self.config.parameters:
                text = f"{self.package} refuses predictor.parameters={given} or the data: {said}"
                raise UsageError(text) from error
            raise DataError(f"{self.package} cannot be fitted to these data: {said}") from error

    def _loss(self, text: bytes, validation: Split) -> float:
        """Cross-entropy of classes or labels, squared error of numbers."""
        x_NF, y_N, _ = validation
        margin_NS = torch.from_numpy(np.asarray(self.margin(self.read(text), x_NF))).double()
        y = torch.from_numpy(y_N)
        if margin_NS.shape[1] > 1:
            return float(functional.cross_entropy(margin_NS, y.long()))
        if self.output.kind == "regression":
            return float(functional.mse_loss(margin_NS[:, 0], y))
        return float(functional.binary_cross_entropy_with_logits(margin_NS[:, 0], y))

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``: log-probabilities of classes, log-odds of labels, or numbers."""
        self.check_fitted()
        x_BF = self._rows(features.x_BND.flatten(1).detach().float().cpu())
        if not self.models:
            texts = from_bytes(self.joined, self.length_M)
            self.models = [self.read(text) if text else None for text in texts]
        about = (one.tolist() for one in (self.constant_M, self.mean_M, self.scale_M))
        margins = [
            self._constant(len(x_BF), value)
            if model is None
            else np.asarray(self.margin(model, x_BF), dtype=np.float64) * scale + mean
            for model, value, mean, scale in zip(self.models, *about, strict=True)
        ]
        margin_BM = torch.from_numpy(np.concatenate(margins, axis=1)).float()
        if self.output.kind == "classification":
            margin_BM = self._log_probabilities(margin_BM)
        return margin_BM.to(features.x_BND.device)

    def _log_probabilities(self, margin_BM: Tensor) -> Tensor:
        seen_S = self.seen_S.cpu()
        if len(seen_S) == 1:
            margin_BM = torch.zeros_like(margin_BM)
        elif len(seen_S) == 2:
            margin_BM = torch.cat([torch.zeros_like(margin_BM), margin_BM], dim=1)
        log_BK = torch.full((len(margin_BM), self.output.size), LEAST)
        log_BK[:, seen_S] = margin_BM.log_softmax(1)
        return log_BK

    def _constant(self, samples: int, value: float) -> Array:
        """What a model of labels that never change predicts."""
        if self.output.kind == "multi-label":
            value = -LEAST if value else LEAST
        return np.full((samples, 1), value, dtype=np.float32)

    def _rows(self, x_NF: Tensor) -> Array:
        """The samples as all three libraries read them: a missing category is NaN, too."""
        rows_NF = x_NF.numpy().astype(np.float32, copy=True)
        for column in self.categories:
            rows_NF[rows_NF[:, column] < 0, column] = np.nan
        return rows_NF

    def _columns(self, data: FitData) -> Iterable[tuple[Any, Any]]:
        """The labels of each model, for training and for validation, float64."""
        y, more = data.y.double().numpy(), data.validation_y.double().numpy()
        if y.ndim == 1:
            return [(y, more)]
        return [(y[:, k], more[:, k]) for k in range(y.shape[1])]

    def parameters_of(self, given: Mapping[str, Any], training: Split) -> dict[str, Any]:
        """Defaults, what is ``given``, and what the recipe says: the later goes before."""
        defaults = dict(self.defaults)
        if self.samples_columns and training[0].shape[1] < COLUMNS_TO_SAMPLE:
            defaults[self.samples_columns] = 1.0
        return {**defaults, **given, **self.config.parameters}

    @abstractmethod
    def train_one(
        self, training: Split, validation: Split | None, size: int, drawn: Mapping[str, Any]
    ) -> bytes:
        """Fit one model with ``size`` outputs (1: two classes, a label or a number).

        ``drawn`` replaces defaults.
        """

    @abstractmethod
    def read(self, text: bytes) -> Any:
        """The model that ``train_one`` wrote."""

    @abstractmethod
    def rounds_of(self, model: Any) -> int:
        """How many rounds a model has."""

    @abstractmethod
    def margin(self, model: Any, x_BF: Array) -> Any:
        """Log-odds or numbers before any link, ``[B, size]``."""
