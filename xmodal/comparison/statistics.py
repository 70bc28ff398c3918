"""Arithmetic of a comparison of two methods: pure functions on arrays.

Differences are paired log-ratios d = log(e_A / e_B) of errors: negative where A is better, and
unchanged when all errors of a task are multiplied by one number. What is averaged over seeds, tasks
and families are relative differences, which are bounded. Shapes: T tasks, S seeds, F families, U
units (families, or the tasks of a single family), R draws. A value that was not measured is NaN.
All draws come from a seed, so a number never changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from xmodal.assess.resample import expanded_level
from xmodal.comparison.error_table import Floats

DECIMALS = 12
"""Differences are rounded to this many decimals before they are compared: the rest is noise."""
POWER = 0.8
"""The chance to settle a pair that a planned number of seeds or tasks aims at."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float

    def __neg__(self) -> Interval:
        return Interval(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class CellSummary:
    """Errors of one method on one task: mean, standard deviation (None for n < 2), count.

    ``failed`` runs are not part of the other three.
    """

    mean: float | None
    sd: float | None
    n: int
    failed: int


def summary(errors_S: Floats) -> CellSummary:
    """Summary of one cell; NaN (no run) is left out, infinity is a failed run."""
    finite_S = errors_S[np.isfinite(errors_S)]
    n = len(finite_S)
    return CellSummary(
        mean=float(finite_S.mean()) if n else None,
        sd=float(finite_S.std(ddof=1)) if n > 1 else None,
        n=n,
        failed=int(np.isposinf(errors_S).sum()),
    )


def log_ratios(a_TS: Floats, b_TS: Floats) -> Floats:
    """log(e_A / e_B) of the seeds that both have; NaN elsewhere.

    A run of A that failed gives +inf, one of B -inf, and NaN where both failed.
    """
    with np.errstate(invalid="ignore"):  # inf - inf: both failed
        d_TS = np.log(a_TS) - np.log(b_TS)
    return np.asarray(np.where(np.isfinite(d_TS), np.round(d_TS, DECIMALS), d_TS))


def relative_differences(d: Floats) -> Floats:
    """2 (e_A - e_B) / (e_A + e_B) of log-ratios d: the difference relative to the mean of both.

    It equals 2 tanh(d / 2): d itself where both errors are close, and +-2 at most. So one task
    cannot carry a mean, and it hardly matters how little an error near 0 is taken to be.
    """
    return np.asarray(2 * np.tanh(d / 2))


def as_log_ratio(difference: float) -> float:
    """The log-ratio of two errors with this relative difference; infinite from +-2 on."""
    if abs(difference) >= 2:
        return math.copysign(math.inf, difference)
    return 2 * math.atanh(difference / 2)


def task_means(d_TS: Floats) -> Floats:
    """Mean over the seeds of every task [..., T], rounded; every task needs a seed.

    NaN where one run of A and one of B failed: nothing can be said.
    """
    with np.errstate(invalid="ignore"):  # inf - inf: see above
        return np.asarray(np.round(np.nanmean(d_TS, axis=-1), DECIMALS))


def unit_means(x_T: Floats, families: Sequence[str]) -> Floats:
    """One value a unit [..., U]: the mean over the tasks of each family, in order of their names.

    Tasks of one family resemble each other, so that a family is one observation. With a single
    family its tasks are the units, and nothing is said of other families. ``families`` has one
    entry a task.
    """
    if len(set(families)) < 2:
        return np.asarray(x_T)
    mean_F = [members.mean(axis=-1) for members in _by_family(x_T, families)]
    return np.asarray(np.round(np.stack(mean_F, axis=-1), DECIMALS))


def median_effect(x_T: Floats, families: Sequence[str]) -> Floats:
    """Median over families of the median of each one's tasks [...]; of tasks for one family."""
    median_F = [np.median(members, axis=-1) for members in _by_family(x_T, families)]
    return np.asarray(np.median(np.stack(median_F, axis=-1), axis=-1))


def _by_family(x_T: Floats, families: Sequence[str]) -> list[Floats]:
    """The values of each family's tasks, in order of the families' names."""
    labels = np.asarray(families)
    return [x_T[..., labels == name] for name in sorted(set(families))]


def win_tie_loss(d_T: Floats) -> tuple[int, int, int]:
    """Tasks on which A is better, equal and worse."""
    return int((d_T < 0).sum()), int((d_T == 0).sum()), int((d_T > 0).sum())


# --- intervals ---------------------------------------------------------------------------------


def _interval(value: float, draws_R: Floats, level: float, n: int) -> Interval:
    tail = expanded_level(level, n)
    low, high = np.quantile(draws_R, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def reachable_level(level: float, n: int) -> float:
    """The confidence that an interval from n resampled values can have at most.

    Resampling never leaves the range of the values, and that range misses the median of what
    they are drawn from with probability 2^(1 - n): 3 seeds reach 75 %, 5 seeds 94 %.
    """
    return min(level, 1 - 2.0 ** (1 - n))


def seed_interval(d_S: Floats, level: float, draws: int, seed: int) -> Interval | None:
    """Bootstrap interval of the mean of one task over its seeds; None for fewer than two.

    For 3 to 5 seeds it runs, or nearly runs, from the smallest to the largest value.
    """
    values_n = d_S[np.isfinite(d_S)]
    n = len(values_n)
    if n < 2:
        return None
    # Sorted from the side of the mean: neither names of seeds nor a swap of A and B matter.
    side = 1 if values_n.mean() > 0 else -1
    values_n = side * np.sort(side * values_n)
    draws_Rn = values_n[np.random.default_rng(seed).integers(n, size=(draws, n))]
    return _interval(float(values_n.mean()), draws_Rn.mean(axis=1), level, n)


@dataclass(frozen=True)
class Student:
    """Student's t over U units: mean, standard error and degrees of freedom; arrays [...]."""

    mean: Floats
    error: Floats
    df: int

    def half_width(self, level: float) -> Floats:
        """Half of the interval of this confidence."""
        return np.asarray(stats.t.ppf(0.5 + level / 2, self.df) * self.error)

    @property
    def p(self) -> Floats:
        """Two-sided p of a mean of 0; 1 where all units are 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(self.mean == 0, 0.0, np.abs(self.mean) / self.error)
        return np.asarray(2 * stats.t.sf(t, self.df))

    def p_within(self, limit: float) -> Floats:
        """p of two one-sided tests (Schuirmann 1987) that the mean lies outside of +-limit."""
        with np.errstate(divide="ignore"):
            t = (limit - np.abs(self.mean)) / self.error
        return np.asarray(stats.t.sf(t, self.df))


def student(x_T: Floats, families: Sequence[str]) -> Student:
    """Student's t over units of the tasks [..., T]; at least two.

    Ibragimov and Mueller (Journal of Business & Economic Statistics 2010): with one mean for each
    independent family it holds its level up to 8 % for families of any unequal variances, normal
    or a scale mixture of normals, and for dependence of any kind within a family. A few families
    can agree by chance; so the error is at least what the tasks within families say.
    """
    x_U = unit_means(x_T, families)
    units = x_U.shape[-1]
    variance = x_U.var(axis=-1, ddof=1) / units
    if len(set(families)) > 1:
        variance = np.maximum(variance, _within(x_T, families).sum(axis=-1) / units**2)
    return Student(np.asarray(x_U.mean(axis=-1)), np.asarray(np.sqrt(variance)), units - 1)


def _within(x_T: Floats, families: Sequence[str]) -> Floats:
    """Variance of each family's mean [..., F] by its own tasks; 0 for a single task."""
    return np.stack(
        [
            x.var(axis=-1, ddof=1) / x.shape[-1] if x.shape[-1] > 1 else np.zeros(x.shape[:-1])
            for x in _by_family(x_T, families)
        ],
        axis=-1,
    )


def beyond(mean: Floats, half: Floats, units: int, alpha: float) -> tuple[Floats, Floats]:
    """Ends of an interval for the mean relative difference of all families, also of those unseen.

    ``mean`` +- ``half`` is the interval of families like the ``units`` that were seen. A share q =
    1 - (alpha / 2)^(1 / units) of all families can still be unlike every one of them: with the
    probability alpha / 2 none of it is among the units. Its relative differences may be +-2.
    """
    unseen = missed(units, alpha)
    low, high = (1 - unseen) * (mean - half), (1 - unseen) * (mean + half)
    return np.asarray(low - 2 * unseen), np.asarray(high + 2 * unseen)


def missed(units: int, alpha: float) -> float:
    """The share of all families that units miss with the probability alpha / 2."""
    return float(1 - (alpha / 2) ** (1 / units))


def hits(d: Floats) -> Floats:
    """1 where A is better, a half where both are equal, NaN where d is.

    Its mean is P(A better) of Bouthillier et al., MLSys 2021.
    """
    return np.asarray(np.where(np.isnan(d), np.nan, (d < 0) + 0.5 * (d == 0)))


# --- tests -------------------------------------------------------------------------------------


def signed_rank(d_T: Floats) -> float:
    """Two-sided p of Wilcoxon's signed-rank test over tasks, exact also with ties and zeros.

    Zeros are ranked and their ranks dropped (Pratt 1959): a task on which both are equal speaks
    against a difference, and dropping it first would pretend that it was never run. Given the
    absolute values, every sign is a fair coin; the distribution of the positive ranks' sum over
    all 2^n signs is built rank by rank. Tables of "exact" p assume no ties and no zeros.
    """
    d_T = np.where(np.isfinite(d_T), np.round(d_T, DECIMALS), d_T)
    doubled_T = np.rint(2 * stats.rankdata(np.abs(d_T))).astype(int)  # mid-ranks are halves
    doubled_n, positive_n = doubled_T[d_T != 0], d_T[d_T != 0] > 0
    share_K = np.ones(1)  # share_K[k]: probability that the positive ranks sum to k / 2
    for rank in doubled_n:
        padded_K = np.pad(share_K, (0, int(rank)))
        share_K = (padded_K + np.roll(padded_K, rank)) / 2
    middle = doubled_n.sum() / 2
    distance = abs(doubled_n[positive_n].sum() - middle)
    return min(1.0, float(share_K[np.abs(np.arange(len(share_K)) - middle) >= distance].sum()))


def holm(p_N: Sequence[float]) -> list[float]:
    """p adjusted for N tests together (Holm 1979)."""
    order = sorted(range(len(p_N)), key=lambda i: p_N[i])
    adjusted, running = [0.0] * len(p_N), 0.0
    for position, i in enumerate(order):
        running = max(running, min(1.0, (len(p_N) - position) * p_N[i]))
        adjusted[i] = running
    return adjusted


# --- planning ----------------------------------------------------------------------------------


MOST_UNITS = 10_000


@dataclass(frozen=True)
class Needed:
    """What would settle a pair: seeds on the present tasks, or units with the present seeds.

    ``seeds`` is None where no number of seeds is enough on these tasks, ``units`` where even
    10 000 are not. ``equivalent``: whether equivalence is nearer than a direction.
    """

    seeds: int | None
    units: int | None
    equivalent: bool


def needed(r_TS: Floats, families: Sequence[str], rope: float, level: float) -> Needed:
    """Seeds a task, or units, with which the interval of the mean would settle the pair.

    ``r_TS`` and ``rope`` are relative differences. The mean over U units has the variance
    (tau^2 + sigma^2 / S) / U: sigma^2 / S is what seeds add to a unit (pooled over tasks), tau^2
    what remains between units. The interval has to leave out either 0 or all that lies outside
    +-rope, whichever is the shorter way: a gap g = max(|mean|, rope - |mean|). With the quantiles
    t of U - 1 degrees of freedom, for ``level`` and for a power of 80 %, that takes
    (tau^2 + sigma^2 / S) / U <= (g / (t_level + t_power))^2.
    """
    count_T = np.isfinite(r_TS).sum(axis=1)
    mean_T = task_means(r_TS)
    squares = float(np.nansum((r_TS - mean_T[:, None]) ** 2))
    sigma2 = squares / max(1, int((count_T - 1).sum()))
    unit_U = unit_means(mean_T, families)
    noise_U = _share_of_variance(1 / count_T, families)
    now = float(noise_U.mean())  # times sigma^2: the variance that seeds add to a unit
    tau2 = max(0.0, float(unit_U.var(ddof=1)) - sigma2 * now)
    mean = abs(float(unit_U.mean()))
    gap = max(mean, rope - mean)
    room = len(unit_U) * (gap / _quantiles(len(unit_U), level)) ** 2 - tau2
    seeds = math.ceil(sigma2 * now * float(1 / (1 / count_T).mean()) / room) if room > 0 else None
    return Needed(seeds, _units(tau2 + sigma2 * now, gap, level), rope - mean > mean)


def _share_of_variance(variance_T: Floats, families: Sequence[str]) -> Floats:
    """Variance of each unit's mean, from the variances of the tasks' means."""
    if len(set(families)) < 2:
        return variance_T
    return np.array([own.sum() / len(own) ** 2 for own in _by_family(variance_T, families)])


def _quantiles(units: int, level: float) -> float:
    return float(stats.t.ppf([0.5 + level / 2, POWER], units - 1).sum())


def _units(variance: float, gap: float, level: float) -> int | None:
    """The least number of units whose mean has the variance that ``needed`` asks for."""
    low, high = 1, MOST_UNITS  # low is too few
    if variance * (_quantiles(high, level) / gap) ** 2 > high:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = variance * (_quantiles(middle, level) / gap) ** 2 <= middle
        low, high = (low, middle) if enough else (middle, high)
    return high
