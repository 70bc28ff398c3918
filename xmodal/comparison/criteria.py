"""What decides the verdict on a pair: thresholds, numbers, and conditions in words.

``verdicts`` makes the numbers and the word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xmodal.comparison.statistics import Interval, Needed, relative_differences
from xmodal.errors import UsageError
from xmodal.text import percent, percents, plural

EFFECT = "mean relative difference of the errors, 2 (A - B) / (A + B)"
"""What an effect is. It is stated as the ratio of two errors that differ by it."""
FEWEST_SEEDS, FEWEST_TASKS, FEWEST_FAMILIES = 3, 6, 6


@dataclass(frozen=True)
class Rule:
    """The thresholds of a verdict.

    None of them allows a verdict on 2 seeds or on 5 tasks, or a word on other tasks than these
    from 5 families.
    """

    alpha: float = 0.05
    """Error rate: of the tests of all pairs together, and 1 - confidence of an interval."""
    probability: float = 0.75
    """How often a run of the better method has to beat its pair, at least."""
    rope: float = 0.01
    """Relative difference of two errors below which they are practically equal."""
    min_seeds: int = FEWEST_SEEDS
    min_tasks: int = FEWEST_TASKS
    min_families: int = FEWEST_FAMILIES
    draws: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_seeds < FEWEST_SEEDS or self.min_tasks < FEWEST_TASKS:
            raise UsageError(
                f"a verdict needs {FEWEST_SEEDS} seeds and {FEWEST_TASKS} tasks or more: fewer "
                "do not show how much seeds and tasks differ"
            )
        if self.min_families < FEWEST_FAMILIES:
            raise UsageError(f"a claim about other tasks needs {FEWEST_FAMILIES} families or more")
        for name in ("alpha", "rope"):
            if not 0 < getattr(self, name) <= 0.1:
                raise UsageError(f"{name} lies above 0 and up to 0.1, not at {getattr(self, name)}")
        if not (0.5 < self.probability < 1 and self.draws >= 1000):
            raise UsageError("probability lies between 0.5 and 1, draws from 1000 on")

    @property
    def level(self) -> float:
        """Confidence of the intervals."""
        return 1 - self.alpha

    @property
    def log_rope(self) -> float:
        """The region of practical equivalence of the log-ratio, to either side."""
        return math.log1p(self.rope)

    @property
    def relative_rope(self) -> float:
        """The same region of the relative difference."""
        return float(relative_differences(np.asarray(self.log_rope)))


@dataclass(frozen=True)
class Numbers:
    """What a verdict rests on.

    ``units`` are the ``unit``: families, or the tasks of a single family. ``effect`` is the mean
    relative difference over units, ``geometric`` the mean and ``median`` the median log-ratio, all
    stated as log-ratios. ``probability`` is P(A better). ``p`` is that of Student's test of this
    pair alone, ``p_equivalent`` that of the two one-sided tests; ``p_holm`` and
    ``p_equivalent_holm`` are corrected for ``pairs`` pairs. ``narrow`` is the interval of
    ``effect`` that belongs to the test of equivalence. ``beyond`` is the interval of the mean over
    all families, also over those unlike all units; None below six families.
    """

    unit: Literal["family", "task"]
    units: int
    effect: Interval
    narrow: Interval
    geometric: float
    median: float
    beyond: Interval | None
    probability: Interval
    p: float
    p_holm: float
    p_equivalent: float
    p_equivalent_holm: float
    pairs: int
    needed: Needed

    @property
    def agree(self) -> bool:
        """Whether all three averages point to the same side."""
        signs = {math.copysign(1, value) if value else 0 for value in self.averages}
        return len(signs) == 1 and 0 not in signs

    @property
    def opposed(self) -> bool:
        """Whether one average points to the one side and another to the other."""
        return min(self.averages) < 0 < max(self.averages)

    @property
    def averages(self) -> tuple[float, float, float]:
        """Mean relative difference, geometric mean and median, as log-ratios."""
        return self.effect.value, self.geometric, self.median


@dataclass(frozen=True)
class Criterion:
    """One condition of a verdict, in words with its numbers, and whether it holds."""

    name: str
    holds: bool
    text: str


def better_criteria(numbers: Numbers, rule: Rule) -> tuple[Criterion, ...]:
    """What makes a method better, or worse: for the side to which the mean effect points."""
    effect, hit = numbers.effect, numbers.probability
    if effect.value > 0:
        hit = Interval(1 - hit.value, 1 - hit.high, 1 - hit.low)
    apart = effect.high < 0 or effect.low > 0
    often = hit.value >= rule.probability and hit.low > 0.5
    interval = f"{100 * rule.level:.0f} % interval {percents(effect.low, effect.high)}"
    others = f"geometric mean {percent(numbers.geometric)}, median {percent(numbers.median)}"
    return (
        Criterion(
            "effect",
            apart,
            f"error {percent(effect.value)} on average over {counted(numbers)}, {interval}"
            f"{'' if apart else ', which includes 0'}",
        ),
        Criterion(
            "agreement",
            numbers.agree,
            f"the other averages {'agree' if numbers.agree else 'do not both agree'}: {others}"
            f"{'; a few tasks carry one of them' if numbers.opposed else ''}",
        ),
        Criterion(
            "probability",
            often,
            f"a run has a smaller error than its pair with probability {hit.value:.2f} "
            f"({hit.low:.2f} to {hit.high:.2f})"
            f"{'' if often else f', needed {rule.probability:g} and above 0.5 throughout'}",
        ),
        Criterion(
            "test",
            numbers.p_holm < rule.alpha,
            f"Student's test over {counted(numbers)} p = {numbers.p:.2g}, {numbers.p_holm:.2g} "
            f"after correction for {plural(numbers.pairs, 'pair')}",
        ),
    )


def same_criteria(numbers: Numbers, rule: Rule) -> tuple[Criterion, ...]:
    """What makes two methods equivalent."""
    narrow = numbers.narrow
    inside = all(abs(value) <= rule.log_rope for value in numbers.averages)
    others = f"geometric mean {percent(numbers.geometric)}, median {percent(numbers.median)}"
    return (
        Criterion(
            "equivalence",
            numbers.p_equivalent_holm < rule.alpha,
            f"two one-sided tests that the error differs by less than {100 * rule.rope:g} %: p = "
            f"{numbers.p_equivalent_holm:.2g} after correction for "
            f"{plural(numbers.pairs, 'pair')}, {100 * (1 - 2 * rule.alpha):.0f} % interval "
            f"{percents(narrow.low, narrow.high)}",
        ),
        Criterion(
            "small effect",
            inside,
            f"all averages {'lie' if inside else 'do not lie'} within {100 * rule.rope:g} %: "
            f"{others}",
        ),
    )


def counted(numbers: Numbers) -> str:
    """``6 families``, ``10 tasks``."""
    return several(numbers.unit, numbers.units)


def several(unit: str, count: int) -> str:
    """``1 family``, ``2 families``, ``10 tasks``."""
    return f"{count} families" if unit == "family" and count != 1 else plural(count, unit)
