"""One word on a pair of methods, the numbers it rests on, and why it may be refused.

``weigh`` goes from scores to everything a report needs, ``judge`` to the results of pairs: per task
intervals, over tasks three criteria that all have to hold before a method is called better, two for
equivalence, and otherwise "inconclusive" with what it would take. ``docs/verdicts.md`` explains
every number to its reader.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from xmodal.compare import fairness, statistics
from xmodal.compare.criteria import better_criteria, count, same_criteria, way_out
from xmodal.compare.fairness import Conditions, Flag
from xmodal.compare.ranks import Overview, overview
from xmodal.compare.results import Numbers, PairResult, Rule, TaskResult, Verdict, Word
from xmodal.compare.scores import Floats, Scores
from xmodal.compare.statistics import CellSummary
from xmodal.errors import UsageError


@dataclass(frozen=True)
class Comparison:
    """All that a report says about a table of scores: ``cells[method][task]``, pairs, overview.

    ``overview`` is of the contenders, without controls and the trivial answer; None where there is
    one of them, or no task that all of them have.
    """

    cells: dict[str, dict[str, CellSummary]]
    pairs: tuple[PairResult, ...]
    overview: Overview | None
    flags: tuple[Flag, ...]


def weigh(
    scores: Scores,
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
    # Controls and the trivial answer are no contenders: they would change every rank and profile.
    apart = {*controls, trivial}
    contenders = scores.only([method for method in scores.methods if method not in apart])
    return Comparison(cells, results, overview(contenders, rule.alpha), (*found, *doubts))


def judge(
    scores: Scores,
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


def _check(scores: Scores, asked: Sequence[tuple[str, str]]) -> None:
    known = ", ".join(scores.methods)
    for pair in asked:
        for method in pair:
            if method not in scores.methods:
                raise UsageError(f"no scores of method {method!r}; there are: {known}")
    if len({frozenset(pair) for pair in asked}) < len(asked) or any(a == b for a, b in asked):
        raise UsageError("a pair is two different methods, and no pair is asked for twice")


# --- one pair, before the tests ----------------------------------------------------------------


def _pair(
    scores: Scores, a: str, b: str, rule: Rule, refused: str | None
) -> tuple[PairResult, Floats | None]:
    """The refused result, or one still without a verdict and the log-ratios it shall rest on."""
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
    """Why these tasks do not carry a verdict, or None."""
    broken = [task.task for task in tasks if any(task.failed)]
    if broken:
        return f"runs failed on {', '.join(broken)}; repeat them, or leave the task out for all"
    if not tasks:
        return "the two share no seed on any task"
    most = max(task.n for task in tasks)
    if most < rule.min_seeds:
        return f"{count(most, 'seed')}, {rule.min_seeds} are needed"
    if counted < rule.min_tasks:
        few = f" with {rule.min_seeds} seeds" if counted < len(tasks) else ""
        return f"{count(counted, 'task')}{few}, {rule.min_tasks} are needed"
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
    """Equivalence first: a difference can be certain and still too small to matter."""
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
