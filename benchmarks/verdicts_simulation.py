"""How often are verdicts wrong, and what do they find? Simulated tables, decided as judge does.

Each world says how the effect of a method differs between families, tasks and seeds. Its average
log-ratio is shifted to 0 for the level, and to less error for the power. Printed are the tables of
``docs/verdicts.md``. Runs on one core in a few minutes:

    python benchmarks/verdicts_simulation.py

Shapes: R tables, T tasks, S seeds, F families.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from xmodal.comparison import statistics
from xmodal.comparison.criteria import Rule
from xmodal.comparison.error_table import Floats

BETWEEN, WITHIN = 0.1, 0.1
"""Standard deviations of log(error) between tasks, and between the seeds of one method."""
QUIET = 0.02
"""The latter for methods whose seeds hardly differ."""
GAINS = (0.05, 0.10, 0.20, 0.50)
Effects = Callable[[np.random.Generator, int, Sequence[int]], Floats]


@dataclass(frozen=True)
class World:
    """A way in which effects come about. ``sizes`` has the number of tasks of each family.

    ``effects`` draws the effects [R, T] of tasks, whose mean over an endless population is 0.
    ``within`` is the deviation between the seeds of a method.
    """

    name: str
    sizes: tuple[int, ...]
    seeds: int
    effects: Effects
    within: float = WITHIN

    @property
    def families(self) -> list[str]:
        """The family of every task."""
        return [f"{f:03}" for f, size in enumerate(self.sizes) for _ in range(size)]

    def draw(self, generator: np.random.Generator, tables: int, mean: float) -> tuple[Floats, ...]:
        """Effects [R, T] and log-ratios [R, T, S] of tables with this mean."""
        effect_RT = mean + self.effects(generator, tables, self.sizes)
        noise = math.sqrt(2) * self.within  # of a difference of two methods
        noise_RTS = noise * generator.standard_normal((*effect_RT.shape, self.seeds))
        return effect_RT, effect_RT[..., None] + noise_RTS


def alike(correlation: float, ratio: float = 1.0) -> Effects:
    """Normal effects with this correlation within families, whose spread differs by ``ratio``."""

    def draw(generator: np.random.Generator, tables: int, sizes: Sequence[int]) -> Floats:
        family_T = np.repeat(np.arange(len(sizes)), sizes)
        common_RT = generator.standard_normal((tables, len(sizes)))[:, family_T]
        own_RT = generator.standard_normal((tables, len(family_T)))
        spread_T = BETWEEN * np.geomspace(1, ratio, len(sizes))[family_T]
        mixed_RT = math.sqrt(correlation) * common_RT + math.sqrt(1 - correlation) * own_RT
        return np.asarray(spread_T * mixed_RT)

    return draw


def heavy(df: float) -> Effects:
    """Student's t with few degrees of freedom: the mean of df = 1 does not even exist."""

    def draw(generator: np.random.Generator, tables: int, sizes: Sequence[int]) -> Floats:
        return 0.5 * BETWEEN * generator.standard_t(df, size=(tables, sum(sizes)))

    return draw


def skewed(generator: np.random.Generator, tables: int, sizes: Sequence[int]) -> Floats:
    """An exponential distribution, shifted to the mean 0: many small gains, few large losses."""
    return BETWEEN * (generator.standard_exponential((tables, sum(sizes))) - 1)


def losing(gain: float, loss: float, exactly: bool = False) -> Effects:
    """One task in ten loses by ``loss``, the others gain: by chance, or one in each table."""

    def draw(generator: np.random.Generator, tables: int, sizes: Sequence[int]) -> Floats:
        tasks = sum(sizes)
        if exactly:
            loses_RT = np.arange(tasks) == generator.integers(tasks, size=(tables, 1))
        else:
            loses_RT = generator.random((tables, tasks)) < 0.1
        little_RT = 0.2 * BETWEEN * generator.standard_normal((tables, tasks))
        return np.where(loses_RT, loss, -gain) + little_RT

    return draw


def alone(tasks: int) -> tuple[int, ...]:
    """Every task is a family."""
    return (1,) * tasks


LOSES_ONCE = losing(0.1, 0.9, exactly=True)
WORLDS = (
    World("independent, symmetric", alone(6), 3, alike(0)),
    World("independent, symmetric", alone(10), 5, alike(0)),
    World("independent, symmetric", alone(30), 5, alike(0)),
    World("independent, symmetric", alone(100), 5, alike(0)),
    World("one family", (6,), 3, alike(0)),
    World("one family", (10,), 5, alike(0)),
    World("one family", (30,), 3, alike(0)),
    World("two families, correlation .6", (5, 5), 5, alike(0.6)),
    World("three families, correlation .6", (2, 2, 2), 3, alike(0.6)),
    World("three families, correlation .6", (4, 3, 3), 5, alike(0.6)),
    World("three families, correlation .6", (10, 10, 10), 3, alike(0.6)),
    World("five families, correlation .6", (2,) * 5, 5, alike(0.6)),
    World("six families, correlation .6", (5,) * 6, 3, alike(0.6)),
    World("six families, 25 of 30 tasks in one, .6", (25, 1, 1, 1, 1, 1), 3, alike(0.6)),
    World("three families, 18 of 20 tasks in one, .6", (18, 1, 1), 3, alike(0.6)),
    World("heavy tails (t, 2 df)", alone(6), 3, heavy(2)),
    World("heavy tails (t, 2 df)", alone(10), 5, heavy(2)),
    World("heavier tails (Cauchy)", alone(10), 5, heavy(1)),
    World("unequal variances, 1 to 10", alone(6), 3, alike(0, 10)),
    World("unequal variances, 1 to 10", alone(10), 5, alike(0, 10)),
    World("the same, three families, .6", (4, 3, 3), 5, alike(0.6, 10)),
    World("the same, 25 of 30 tasks in one, .6", (25, 1, 1, 1, 1, 1), 3, alike(0.6, 10)),
    World("skewed (exponential)", alone(6), 3, skewed),
    World("skewed (exponential)", alone(10), 5, skewed),
    World("one task of each ten loses by e^.9", alone(10), 5, LOSES_ONCE),
    World("the same, one family", (10,), 5, LOSES_ONCE),
    World("one task in ten loses by e^1, others equal", alone(10), 5, losing(0.0, 1.0)),
    World("one task in ten loses by e^.9, by chance", alone(6), 3, losing(0.1, 0.9)),
    World("one task in ten loses by e^.9, by chance", alone(10), 5, losing(0.1, 0.9)),
    World("one task in ten loses by e^.9, by chance", alone(30), 5, losing(0.1, 0.9)),
    World("the same, three families", (4, 3, 3), 5, losing(0.1, 0.9)),
    World("one task in ten loses by e^3.6, by chance", alone(10), 5, losing(0.4, 3.6)),
    World("one task in ten loses by e^3.6, by chance", alone(30), 5, losing(0.4, 3.6)),
    World("2 % between seeds: independent, symmetric", alone(6), 3, alike(0), QUIET),
    World("2 %: independent, symmetric", alone(10), 5, alike(0), QUIET),
    World("2 %: two families, correlation .6", (5, 5), 5, alike(0.6), QUIET),
    World("2 %: three families, correlation .6", (2, 2, 2), 3, alike(0.6), QUIET),
    World("2 %: three families, correlation .6", (4, 3, 3), 5, alike(0.6), QUIET),
    World("2 %: three families, 18 of 20 tasks in one, .6", (18, 1, 1), 3, alike(0.6), QUIET),
    World("2 %: six families, correlation .6", (5,) * 6, 3, alike(0.6), QUIET),
    World("2 %: heavy tails (t, 2 df)", alone(10), 5, heavy(2), QUIET),
    World("2 %: unequal variances, 1 to 10", alone(10), 5, alike(0, 10), QUIET),
    World("2 %: skewed (exponential)", alone(6), 3, skewed, QUIET),
    World("2 %: skewed (exponential)", alone(10), 5, skewed, QUIET),
    World("2 %: one task of each ten loses by e^.9", alone(10), 5, LOSES_ONCE, QUIET),
    World("2 %: one task in ten loses by e^.9, by chance", alone(10), 5, losing(0.1, 0.9), QUIET),
    World("2 %: the same, three families", (4, 3, 3), 5, losing(0.1, 0.9), QUIET),
)


@dataclass(frozen=True)
class Words:
    """The words [R] of many tables: -1 better, 1 worse, 0 neither; and whether equivalent.

    ``direction`` is about these tasks, ``further`` about other families, too.
    """

    direction: Floats
    further: Floats
    equivalent: Floats
    mean: Floats
    half: Floats


def decide(d_RTS: Floats, families: Sequence[str], rule: Rule) -> Words:
    """What ``judge`` says about a single pair of methods, for many tables at once."""
    r_RTS = statistics.relative_differences(d_RTS)
    found = statistics.student(statistics.task_means(r_RTS), families)
    log_RT = statistics.task_means(d_RTS)
    geometric_R = statistics.unit_means(log_RT, families).mean(axis=-1)
    median_R = statistics.median_effect(log_RT, families)
    hit_RT = statistics.task_means(statistics.hits(d_RTS))
    hit = statistics.student(hit_RT, families)
    side_R = np.sign(found.mean)
    share_R = np.where(side_R < 0, hit.mean, 1 - hit.mean)
    agree_R = (np.sign(geometric_R) == side_R) & (np.sign(median_R) == side_R)
    often_R = (share_R >= rule.probability) & (share_R - hit.half_width(rule.level) > 0.5)
    small_R = np.maximum(np.abs(geometric_R), np.abs(median_R)) <= rule.log_rope
    small_R &= np.abs(found.mean) <= rule.relative_rope
    equivalent_R = (found.p_within(rule.relative_rope) < rule.alpha) & small_R
    settled_R = (found.p < rule.alpha) & agree_R & often_R & ~equivalent_R
    direction_R, half_R = side_R * settled_R, found.half_width(rule.level)
    low_R, high_R = statistics.beyond(found.mean, half_R, found.df + 1, rule.alpha)
    enough = len(set(families)) >= rule.min_families
    further_R = direction_R * ((low_R > 0) | (high_R < 0)) * enough
    return Words(direction_R, further_R, equivalent_R, found.mean, half_R)


def share(wrong_R: Floats) -> str:
    """A share of tables in percent, with its standard error."""
    rate = float(wrong_R.mean())
    return f"{100 * rate:.1f} ± {100 * math.sqrt(rate * (1 - rate) / len(wrong_R)):.1f}"


def row(world: World, tables: int, seed: int, rule: Rule) -> str:
    """One line of the table of worlds."""
    generator = np.random.default_rng(seed)
    families = world.families
    effect_RT, d_RTS = world.draw(generator, tables, 0.0)
    words = decide(d_RTS, families, rule)
    here_R = statistics.unit_means(effect_RT, families).mean(axis=-1)
    these_R = words.direction * np.sign(here_R) < 0
    _, many_RTS = world.draw(generator, 20 * tables // sum(world.sizes), 0.0)
    many_RT = statistics.task_means(statistics.relative_differences(many_RTS))
    truth = statistics.unit_means(many_RT, families).mean()
    covered_R = np.abs(words.mean - truth) <= words.half
    power = []
    for gain in GAINS:
        _, d_RTS = world.draw(generator, tables // 4, math.log1p(-gain))
        found = decide(d_RTS, families, rule)
        power.append(
            " / ".join(f"{100 * (w < 0).mean():.0f}" for w in (found.direction, found.further))
        )
    cells = (
        world.name,
        f"{sum(world.sizes)} × {world.seeds}",
        str(len(world.sizes)),
        share(these_R),
        share(words.further != 0),
        share(words.direction != 0),
        f"{100 * covered_R.mean():.1f}",
        *power,
    )
    return f"| {' | '.join(cells)} |"


def equivalence(tables: int, rule: Rule) -> None:
    """Print how many units it takes to call equal methods equivalent in 80 of 100 tables."""
    print("\n| between units | between seeds | seeds | units | found | at a true 1 % |")
    print("|---|---|---|---|---|---|")
    generator = np.random.default_rng(1)
    for between, within in ((0.005, 0.005), (0.01, 0.01), (0.02, 0.02), (0.02, 0.05), (0.05, 0.05)):
        for seeds in (3, 10):
            units = 6
            while (found := _equivalent(generator, between, within, seeds, units, 0.0, rule)) < 0.8:
                units = math.ceil(1.1 * units)
            wrong = _equivalent(
                generator, between, within, seeds, units, rule.log_rope, rule, tables
            )
            cells = f"{100 * between:g} % | {100 * within:g} % | {seeds} | {units}"
            print(f"| {cells} | {100 * found:.0f} | {100 * wrong:.1f} |", flush=True)


def _equivalent(
    generator: np.random.Generator,
    between: float,
    within: float,
    seeds: int,
    units: int,
    mean: float,
    rule: Rule,
    tables: int = 1000,
) -> float:
    """The share of tables that are called equivalent."""
    effect_RT = mean + between * generator.standard_normal((tables, units))
    noise_RTS = math.sqrt(2) * within * generator.standard_normal((tables, units, seeds))
    words = decide(effect_RT[..., None] + noise_RTS, [str(u) for u in range(units)], rule)
    return float(words.equivalent.mean())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", type=int, default=20_000, help="simulated tables of a world")
    arguments = parser.parse_args()
    rule = Rule()
    gains = " | ".join(f"{100 * gain:.0f} %" for gain in GAINS)
    print(
        "| world | tasks × seeds | families | false on these tasks | false beyond them | "
        f"any direction | coverage | {gains} |"
    )
    print(f"|{'---|' * (7 + len(GAINS))}")
    for number, world in enumerate(WORLDS):
        print(row(world, arguments.tables, number, rule), flush=True)
    equivalence(arguments.tables // 4, rule)


if __name__ == "__main__":
    main()
