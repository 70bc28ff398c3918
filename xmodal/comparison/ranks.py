"""Arithmetic of a comparison of all methods at once: ranks, cliques, performance profiles.

Pure functions on ``level_MT``, the log of the geometric mean error of method M on task T over the
seeds that all methods share; +inf where a run failed. Only tasks that all methods have take part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from scipy import stats

from xmodal.comparison.error_table import ErrorTable, Floats
from xmodal.comparison.statistics import DECIMALS, holm, signed_rank


def levels(scores: ErrorTable) -> tuple[tuple[str, ...], Floats]:
    """The tasks on which all methods share a seed, and ``level_MT`` on them.

    The best method of a task has the level 0, which removes the unit and the scale of the errors.
    """
    shared_TS = np.asarray(~np.isnan(scores.errors_MTS).any(axis=0))
    kept_T = np.asarray(shared_TS.any(axis=1))
    log_MTS = np.where(shared_TS, np.log(scores.errors_MTS), np.nan)[:, kept_T]
    if not kept_T.any():
        return (), np.zeros((len(scores.methods), 0))
    level_MT = np.nanmean(log_MTS, axis=2)
    best_T = level_MT.min(axis=0)
    solved_T = np.isfinite(best_T)  # elsewhere every method failed: all stay at +inf
    level_MT = level_MT - np.where(solved_T, best_T, 0.0)
    rounded_MT = np.where(np.isfinite(level_MT), np.round(level_MT, DECIMALS), level_MT)
    tasks = tuple(task for task, kept in zip(scores.tasks, kept_T, strict=True) if kept)
    return tasks, np.asarray(rounded_MT)


def average_ranks(level_MT: Floats) -> Floats:
    """Rank over tasks [M]: 1 is the best, equal errors share the mean of their ranks."""
    return np.asarray(stats.rankdata(level_MT, axis=0).mean(axis=1))


def friedman(level_MT: Floats) -> float | None:
    """p that all methods are alike (Friedman, chi-squared, ties corrected); None for two methods.

    It is 1 where all methods are equal on every task.
    """
    rank_MT = stats.rankdata(level_MT, axis=0)
    if len(rank_MT) < 3 or rank_MT.shape[1] < 2:
        return None
    if (rank_MT == rank_MT[0]).all():
        return 1.0
    return float(stats.friedmanchisquare(*rank_MT).pvalue)


def critical_difference(methods: int, tasks: int, alpha: float) -> float:
    """Nemenyi's: average ranks that are further apart differ (Demsar, JMLR 2006, section 3.2.2)."""
    q = stats.studentized_range.ppf(1 - alpha, methods, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * tasks)))


def pairwise_holm(level_MT: Floats) -> Floats:
    """p [M, M] of the signed-rank test of all pairs, adjusted together; 1 on the diagonal.

    A task on which both failed counts as equal, one on which one failed as the largest difference.
    """
    methods = len(level_MT)
    pairs = list(combinations(range(methods), 2))
    adjusted_MM = np.ones((methods, methods))
    p_N = [signed_rank(_difference(level_MT[a], level_MT[b])) for a, b in pairs]
    for (a, b), p in zip(pairs, holm(p_N), strict=True):
        adjusted_MM[a, b] = adjusted_MM[b, a] = p
    return adjusted_MM


def _difference(a_T: Floats, b_T: Floats) -> Floats:
    both_T = np.isposinf(a_T) & np.isposinf(b_T)
    return np.where(both_T, 0.0, np.where(both_T, 0.0, a_T) - np.where(both_T, 0.0, b_T))


def cliques(p_MM: Floats, alpha: float) -> list[frozenset[int]]:
    """Largest groups of two or more methods in which no pair differs, the bars of the diagram.

    Maximal cliques of the graph that joins pairs with p >= alpha (Bron and Kerbosch 1973). A
    method between two members by rank need not be a member itself.
    """
    methods = range(len(p_MM))
    alike = {m: {o for o in methods if o != m and p_MM[m, o] >= alpha} for m in methods}
    found: list[frozenset[int]] = []

    def grow(group: set[int], candidates: set[int], seen: set[int]) -> None:
        if not candidates and not seen and len(group) > 1:
            found.append(frozenset(group))
        for m in sorted(candidates):
            grow(group | {m}, candidates & alike[m], seen & alike[m])
            candidates, seen = candidates - {m}, seen | {m}

    grow(set(), set(methods), set())
    return found


# --- performance profiles ----------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Performance profile of one method (Dolan and More, Mathematical Programming 2002).

    ``shares[i]`` is rho(taus[i]): the share of tasks on which its error is within the factor tau
    of the best. The curve is a step function that rises at ``taus``. ``at_one`` is rho(1), the
    share of tasks it is best on, ``area`` the area under rho over log2 tau from tau = 1 to
    ``tau_max``, as a share of the whole: 1 for the best on every task.
    """

    method: str
    taus: tuple[float, ...]
    shares: tuple[float, ...]
    at_one: float
    area: float
    tau_max: float


def profiles(
    methods: tuple[str, ...], level_MT: Floats, tau_max: float | None = None
) -> tuple[Profile, ...]:
    """One profile a method, on common taus up to ``tau_max`` (default: the largest finite ratio).

    A failed run is an infinite ratio: it never counts. The best method depends on which methods
    take part, so with more than two of them the order behind the first may change when one is left
    out (Gould and Scott, ACM TOMS 2016); profiles of pairs cannot change in this way.
    """
    best_T = level_MT.min(axis=0)
    solved_T = np.isfinite(best_T)
    ratio_MT = np.exp(np.where(solved_T, level_MT - np.where(solved_T, best_T, 0.0), np.inf))
    finite = ratio_MT[np.isfinite(ratio_MT)]
    end = float(finite.max(initial=1.0)) if tau_max is None else tau_max
    taus = np.unique(np.concatenate([[1.0], finite[finite <= end], [end]]))
    return tuple(
        Profile(
            method=method,
            taus=tuple(float(tau) for tau in taus),
            shares=tuple(float((ratio_T <= tau).mean()) for tau in taus),
            at_one=float((ratio_T <= 1).mean()),
            area=float(_area(ratio_T, end).mean()),
            tau_max=end,
        )
        for method, ratio_T in zip(methods, ratio_MT, strict=True)
    )


def _area(ratio_T: Floats, end: float) -> Floats:
    """What each task adds to the area: the part of log2 tau to the right of its ratio."""
    if end <= 1:
        return np.asarray((ratio_T <= 1).astype(float))
    return np.asarray(np.clip(1 - np.log(ratio_T) / math.log(end), 0, 1))


# --- together ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overview:
    """All methods on the tasks that all of them have; for diagrams, not for verdicts.

    ``close``: per task the methods that differ from another one by no more than ``rope``, and by
    something. Ranks and profiles order them all the same.
    """

    tasks: tuple[str, ...]
    ranks: dict[str, float]
    friedman_p: float | None
    critical_difference: float
    cliques: tuple[tuple[str, ...], ...]
    profiles: tuple[Profile, ...]
    pair_profiles: tuple[tuple[Profile, ...], ...]
    rope: float = 0.01
    close: dict[str, tuple[str, ...]] = field(default_factory=dict)


def close_methods(level_T: Floats, rope: float) -> list[int]:
    """The methods on one task that another one differs from by at most ``rope``, but differs."""
    with np.errstate(invalid="ignore"):  # two that failed
        apart_MM = np.abs(level_T[:, None] - level_T[None, :])
    near_MM = (apart_MM > 0) & (apart_MM <= math.log1p(rope))
    return [int(m) for m in np.flatnonzero(near_MM.any(axis=1))]


def overview(scores: ErrorTable, alpha: float = 0.05, rope: float = 0.01) -> Overview | None:
    """Ranks, cliques and profiles; None if there is one method, or no task that all have."""
    methods = scores.methods
    if len(methods) < 2:
        return None
    tasks, level_MT = levels(scores)
    if not tasks:
        return None
    ranks_M = average_ranks(level_MT)
    by_rank = [int(m) for m in np.argsort(ranks_M, kind="stable")]
    groups = cliques(pairwise_holm(level_MT), alpha)
    named = sorted(tuple(m for m in by_rank if m in group) for group in groups)
    near = {
        task: tuple(methods[m] for m in close_methods(level_T, rope))
        for task, level_T in zip(tasks, level_MT.T, strict=True)
    }
    return Overview(
        tasks=tasks,
        rope=rope,
        close={task: found for task, found in near.items() if found},
        ranks={methods[m]: float(ranks_M[m]) for m in by_rank},
        friedman_p=friedman(level_MT),
        critical_difference=critical_difference(len(methods), len(tasks), alpha),
        cliques=tuple(tuple(methods[m] for m in group) for group in named),
        profiles=profiles(methods, level_MT),
        pair_profiles=tuple(
            profiles((methods[a], methods[b]), level_MT[[a, b]])
            for a, b in combinations(range(len(methods)), 2)
        ),
    )
