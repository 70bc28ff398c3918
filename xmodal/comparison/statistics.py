"""Arithmetic of a comparison of two methods: pure functions on arrays.

Differences are paired log-ratios d = log(e_A / e_B) of errors: negative where A is better, and
unchanged when all errors of a task are multiplied by one number. Shapes: T tasks, S seeds, R draws.
A value that was not measured is NaN. All draws come from a seed, so a number never changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

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


def task_means(d_TS: Floats) -> Floats:
    """Mean over the seeds of every task [T], rounded; every task needs a seed.

    NaN where one run of A and one of B failed: nothing can be said.
    """
    with np.errstate(invalid="ignore"):  # inf - inf: see above
        return np.asarray(np.round(np.nanmean(d_TS, axis=1), DECIMALS))


def win_tie_loss(d_T: Floats) -> tuple[int, int, int]:
    """Tasks on which A is better, equal and worse."""
    return int((d_T < 0).sum()), int((d_T == 0).sum()), int((d_T > 0).sum())


# --- intervals ---------------------------------------------------------------------------------


def expanded_level(level: float, n: int) -> float:
    """Tail probability, on each side, of the expanded percentile interval for n values.

    A percentile interval is too short for few values: it lacks the factor sqrt(n / (n - 1)) and
    uses the normal instead of Student's t. Taking quantiles further out repairs both
    (Hesterberg, What teachers should know about the bootstrap, The American Statistician 2015).
    """
    t = stats.t.ppf(0.5 + level / 2, n - 1)
    return float(stats.norm.cdf(-t * math.sqrt(n / (n - 1))))


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
    draws_Rn = values_n[np.random.default_rng(seed).integers(n, size=(draws, n))]
    return _interval(float(values_n.mean()), draws_Rn.mean(axis=1), level, n)


def hierarchical_intervals(
    d_TS: Floats, level: float, draws: int, seed: int
) -> tuple[Interval, Interval]:
    """Over tasks: the mean log-ratio, and the probability that a run of A beats its pair.

    Both average over the seeds of a task first, then over tasks. Each draw takes T tasks with
    replacement, and within each of them its seeds with replacement. The probability is
    P(A better) of Bouthillier et al., MLSys 2021, averaged over tasks; ties count half.
    """
    tasks, seeds = d_TS.shape
    count_T = np.isfinite(d_TS).sum(axis=1)
    # The seeds that exist come first, in their order: swapping A and B then negates every draw.
    order_TS = np.argsort(~np.isfinite(d_TS), axis=1, kind="stable")
    packed_TS = np.nan_to_num(np.take_along_axis(d_TS, order_TS, axis=1))
    generator = np.random.default_rng(seed)
    task_RT = generator.integers(tasks, size=(draws, tasks))
    count_RT = count_T[task_RT]
    seed_RTS = np.floor(generator.random((draws, tasks, seeds)) * count_RT[..., None]).astype(int)
    used_RTS = np.arange(seeds) < count_RT[..., None]
    drawn_RTS = packed_TS[task_RT[..., None], seed_RTS]
    means_R = ((drawn_RTS * used_RTS).sum(axis=2) / count_RT).mean(axis=1)
    hits_R = ((_hits(drawn_RTS) * used_RTS).sum(axis=2) / count_RT).mean(axis=1)
    mean = float(task_means(d_TS).mean())
    hit = float(np.nanmean(np.where(np.isfinite(d_TS), _hits(d_TS), np.nan), axis=1).mean())
    return _interval(mean, means_R, level, tasks), _interval(hit, hits_R, level, tasks)


def _hits(d: Floats) -> Floats:
    """1 where A is better, a half where both are equal."""
    return np.asarray((d < 0) + 0.5 * (d == 0))


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


@dataclass(frozen=True)
class Posterior:
    """Probabilities that A is practically better, that both are equivalent, that A is worse."""

    better: float
    equivalent: float
    worse: float


def signed_rank_posterior(
    d_T: Floats, rope: float, draws: int, seed: int, strength: float = 0.5
) -> Posterior:
    """Bayesian signed-rank test with a region of practical equivalence |d| <= rope.

    Benavoli, Corani, Demsar and Zaffalon, JMLR 18 (2017), section 4.2: the tasks are draws of an
    unknown distribution with a Dirichlet-process prior, whose one pseudo-task, of weight
    ``strength``, lies in the region. A posterior draw is a Dirichlet weight w a task; it gives
    theta(region) = sum_ij w_i w_j 1[(d_i + d_j) / 2 in region]. Returned is how often each of the
    three theta is the largest.
    """
    z_n = np.concatenate([[0.0], d_T])
    sums_nn = np.round(z_n[:, None] + z_n[None, :], DECIMALS)
    regions = (sums_nn < -2 * rope, np.abs(sums_nn) <= 2 * rope, sums_nn > 2 * rope)
    alpha_n = np.concatenate([[strength], np.ones(len(d_T))])
    w_Rn = np.random.default_rng(seed).dirichlet(alpha_n, size=draws)
    theta_R3 = np.stack([((w_Rn @ inside_nn) * w_Rn).sum(axis=1) for inside_nn in regions], axis=1)
    share_3 = np.bincount(theta_R3.argmax(axis=1), minlength=3) / draws
    return Posterior(*(float(share) for share in share_3))


# --- planning ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needed:
    """What would settle a pair: seeds on the present tasks, or tasks with the present seeds.

    ``seeds`` is None where no number of seeds is enough on these tasks.
    """

    seeds: int | None
    tasks: int


def needed(d_TS: Floats, rope: float, level: float) -> Needed:
    """Seeds a task, or tasks, with which the interval of the mean would settle the pair.

    The mean over T tasks with S seeds has the variance (tau^2 + sigma^2 / S) / T: sigma^2 over the
    seeds of a task (pooled), tau^2 between tasks. The interval has to leave out either 0 or all
    that lies outside +-rope, whichever is the shorter way: a gap g = max(|mean|, rope - |mean|).
    With z = z(level, two-sided) + z(power 80 %) that takes (tau^2 + sigma^2 / S) / T <= (g / z)^2.
    """
    count_T = np.isfinite(d_TS).sum(axis=1)
    mean_T = task_means(d_TS)
    squares = float(np.nansum((d_TS - mean_T[:, None]) ** 2))
    sigma2 = squares / max(1, int((count_T - 1).sum()))
    tau2 = max(0.0, float(mean_T.var(ddof=1)) - sigma2 * float((1 / count_T).mean()))
    gap = max(abs(float(mean_T.mean())), rope - abs(float(mean_T.mean())))
    z = float(stats.norm.ppf(0.5 + level / 2) + stats.norm.ppf(POWER))
    room = len(mean_T) * (gap / z) ** 2 - tau2
    now = float((1 / count_T).mean())
    tasks = math.ceil((tau2 + sigma2 * now) * (z / gap) ** 2)
    seeds = math.ceil(sigma2 / room) if room > 0 else None
    return Needed(seeds=seeds, tasks=max(tasks, 1))
