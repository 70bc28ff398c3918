"""What the trials of a search predict for the samples that judge them: intervals and differences.

All trials predict the same samples. In cross-validation their predictions are those of all folds
and repetitions one after another (N in all), and a score is the mean of the folds' scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xmodal import randomness
from xmodal.assess import Resamples, ScoreInterval
from xmodal.data.store import Store
from xmodal.engine.plan import Plan
from xmodal.interfaces import Context, Metric
from xmodal.runs import PREDICTIONS
from xmodal.search.trials import Trial


@dataclass(frozen=True)
class Predicted:
    """Predictions ``[N, ...]`` of samples with their labels and what tells the samples apart.

    ``groups_N``: None without groups. ``rows_N``: the samples' places in their file, None if not
    known. ``folds_N``: None of a single split.
    """

    prediction: Tensor
    y: Tensor
    groups_N: Tensor | None = None
    rows_N: Tensor | None = None
    folds_N: Tensor | None = None

    def matches(self, other: Predicted) -> bool:
        """Whether the other predictions are for the same samples, in the same order."""
        same = self.y.shape == other.y.shape and self.prediction.shape == other.prediction.shape
        return same and torch.equal(self.y.nan_to_num(), other.y.nan_to_num())


def predicted(directories: Sequence[Path]) -> Predicted | None:
    """The predictions of runs, one for each fold; None if one has kept none."""
    try:
        parts = [load_file(folder / PREDICTIONS) for folder in directories]
    except (OSError, SafetensorError):
        return None  # predictions that are very large are not kept

    def joined(name: str) -> Tensor | None:
        return torch.cat([part[name] for part in parts]) if all(name in p for p in parts) else None

    prediction, y = joined("prediction"), joined("label")
    if prediction is None or y is None:
        return None
    sizes = torch.tensor([len(part["label"]) for part in parts])
    folds_N = torch.arange(len(parts)).repeat_interleave(sizes) if len(parts) > 1 else None
    return Predicted(prediction, y, joined("group"), joined("row"), folds_N)


class Pool:
    """The validation samples of a search, and what its trials predict for them.

    ``plan``: of any run on these data; tells the metric. ``seed`` fixes all draws.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self._known: dict[str, Predicted | None] = {}
        self._first: Predicted | None = None

    def metric(self) -> Metric:
        """The metric that judges the trials, empty."""
        use = self.plan.recipe.task.config.metric
        generator = randomness.generator(self.seed, "component", "metric")
        target = self.plan.facts.task.target
        made: Metric = use.build(Context(self.plan.facts, generator, Store(), output=target))
        made.reset()
        return made

    def of(self, trial: Trial) -> Predicted | None:
        """What a trial predicts; None if it has kept nothing, or not for the same samples."""
        if trial.key not in self._known:
            found = predicted([part.directory for part in trial.parts])
            if found is not None and self._first is None:
                self._first = found
            if found is not None and self._first is not None and not found.matches(self._first):
                found = None
            self._known[trial.key] = found
        return self._known[trial.key]

    @cached_property
    def samples(self) -> Resamples:
        """The samples; only after ``of`` has found some."""
        assert self._first is not None
        return self.resamples(self._first)

    def resamples(self, of: Predicted) -> Resamples:
        """The samples of some predictions, to be drawn again and again."""
        seed = randomness.derive(self.seed, "bootstrap")
        rows_N = of.rows_N if of.folds_N is not None else None
        return Resamples(self.metric(), of.y, of.groups_N, seed, rows_N, of.folds_N)

    def interval(self, trial: Trial) -> ScoreInterval | None:
        """The 95 % interval of a trial's validation score; None if it cannot be told."""
        own = self.of(trial)
        return None if own is None else self.samples.interval(own.prediction)
