"""The conditions of a verdict, each in words with its numbers."""

from __future__ import annotations

import math

from xmodal.compare.results import Criterion, Numbers, Rule
from xmodal.compare.statistics import Interval


def better_criteria(numbers: Numbers, rule: Rule) -> tuple[Criterion, ...]:
    """What makes a method better, or worse: for the side to which the mean effect points."""
    effect, hit = numbers.effect, numbers.probability
    if effect.value > 0:
        hit = Interval(1 - hit.value, 1 - hit.high, 1 - hit.low)
    apart = effect.high < 0 or effect.low > 0
    often = hit.value >= rule.probability and hit.low > 0.5
    interval = f"{100 * rule.level:.0f} % interval {percent(effect.low)} to {percent(effect.high)}"
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
            f"{count(numbers.family, 'pair')}",
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
            f"the {100 * rule.level:.0f} % interval of the mean, {percent(effect.low)} to "
            f"{percent(effect.high)}, lies {'' if inside else 'not '}within {100 * rule.rope:g} %",
        ),
    )


def way_out(tasks: int, seeds: int, numbers: Numbers, rule: Rule) -> str:
    """What it would take to settle a pair that has ``seeds`` on each of ``tasks``."""
    least = math.ceil(1 + math.log2(numbers.family / rule.alpha) + 1e-9)
    if tasks < least:
        return (
            f"no result could be significant for {count(numbers.family, 'pair')} on {tasks} "
            f"tasks: it takes {least} tasks, or fewer pairs"
        )
    planned = numbers.needed
    more = max(planned.tasks, tasks + 1)
    if planned.seeds is None:
        return f"more seeds alone would not settle it; about {more} tasks might"
    if planned.seeds > seeds:
        return f"about {planned.seeds} seeds a task would settle it, if the effect is as large"
    return "its size is known well enough; more seeds or more tasks may bring what is missing"


def percent(log_ratio: float) -> str:
    """A log-ratio as the change of the error: ``-12.7 %``."""
    return f"{100 * math.expm1(log_ratio):+.1f} %".replace("-", "−")


def count(amount: int, one: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{amount} {one}{'' if amount == 1 else 's'}"
