"""The 95 % interval of a score, and of the difference of two scores on the same samples.

Test samples are drawn again with replacement (bootstrap): whole groups where samples belong to
groups, because samples of one person or recording are not independent. Both scores of a difference
see the same draws. A percentile interval of few values is too short; the quantiles are taken
further out for it (``expanded_level``). Two cases where the bootstrap says too little are exact
instead: the share of wrong answers has the binomial interval of Clopper and Pearson, and the
difference of two such shares is tested by McNemar's exact test.

Shapes: N samples, U units (samples or groups), R draws, P predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from xmodal.interfaces import Metric

LEVEL = 0.95
DRAWS, FEWER_DRAWS, FEWEST_DRAWS = 1000, 500, 100
"""Draws where a score is a mean over units; where it has to be computed anew; the least."""
MOST_NUMBERS = 40_000_000
"""Predicted numbers that are scored anew, over all draws; beyond, there is no interval."""
LEAST_UNITS = 6
"""Of fewer units no interval is told: five signs agree by chance once in 16 times."""
LEAST_OF_A_CLASS = 4
"""Of fewer samples beside the largest class, a perfect order is no evidence (4 and 4: p = .03)."""
_UNDEFINED = 0.05  # the largest share of draws without a score
_CLOSE, _FEW = 1e-6, 32

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreInterval:
    """The 95 % interval of a score over ``units`` samples or groups (``over``), and its method."""

    low: float
    high: float
    units: int
    over: Literal["samples", "groups"] = "samples"
    method: Literal["bootstrap", "binomial"] = "bootstrap"
    level: float = LEVEL


@dataclass(frozen=True)
class Decomposed:
    """A score as a mean over units: ``(sum w v^power / sum w)^(1 / power)`` of values v."""

    value_U: Floats
    weight_U: Floats
    power: int

    def score(self, index_M: NDArray[np.int64]) -> float:
        """The score of these units."""
        weight = self.weight_U[index_M]
        total = weight.sum()
        if not total:
            return math.nan
        value = self.value_U[index_M]
        unit = float(np.abs(value).max()) or 1.0  # the square of 1e200 is infinite
        mean = (weight * (value / unit) ** self.power).sum() / total
        return float(unit * mean ** (1 / self.power))

    @property
    def binary(self) -> bool:
        """Whether every unit is either right or wrong, and all count alike."""
        even = bool((self.weight_U == self.weight_U[0]).all())
        values = bool(np.isin(self.value_U, (0.0, 1.0)).all())
        same = bool((self.value_U == self.value_U[0]).all())
        return values and self.power == 1 and (even or same)


class Resamples:
    """The test samples of a task, drawn again and again; scores any predictions for them.

    ``metric`` is reset and used; predictions and labels ``[N, ...]`` are as ``Metric.update`` gets
    them. ``groups_N`` are the groups of the samples, ``seed`` fixes all draws. In cross-validation
    a sample has a prediction in every repetition: ``rows_N`` says which sample each is of, and
    ``folds_N`` of which fold it is. The score is then the mean of the folds' scores, and a sample
    is drawn with all its predictions.
    """

    def __init__(
        self,
        metric: Metric,
        y: Tensor,
        groups_N: Tensor | None = None,
        seed: int = 0,
        rows_N: Tensor | None = None,
        folds_N: Tensor | None = None,
    ) -> None:
        self.metric, self.y, self.groups_N, self.seed = metric, y, groups_N, seed
        self.folds_N = folds_N
        whole_N = rows_N if groups_N is None else groups_N
        if whole_N is None:
            self.members = [np.array([i]) for i in range(len(y))]
        else:
            _, group_N = np.unique(whole_N.cpu().numpy(), return_inverse=True)
            order = np.argsort(group_N, kind="stable")
            ends = np.cumsum(np.bincount(group_N))[:-1]
            self.members = np.split(order, ends)
        self.over: Literal["samples", "groups"] = "samples" if groups_N is None else "groups"
        self._taken_apart: list[tuple[Tensor, Decomposed | None]] = []
        self._drawn: list[tuple[Tensor, Floats]] = []

    @property
    def units(self) -> int:
        """How many samples, or groups, there are."""
        return len(self.members)

    def score(self, prediction: Tensor, units: NDArray[np.int64] | None = None) -> float:
        """The score of all samples, or of those of some units."""
        return self._scored(prediction, np.arange(self.units) if units is None else units)

    def interval(self, prediction: Tensor) -> ScoreInterval | None:
        """The interval of the score; None where so few or such samples cannot tell."""
        parts = self.decomposed(prediction)
        if parts is not None and parts.binary and self._classes:
            wrong = int(parts.value_U.sum())
            return ScoreInterval(*binomial(wrong, self.units), self.units, self.over, "binomial")
        ends = self._ends(self._draws([prediction], [parts])[0], parts is not None)
        return None if ends is None else ScoreInterval(*ends, self.units, self.over)

    def difference(self, one: Tensor, other: Tensor) -> tuple[ScoreInterval | None, int]:
        """The interval of score(one) - score(other), and the sign that is beyond doubt, or 0.

        Where the interval is exact, the sign is that of McNemar's test.
        """
        parts = [self.decomposed(one), self.decomposed(other)]
        draws_PR = self._draws([one, other], parts)
        with np.errstate(invalid="ignore"):
            ends = self._ends(draws_PR[0] - draws_PR[1], all(p is not None for p in parts), True)
        found = None if ends is None else ScoreInterval(*ends, self.units, self.over)
        shares = [p.value_U for p in parts if p is not None and p.binary and self._classes]
        if len(shares) == 2 and self.over == "samples":
            return found, _mcnemar(*shares)
        if found is None:
            return None, 0
        return found, int(found.low > 0) - int(found.high < 0)

    # --- how a score depends on its samples ---

    def decomposed(self, prediction: Tensor) -> Decomposed | None:
        """The score as a mean over units, if it is one: checked on all units and on some draws."""
        for known, made in self._taken_apart:
            if known is prediction:
                return made
        made, every = None, np.arange(self.units)
        # A few units first: a score that is no mean shows it there, at little cost.
        few = np.random.default_rng([self.seed, 2]).permutation(every)[:_FEW]
        if self.units <= _FEW or self._mean(prediction, few) is not None:
            made = self._mean(prediction, every)
        self._taken_apart.append((prediction, made))
        return made

    def _mean(self, prediction: Tensor, index_U: NDArray[np.int64]) -> Decomposed | None:
        """The score of these units as a mean over them; None if it is none."""
        count = len(index_U)
        value_U = np.array([self._scored(prediction, index_U[u : u + 1]) for u in range(count)])
        known_U = np.isfinite(value_U)
        if not known_U.any():
            return None
        size_U = np.array([len(self.members[u]) for u in index_U], dtype=np.float64)
        generator = np.random.default_rng([self.seed, 1])
        draws = [np.arange(count), *(generator.integers(count, size=count) for _ in range(3))]
        scores = [self._scored(prediction, index_U[draw]) for draw in draws]
        for weight_U in (size_U, np.ones(count)):
            for power in (1, 2):
                weights = np.where(known_U, weight_U, 0.0)
                made = Decomposed(np.where(known_U, value_U, 0.0), weights, power)
                if all(_same(made.score(d), s) for d, s in zip(draws, scores, strict=True)):
                    return made
        return None

    def _scored(self, prediction: Tensor, index_M: NDArray[np.int64]) -> float:
        """The score of some units; a unit that is drawn twice counts twice."""
        chosen = [self.members[u] for u in index_M]
        index = torch.from_numpy(np.concatenate(chosen))
        groups = None
        if self.groups_N is not None:
            sizes = torch.tensor([len(m) for m in chosen])
            groups = torch.arange(len(chosen)).repeat_interleave(sizes)
        if self.folds_N is None:
            return self._scored_rows(prediction, index, groups)
        fold_M = self.folds_N[index]
        scores = []
        for fold in torch.unique(fold_M):  # a fold that no draw fell into has no score
            own = fold_M == fold
            in_fold = None if groups is None else groups[own]
            scores.append(self._scored_rows(prediction, index[own], in_fold))
        return float(np.mean(scores))

    def _scored_rows(self, prediction: Tensor, index: Tensor, groups: Tensor | None) -> float:
        self.metric.reset()
        self.metric.group(groups)
        self.metric.update(prediction[index], self.y[index])
        return float(self.metric.compute())

    # --- draws and their quantiles ---

    def _draws(self, predictions: Sequence[Tensor], parts: Sequence[Decomposed | None]) -> Floats:
        """The scores of all predictions over the same draws, ``[P, R]``; empty if too costly."""
        count = DRAWS
        numbers = sum(p.numel() for p, own in zip(predictions, parts, strict=True) if own is None)
        if numbers:
            count = min(FEWER_DRAWS, MOST_NUMBERS // numbers)
        if count < FEWEST_DRAWS or self.units < LEAST_UNITS:
            return np.empty((len(predictions), 0))
        pairs = zip(predictions, parts, strict=True)
        return np.stack([self._drawn_scores(prediction, own, count) for prediction, own in pairs])

    def _drawn_scores(self, prediction: Tensor, own: Decomposed | None, count: int) -> Floats:
        """The scores over the first draws, ``[R]``; what was scored before is not scored again."""
        for known, scores_R in self._drawn:
            if known is prediction and len(scores_R) >= count:
                return scores_R[:count]
        generator = np.random.default_rng([self.seed, 0])
        scores_R = np.empty(count)
        for r in range(count):
            index_M = generator.integers(self.units, size=self.units)
            scores_R[r] = self._scored(prediction, index_M) if own is None else own.score(index_M)
        self._drawn.append((prediction, scores_R))
        return scores_R

    def _ends(
        self, drawn_R: Floats, decomposed: bool, paired: bool = False
    ) -> tuple[float, float] | None:
        """The ends of the interval of some draws; None where they cannot tell."""
        finite_R = drawn_R[np.isfinite(drawn_R)]
        if not len(finite_R) or len(finite_R) < (1 - _UNDEFINED) * len(drawn_R):
            return None
        if not paired and finite_R.min() == finite_R.max():
            return None  # that nothing varied here does not mean that nothing varies
        units = self.units if decomposed else min(self.units, self._beside_the_largest)
        if units < (LEAST_UNITS if decomposed or not self._classes else LEAST_OF_A_CLASS):
            return None
        tail = expanded_level(LEVEL, units)
        low, high = np.quantile(finite_R, [tail, 1 - tail])
        return float(low), float(high)

    @property
    def _classes(self) -> bool:
        return not self.y.is_floating_point()

    @cached_property
    def _beside_the_largest(self) -> int:
        """What a score of classes hangs on: the samples of all classes but the largest.

        Of 0/1 labels: the rarer value of the most even column. Of numbers: all samples.
        """
        if self._classes:
            counts = torch.bincount(self.y.flatten())
            return int(counts.sum() - counts.max())
        y_NK = self.y.flatten(1) if self.y.ndim > 1 else self.y[:, None]
        known = y_NK[~y_NK.isnan()]
        if self.y.ndim != 2 or not bool(((known == 0) | (known == 1)).all()):
            return self.units
        ones_K, zeros_K = ((y_NK == value).sum(0) for value in (1, 0))
        return int(torch.minimum(ones_K, zeros_K).max())


def expanded_level(level: float, n: int) -> float:
    """Tail probability, on each side, of the expanded percentile interval for n values.

    A percentile interval is too short for few values: it lacks the factor sqrt(n / (n - 1)) and
    uses the normal instead of Student's t. Taking quantiles further out repairs both
    (Hesterberg, What teachers should know about the bootstrap, The American Statistician 2015).
    """
    t = special.stdtrit(n - 1, 0.5 + level / 2)
    return float(special.ndtr(-t * math.sqrt(n / (n - 1))))


def binomial(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share of which ``count`` of ``n`` were seen (Clopper, Pearson 1934).

    It is never too short, whatever the share.
    """
    tail = (1 - level) / 2
    low = special.betaincinv(count, n - count + 1, tail) if count else 0.0
    high = special.betaincinv(count + 1, n - count, 1 - tail) if count < n else 1.0
    return float(low), float(high)


def _mcnemar(one_U: Floats, other_U: Floats) -> int:
    """The sign of the difference of two shares of wrong answers, 0 if it may be chance."""
    more, fewer = int((one_U > other_U).sum()), int((one_U < other_U).sum())
    p = 2 * special.bdtr(min(more, fewer), more + fewer, 0.5)  # of a fair coin
    return 0 if p > 1 - LEVEL else int(more > fewer) - int(more < fewer)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_CLOSE) or (math.isnan(a) and math.isnan(b))
