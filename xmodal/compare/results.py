"""What a comparison of two methods says, as plain values, and the rule that decides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from xmodal.compare.fairness import Flag, within_spread
from xmodal.compare.statistics import Interval, Needed, Posterior
from xmodal.errors import UsageError

Word = Literal["better", "worse", "equivalent", "inconclusive", "refused"]
FEWEST_SEEDS, FEWEST_TASKS = 3, 6


@dataclass(frozen=True)
class Rule:
    """The numbers that decide. None of them makes a verdict possible on 2 seeds or on 5 tasks."""

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
        """The reasons that are no criteria: why it is refused, what would settle it, what is left
        out.
        """
        stated = {criterion.text for criterion in self.criteria}
        return tuple(reason for reason in self.verdict.reasons if reason not in stated)

    @property
    def doubt(self) -> Flag | None:
        """The flag for tasks on which the difference is within the spread over seeds."""
        return within_spread(self.a, self.b, [t.task for t in self.tasks if t.within_spread])
