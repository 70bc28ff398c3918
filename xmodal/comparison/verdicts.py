"""Verdicts on pairs of methods: one word, the numbers it rests on, and why it may be refused.

``weigh`` goes from an error table to everything that a report needs, ``judge`` to the results of
pairs. Each task gets an interval. Over tasks, four criteria must all hold before a method is
called better, and two before a pair is called equivalent; otherwise the verdict is "inconclusive"
and says what it would take. The units are families of tasks, or the tasks of a single family.
Below six families the word is about these tasks only. ``docs/verdicts.md`` explains every number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from xmodal.comparison import fairness, statistics
from xmodal.comparison.criteria import (
    Criterion,
    Numbers,
    Rule,
    better_criteria,
    counted,
    same_criteria,
    several,
)
from xmodal.comparison.error_table import ErrorTable, Floats
from xmodal.comparison.fairness import Conditions, Flag, within_spread
from xmodal.comparison.ranks import Overview, overview
from xmodal.comparison.statistics import CellSummary, Interval
from xmodal.errors import UsageError
from xmodal.text import plural

Word = Literal[
    "better",
    "worse",
    "equivalent",
    "better on these tasks",
    "worse on these tasks",
    "equivalent on these tasks",
    "inconclusive",
    "refused",
]
HERE = " on these tasks"


@dataclass(frozen=True)
class TaskResult:
    """A against B on one task, over the n seeds both have; negative: A is better.

    ``mean`` and ``interval`` are of the relative differences, stated as log-ratios. ``interval``
    is None for one seed; ``level`` is the confidence it can have at most with so few seeds.
    ``within_spread``: the difference is smaller than the larger of the two standard deviations of
    log(error) over seeds; None for one seed. With failed runs (of A, of B) there is no mean, and
    more failures count as worse. ``sign``: -1 if A is better, 1 if it is worse, 0 if the difference
    is inside the rope.
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
class Verdict:
    """``word`` says what A is, seen from B. As text: ``refused: 4 tasks, 6 are needed``.

    "better" is a statement about other families of tasks, too, "better on these tasks" is not.
    """

    word: Word
    reasons: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The word without its limits: better, worse, equivalent, inconclusive or refused."""
        return self.word.removesuffix(HERE)

    def __str__(self) -> str:
        return f"{self.word}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class PairResult:
    """Everything about A against B. ``counted`` are the tasks that the verdict rests on.

    ``families`` are those of the counted tasks, one entry a task; "" where nothing was stated.
    Wins, ties and losses count every task of ``tasks``, a difference inside the rope as a tie;
    ``numbers`` is None if it is refused.
    """

    a: str
    b: str
    tasks: tuple[TaskResult, ...]
    counted: tuple[str, ...]
    families: tuple[str, ...]
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

    ``overview`` is of contenders and rivals, without controls and trivial answers; None where
    there are fewer than two of them, or no task that all of them have.
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
    trivial: Collection[str] = (),
    strongest: Mapping[str, str] | None = None,
    controls: Collection[str] = (),
    rivals: Collection[str] = (),
    rule: Rule | None = None,
) -> Comparison:
    """Everything about these scores; see ``judge`` and ``fairness.flags`` for the arguments."""
    rule = rule or Rule()
    found = fairness.flags(
        scores,
        conditions,
        trivial=trivial,
        strongest=strongest,
        controls=controls,
        rivals=rivals,
        log_rope=rule.log_rope,
    )
    results = judge(scores, pairs, rule, fairness.refusal(found))
    doubts = [doubt for result in results if (doubt := result.doubt) is not None]
    cells = {
        method: {
            task: statistics.summary(errors_S)
            for task, errors_S in zip(scores.tasks, scores.of_method(method), strict=True)
        }
        for method in scores.methods
    }
    # Controls and trivial answers do not compete: they would change every rank and profile.
    apart = {*controls, *trivial}
    contenders = scores.only([method for method in scores.methods if method not in apart])
    return Comparison(
        cells, results, overview(contenders, rule.alpha, rule.rope), (*found, *doubts)
    )


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
    found = [_numbers(d_TS, results[at].families, len(tested), rule) for at, d_TS in tested]
    p_N = statistics.holm([numbers.p for numbers in found])
    same_N = statistics.holm([numbers.p_equivalent for numbers in found])
    for (at, _), numbers, p, same in zip(tested, found, p_N, same_N, strict=True):
        corrected = replace(numbers, p_holm=p, p_equivalent_holm=same)
        results[at] = _decide(results[at], corrected, rule)
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
    families = tuple(scores.families.get(task, "") for task in counted)
    result = PairResult(a, b, tasks, counted, families, wins, ties, losses, verdict)
    return result, None if why else d_TS[counted_T]


def _task(task: str, a_S: Floats, b_S: Floats, d_S: Floats, rule: Rule) -> TaskResult:
    """One task; the seeds that both have."""
    shared_S = ~(np.isnan(a_S) | np.isnan(b_S))
    n = int(shared_S.sum())
    failed = int(np.isposinf(a_S[shared_S]).sum()), int(np.isposinf(b_S[shared_S]).sum())
    if any(failed):
        sign = (failed[0] > failed[1]) - (failed[0] < failed[1])
        return TaskResult(task, n, None, sign, None, 0.0, None, failed)
    r_S = statistics.relative_differences(d_S)
    interval = statistics.seed_interval(r_S, rule.level, rule.draws, rule.seed)
    if interval is not None:
        interval = _stated(interval.value, interval.low, interval.high)
    mean = statistics.as_log_ratio(float(statistics.task_means(r_S)))
    within = None
    if n > 1:
        spread = max(float(np.log(e_S[shared_S]).std(ddof=1)) for e_S in (a_S, b_S))
        within = abs(mean) < spread
    level = statistics.reachable_level(rule.level, n)
    # What is practically equal is neither won nor lost.
    sign = 0 if abs(mean) <= rule.log_rope else (mean > 0) - (mean < 0)
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


def _numbers(d_TS: Floats, families: tuple[str, ...], pairs: int, rule: Rule) -> Numbers:
    """The numbers of one pair, not corrected for the others yet."""
    r_TS = statistics.relative_differences(d_TS)
    several = len(set(families)) > 1
    found = statistics.student(statistics.task_means(r_TS), families)
    mean, half = float(found.mean), float(found.half_width(rule.level))
    short = float(found.half_width(1 - 2 * rule.alpha))
    log_T = statistics.task_means(d_TS)
    hit_T = statistics.task_means(statistics.hits(d_TS))
    hit = statistics.student(hit_T, families)
    share, often = float(hit.mean), float(hit.half_width(rule.level))
    p, same = float(found.p), float(found.p_within(rule.relative_rope))
    # Holm's first step asks this much of the clearest of all pairs.
    units, alpha = found.df + 1, rule.alpha / pairs
    wide = found.half_width(1 - alpha)
    ends = statistics.beyond(found.mean, wide, units, alpha)
    further = several and units >= rule.min_families
    return Numbers(
        unit="family" if several else "task",
        units=units,
        effect=_stated(mean, mean - half, mean + half),
        narrow=_stated(mean, mean - short, mean + short),
        geometric=float(statistics.unit_means(log_T, families).mean()),
        median=float(statistics.median_effect(log_T, families)),
        beyond=_stated(mean, float(ends[0]), float(ends[1])) if further else None,
        probability=Interval(share, max(0.0, share - often), min(1.0, share + often)),
        p=p,
        p_holm=p,
        p_equivalent=same,
        p_equivalent_holm=same,
        pairs=pairs,
        needed=statistics.needed(r_TS, families, rule.relative_rope, 1 - alpha),
    )


def _stated(value: float, low: float, high: float) -> Interval:
    """An interval of relative differences, stated as log-ratios."""
    return Interval(*(statistics.as_log_ratio(end) for end in (value, low, high)))


def _decide(result: PairResult, numbers: Numbers, rule: Rule) -> PairResult:
    """Ask for equivalence first: a difference can be certain and still too small to matter."""
    same = same_criteria(numbers, rule)
    better = better_criteria(numbers, rule)
    around = numbers.beyond
    if all(criterion.holds for criterion in same):
        further = around is not None and max(-around.low, around.high) <= rule.log_rope
        word: Word = "equivalent" if further else "equivalent on these tasks"
        reasons = (*(criterion.text for criterion in same), about(numbers, further, rule))
    elif all(criterion.holds for criterion in better):
        further = around is not None and (around.high < 0 or around.low > 0)
        if numbers.effect.value < 0:
            word = "better" if further else "better on these tasks"
        else:
            word = "worse" if further else "worse on these tasks"
        reasons = (*(criterion.text for criterion in better), about(numbers, further, rule))
    else:
        missing = tuple(criterion.text for criterion in better if not criterion.holds)
        reasons = (*missing, way_out(result, numbers))
        word = "inconclusive"
    left_out = [task.task for task in result.tasks if task.task not in result.counted]
    if left_out:
        reasons += (f"left out, fewer than {rule.min_seeds} seeds: {', '.join(left_out)}",)
    return replace(
        result, verdict=Verdict(word, reasons), numbers=numbers, criteria=(*better, *same)
    )


# --- what it means, in words ------------------------------------------------------------------


def about(numbers: Numbers, further: bool, rule: Rule) -> str:
    """What a settled pair is a statement about."""
    if numbers.beyond is None:
        few = counted(numbers) if numbers.unit == "family" else "1 family"
        return f"this is about these tasks only: {few} of tasks, {rule.min_families} are needed"
    share = f"{100 * statistics.missed(numbers.units, rule.alpha / numbers.pairs):.0f} %"
    if further:
        return (
            f"this holds for other families, too, even if {share} of them are unlike all of these"
        )
    return (
        f"this is about these tasks only: {share} of all families may be unlike these "
        f"{numbers.units} and have been missed"
    )


def way_out(result: PairResult, numbers: Numbers) -> str:
    """What it would take to settle a pair."""
    seeds = max(task.n for task in result.tasks if task.task in result.counted)
    planned, each = numbers.needed, round(len(result.counted) / numbers.units)
    word = "equivalence" if planned.equivalent else "a direction"
    if planned.units is None:
        return f"neither more seeds nor more tasks within reach would show {word}"
    more = several(numbers.unit, max(planned.units, numbers.units + 1))
    if numbers.unit == "family" and each > 1:
        more += f" of {each} tasks"
    with_seeds = f"about {more} with {plural(seeds, 'seed')} might show {word}"
    if planned.seeds is None:
        return f"{with_seeds}; more seeds alone would not"
    if planned.seeds > seeds:
        return f"{with_seeds}, as might about {planned.seeds} seeds a task on these"
    return f"the size of the effect is known well enough; {with_seeds}"
