"""Verdicts on pairs of methods: one word, the numbers it rests on, and why it may be refused.

``weigh`` goes from an error table to everything that a report needs, ``judge`` to the results of
pairs. Each task gets an interval. Over tasks, three criteria must all hold before a method is
called better, and two before a pair is called equivalent; otherwise the verdict is "inconclusive"
and says what it would take. ``docs/verdicts.md`` explains every number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from xmodal.comparison import fairness, statistics
from xmodal.comparison.error_table import ErrorTable, Floats
from xmodal.comparison.fairness import Conditions, Flag, within_spread
from xmodal.comparison.ranks import Overview, overview
from xmodal.comparison.statistics import CellSummary, Interval, Needed, Posterior
from xmodal.errors import UsageError
from xmodal.text import percent, percents, plural

Word = Literal["better", "worse", "equivalent", "inconclusive", "refused"]
FEWEST_SEEDS, FEWEST_TASKS = 3, 6


@dataclass(frozen=True)
class Rule:
    """The thresholds of a verdict. None of them allows a verdict on 2 seeds or on 5 tasks."""

    alpha: float = 0.05
    """Error rate: of the tests of all pairs together, and 1 - confidence of every interval."""
    probability: float = 0.75
    """How often a run of the better method has to beat its pair, at least."""
    rope: float = 0.01
    """Relative difference of two errors below which they are practically equal."""
    credible: float = 0.95
    """Posterior probability that equivalence takes."""
    min_seeds: int = FEWEST_SEEDS
    min_tasks: int = FEWEST_TASKS
    draws: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_seeds < FEWEST_SEEDS or self.min_tasks < FEWEST_TASKS:
            raise UsageError(
                f"a verdict takes {FEWEST_SEEDS} seeds and {FEWEST_TASKS} tasks at least: with 5 "
                "tasks that all agree, the signed-rank test gives p = 0.0625"
            )
        for name in ("alpha", "rope"):
            if not 0 < getattr(self, name) <= 0.1:
                raise UsageError(f"{name} lies above 0 and up to 0.1, not at {getattr(self, name)}")
        if not (0.5 < self.probability < 1 and 0.5 < self.credible < 1 and self.draws >= 1000):
            raise UsageError("probability and credible lie between 0.5 and 1, draws from 1000 on")

    @property
    def level(self) -> float:
        """Confidence of the intervals."""
        return 1 - self.alpha

    @property
    def log_rope(self) -> float:
        """The region of practical equivalence of the log-ratio, to either side."""
        return math.log1p(self.rope)


@dataclass(frozen=True)
class TaskResult:
    """A against B on one task: mean log-ratio over the n seeds both have, negative: A is better.

    ``interval`` is None for one seed; ``level`` is the confidence it can have at most with so few
    seeds. ``within_spread``: the difference is smaller than the larger of the two standard
    deviations of log(error) over seeds; None for one seed. With failed runs (of A, of
    B) there is no mean, and more failures count as worse. ``sign``: -1 if A is better, 0, or 1.
    """

    task: str
    n: int
    mean: float | None
    sign: int
    interval: Interval | None
    level: float
    within_spread: bool | None
    failed: tuple[int, int]


@dataclass(frozen=True)
class Criterion:
    """One condition of a verdict, in words with its numbers, and whether it holds."""

    name: str
    holds: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    """``word`` says what A is, seen from B. As text: ``refused: 4 tasks, 6 are needed``."""

    word: Word
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.word}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Numbers:
    """What a verdict rests on. ``effect`` is the mean log-ratio, ``probability`` P(A better).

    ``p`` is exact and of this pair alone, ``p_holm`` corrected for ``family`` pairs.
    """

    effect: Interval
    probability: Interval
    p: float
    p_holm: float
    family: int
    posterior: Posterior
    needed: Needed


@dataclass(frozen=True)
class PairResult:
    """Everything about A against B. ``counted`` are the tasks that the verdict rests on.

    Wins, ties and losses count every task of ``tasks``; ``numbers`` is None if it is refused.
    """

    a: str
    b: str
    tasks: tuple[TaskResult, ...]
    counted: tuple[str, ...]
    wins: int
    ties: int
    losses: int
    verdict: Verdict
    numbers: Numbers | None = None
    criteria: tuple[Criterion, ...] = ()

    @property
    def remedies(self) -> tuple[str, ...]:
        """The reasons beside the criteria: why refused, what would settle it, what it omits."""
        stated = {criterion.text for criterion in self.criteria}
        return tuple(reason for reason in self.verdict.reasons if reason not in stated)

    @property
    def doubt(self) -> Flag | None:
        """The flag for tasks on which the difference is within the spread over seeds."""
        return within_spread(self.a, self.b, [t.task for t in self.tasks if t.within_spread])


@dataclass(frozen=True)
class Comparison:
    """All that a report says about a table of scores: ``cells[method][task]``, pairs, overview.

    ``overview`` is of the contenders, without controls and the trivial answer; None where there are
    fewer than two of them, or no task that all of them have.
    """

    cells: dict[str, dict[str, CellSummary]]
    pairs: tuple[PairResult, ...]
    overview: Overview | None
    flags: tuple[Flag, ...]


# --- all pairs ---------------------------------------------------------------------------------


def weigh(
    scores: ErrorTable,
    conditions: Iterable[Conditions] = (),
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    trivial: str | None = None,
    controls: Collection[str] = (),
    rule: Rule | None = None,
) -> Comparison:
    """Everything about these scores; see ``judge`` and ``fairness.flags`` for the arguments."""
    rule = rule or Rule()
    found = fairness.flags(scores, conditions, trivial=trivial, controls=controls)
    results = judge(scores, pairs, rule, fairness.refusal(found))
    doubts = [doubt for result in results if (doubt := result.doubt) is not None]
    cells = {
        method: {
            task: statistics.summary(errors_S)
            for task, errors_S in zip(scores.tasks, scores.of_method(method), strict=True)
        }
        for method in scores.methods
    }
    # Controls and the trivial answer do not compete: they would change every rank and profile.
    apart = {*controls, trivial}
    contenders = scores.only([method for method in scores.methods if method not in apart])
    return Comparison(cells, results, overview(contenders, rule.alpha), (*found, *doubts))


def judge(
    scores: ErrorTable,
    pairs: Sequence[tuple[str, str]] | None = None,
    rule: Rule | None = None,
    refused: str | None = None,
) -> tuple[PairResult, ...]:
    """Results of the pairs (default: all), Holm-corrected for those that are not refused.

    Asking fewer questions makes each answer sharper: name the ``pairs`` before seeing the numbers.
    ``refused`` is a reason to refuse all of them, such as different protocols in one table.
    """
    rule = rule or Rule()
    asked = list(combinations(scores.methods, 2)) if pairs is None else list(pairs)
    _check(scores, asked)
    results: list[PairResult] = []
    tested: list[tuple[int, Floats]] = []
    for a, b in asked:
        result, d_TS = _pair(scores, a, b, rule, refused)
        if d_TS is not None:
            tested.append((len(results), d_TS))
        results.append(result)
    p_N = [statistics.signed_rank(statistics.task_means(d_TS)) for _, d_TS in tested]
    adjusted_N = statistics.holm(p_N)
    for (at, d_TS), p, p_holm in zip(tested, p_N, adjusted_N, strict=True):
        numbers = _numbers(d_TS, p, p_holm, len(p_N), rule)
        results[at] = _decide(results[at], numbers, rule)
    return tuple(results)


def _check(scores: ErrorTable, asked: Sequence[tuple[str, str]]) -> None:
    known = ", ".join(scores.methods)
    for pair in asked:
        for method in pair:
            if method not in scores.methods:
                raise UsageError(f"no scores of method {method!r}; there are: {known}")
    if len({frozenset(pair) for pair in asked}) < len(asked) or any(a == b for a, b in asked):
        raise UsageError("a pair is two different methods, and no pair is asked for twice")


# --- one pair, before the tests ----------------------------------------------------------------


def _pair(
    scores: ErrorTable, a: str, b: str, rule: Rule, refused: str | None
) -> tuple[PairResult, Floats | None]:
    """A refused result, or one without a verdict yet and the log-ratios that will decide it."""
    a_TS, b_TS = scores.of_method(a), scores.of_method(b)
    d_TS = statistics.log_ratios(a_TS, b_TS)
    shared_T = ~(np.isnan(a_TS) | np.isnan(b_TS)).all(axis=1)
    tasks = tuple(
        _task(scores.tasks[t], a_TS[t], b_TS[t], d_TS[t], rule) for t in np.flatnonzero(shared_T)
    )
    counted_T = np.isfinite(d_TS).sum(axis=1) >= rule.min_seeds
    counted = tuple(scores.tasks[t] for t in np.flatnonzero(counted_T))
    wins, ties, losses = statistics.win_tie_loss(np.array([task.sign for task in tasks]))
    why = refused or _too_little(tasks, len(counted), rule)
    verdict = Verdict("refused", (why,)) if why else Verdict("inconclusive", ())
    result = PairResult(a, b, tasks, counted, wins, ties, losses, verdict)
    return result, None if why else d_TS[counted_T]


def _task(task: str, a_S: Floats, b_S: Floats, d_S: Floats, rule: Rule) -> TaskResult:
    """One task; the seeds that both have."""
    shared_S = ~(np.isnan(a_S) | np.isnan(b_S))
    n = int(shared_S.sum())
    failed = int(np.isposinf(a_S[shared_S]).sum()), int(np.isposinf(b_S[shared_S]).sum())
    if any(failed):
        sign = (failed[0] > failed[1]) - (failed[0] < failed[1])
        return TaskResult(task, n, None, sign, None, 0.0, None, failed)
    interval = statistics.seed_interval(d_S, rule.level, rule.draws, rule.seed)
    mean = float(statistics.task_means(d_S[None])[0])
    within = None
    if n > 1:
        spread = max(float(np.log(e_S[shared_S]).std(ddof=1)) for e_S in (a_S, b_S))
        within = abs(mean) < spread
    level = statistics.reachable_level(rule.level, n)
    sign = (mean > 0) - (mean < 0)
    return TaskResult(task, n, mean, sign, interval, level, within, failed)


def _too_little(tasks: tuple[TaskResult, ...], counted: int, rule: Rule) -> str | None:
    """Why these tasks are not enough for a verdict, or None."""
    broken = [task.task for task in tasks if any(task.failed)]
    if broken:
        return f"runs failed on {', '.join(broken)}; repeat them, or leave the task out for all"
    if not tasks:
        return "the two share no seed on any task"
    most = max(task.n for task in tasks)
    if most < rule.min_seeds:
        return f"{plural(most, 'seed')}, {rule.min_seeds} are needed"
    if counted < rule.min_tasks:
        few = f" with {rule.min_seeds} seeds" if counted < len(tasks) else ""
        return f"{plural(counted, 'task')}{few}, {rule.min_tasks} are needed"
    return None


# --- one pair, decided -------------------------------------------------------------------------


def _numbers(d_TS: Floats, p: float, p_holm: float, family: int, rule: Rule) -> Numbers:
    effect, probability = statistics.hierarchical_intervals(d_TS, rule.level, rule.draws, rule.seed)
    mean_T = statistics.task_means(d_TS)
    posterior = statistics.signed_rank_posterior(mean_T, rule.log_rope, rule.draws, rule.seed)
    # Holm's first step asks this much of the clearest of all pairs.
    planned = statistics.needed(d_TS, rule.log_rope, 1 - rule.alpha / family)
    return Numbers(effect, probability, p, p_holm, family, posterior, planned)


def _decide(result: PairResult, numbers: Numbers, rule: Rule) -> PairResult:
    """Ask for equivalence first: a difference can be certain and still too small to matter."""
    same = same_criteria(numbers, rule)
    better = better_criteria(numbers, rule)
    effect = numbers.effect.value
    if all(criterion.holds for criterion in same):
        reasons = tuple(criterion.text for criterion in same)
        word: Word = "equivalent"
    elif all(criterion.holds for criterion in better):
        reasons = tuple(criterion.text for criterion in better)
        word = "better" if effect < 0 else "worse"
    else:
        missing = tuple(criterion.text for criterion in better if not criterion.holds)
        seeds = max(task.n for task in result.tasks if task.task in result.counted)
        reasons = (*missing, way_out(len(result.counted), seeds, numbers, rule))
        word = "inconclusive"
    left_out = [task.task for task in result.tasks if task.task not in result.counted]
    if left_out:
        reasons += (f"left out, fewer than {rule.min_seeds} seeds: {', '.join(left_out)}",)
    verdict = Verdict(word, reasons)
    return replace(result, verdict=verdict, numbers=numbers, criteria=(*better, *same))


# --- the criteria, in words -------------------------------------------------------------------


def better_criteria(numbers: Numbers, rule: Rule) -> tuple[Criterion, ...]:
    """What makes a method better, or worse: for the side to which the mean effect points."""
    effect, hit = numbers.effect, numbers.probability
    if effect.value > 0:
        hit = Interval(1 - hit.value, 1 - hit.high, 1 - hit.low)
    apart = effect.high < 0 or effect.low > 0
    often = hit.value >= rule.probability and hit.low > 0.5
    interval = f"{100 * rule.level:.0f} % interval {percents(effect.low, effect.high)}"
    return (
        Criterion(
            "effect",
            apart,
            f"error {percent(effect.value)} on average over tasks, {interval}"
            f"{'' if apart else ', which holds 0'}",
        ),
        Criterion(
            "probability",
            often,
            f"a run has the smaller error than its pair with probability {hit.value:.2f} "
            f"({hit.low:.2f} to {hit.high:.2f})"
            f"{'' if often else f', needed {rule.probability:g} and above 0.5 throughout'}",
        ),
        Criterion(
            "signed-rank",
            numbers.p_holm < rule.alpha,
            f"signed-rank test p = {numbers.p:.2g}, {numbers.p_holm:.2g} after correction for "
            f"{plural(numbers.family, 'pair')}",
        ),
    )


def same_criteria(numbers: Numbers, rule: Rule) -> tuple[Criterion, ...]:
    """What makes two methods equivalent."""
    effect, posterior = numbers.effect, numbers.posterior
    inside = -rule.log_rope <= effect.low and effect.high <= rule.log_rope
    return (
        Criterion(
            "equivalence",
            posterior.equivalent >= rule.credible,
            f"the difference is below {100 * rule.rope:g} % with probability "
            f"{posterior.equivalent:.2f}",
        ),
        Criterion(
            "small effect",
            inside,
            f"the {100 * rule.level:.0f} % interval of the mean, "
            f"{percents(effect.low, effect.high)}, lies {'' if inside else 'not '}within "
            f"{100 * rule.rope:g} %",
        ),
    )


def way_out(tasks: int, seeds: int, numbers: Numbers, rule: Rule) -> str:
    """What it would take to settle a pair that was run with ``seeds`` on each of ``tasks``."""
    least = math.ceil(1 + math.log2(numbers.family / rule.alpha) + 1e-9)
    if tasks < least:
        return (
            f"no result could be significant for {plural(numbers.family, 'pair')} on {tasks} "
            f"tasks: it takes {least} tasks, or fewer pairs"
        )
    planned = numbers.needed
    more = max(planned.tasks, tasks + 1)
    if planned.seeds is None:
        return f"more seeds alone would not settle it; about {more} tasks might"
    if planned.seeds > seeds:
        return f"about {planned.seeds} seeds a task would settle it, if the effect is as large"
    return "its size is known well enough; more seeds or more tasks may bring what is missing"
