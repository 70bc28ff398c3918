"""Verdicts on families of tasks: what is an observation, what a word is about, how often it errs.

Shapes: R tables, T tasks, S seeds.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from xmodal.comparison.criteria import Rule
from xmodal.comparison.error_table import ErrorTable
from xmodal.comparison.table import plain
from xmodal.comparison.verdicts import PairResult, judge, weigh
from xmodal.facts import Target, TaskFacts

from ..paths import ROOT

Cells = dict[tuple[str, str], dict[int, float]]


def table(d_TS: Any, families: list[str] | None = None) -> ErrorTable:
    """The errors of ``a`` over those of ``b``, which are 1, in log-ratios; task t00, t01, ..."""
    errors: Cells = {}
    for t, d_S in enumerate(d_TS):
        errors["a", f"t{t:02}"] = {s: math.exp(d) for s, d in enumerate(d_S)}
        errors["b", f"t{t:02}"] = dict.fromkeys(range(len(d_S)), 1.0)
    named = {f"t{t:02}": family for t, family in enumerate(families or [])}
    return ErrorTable.of(errors, families=named)


def decided(d_TS: Any, families: list[str] | None = None, rule: Rule | None = None) -> PairResult:
    (result,) = judge(table(d_TS, families), rule=rule)
    return result


def drawn(tasks: int, mean: float = -0.3, spread: float = 0.1, run: int = 0) -> Any:
    generator = np.random.default_rng(run)
    effect_T1 = generator.normal(mean, spread, (tasks, 1))
    return effect_T1 + generator.normal(0, 0.02, (tasks, 3))


# --- what one observation is -------------------------------------------------------------------


def test_a_family_is_one_observation_by_hand() -> None:
    families = ["image", "table", "pde"] * 3
    d_TS = drawn(9) + np.tile([0.1, 0.0, -0.1], 3)[:, None]
    result = decided(d_TS, families)
    means_T = (2 * np.tanh(d_TS / 2)).mean(axis=1)
    theirs = stats.ttest_1samp([means_T[f::3].mean() for f in range(3)], 0)
    assert result.numbers is not None
    assert (result.numbers.unit, result.numbers.units) == ("family", 3)
    assert result.numbers.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval()
    effect = result.numbers.effect
    assert [2 * math.tanh(end / 2) for end in (effect.low, effect.high)] == pytest.approx(
        [low, high]
    )
    log_T = d_TS.mean(axis=1)
    assert result.numbers.geometric == pytest.approx(
        np.mean([log_T[f::3].mean() for f in range(3)])
    )
    medians = [np.median(log_T[f::3]) for f in range(3)]
    assert result.numbers.median == pytest.approx(np.median(medians))


def test_more_tasks_like_one_add_nothing() -> None:
    """Twelve tables that are copies of one are one table; so are twelve that were not copied."""
    d_TS = drawn(6)
    families = ["table", "image", "series", "pde", "protein", "text"]
    one = decided(d_TS, families).numbers
    copied_TS = np.concatenate([d_TS, np.repeat(d_TS[:1], 11, axis=0)])
    many = decided(copied_TS, families + ["table"] * 11).numbers
    assert one is not None
    assert many is not None
    assert many.p == pytest.approx(one.p)
    assert many.effect.low == pytest.approx(one.effect.low)
    alone = decided(copied_TS).numbers
    assert alone is not None
    assert alone.p < one.p / 100  # with the tasks as observations


def test_names_and_order_of_families_do_not_matter() -> None:
    d_TS, families = drawn(8), ["b", "a", "c", "a", "b", "c", "c", "b"]
    one = decided(d_TS, families).numbers
    other = decided(d_TS, [{"a": " Z", "b": "y ", "c": "X"}[name] for name in families]).numbers
    turned = decided(d_TS[::-1], families[::-1]).numbers
    assert one is not None
    for found in (other, turned):
        assert found is not None
        assert found.p == pytest.approx(one.p, rel=1e-9)
        assert found.effect.low == pytest.approx(one.effect.low, rel=1e-9)
        assert found.needed == one.needed


def test_upper_case_is_no_other_family() -> None:
    assert table(drawn(3), ["Table", "table ", "TABLE"]).families == {
        "t00": "table", "t01": "table", "t02": "table",
    }  # fmt: skip
    assert table(drawn(2), ["", "image"]).families == {"t01": "image"}


def test_tasks_of_which_nothing_is_stated_are_one_family() -> None:
    result = decided(drawn(8), ["image", "", "", "", "", "", "", ""])
    assert result.numbers is not None
    assert (result.numbers.unit, result.numbers.units) == ("family", 2)


@pytest.mark.parametrize(
    ("shape", "family"), [((3, 8, 8), "image"), ((1, 46), "series"), ((9,), "table")]
)
def test_a_task_that_states_nothing_is_of_the_family_of_its_form(
    shape: tuple[int, ...], family: str
) -> None:
    target = Target("classification", 2)
    assert TaskFacts("mine", shape, target, {}).family == family
    assert TaskFacts("mine", shape, target, {}, family="text").family == "text"


# --- what a word is about ----------------------------------------------------------------------


@pytest.mark.parametrize("families", [1, 2, 3, 5])
def test_below_six_families_the_word_is_about_these_tasks(families: int) -> None:
    """However clear, and however many tasks: a hundredth of the error, every time."""
    for tasks in (10, 60):
        result = decided(drawn(tasks, -4.6, 0.001), [f"f{t % families}" for t in range(tasks)])
        assert result.verdict.word == "better on these tasks"
        assert result.numbers is not None
        assert result.numbers.beyond is None
        few = "1 family" if families == 1 else f"{families} families"
        about = f"this is about these tasks only: {few} of tasks, 6 are needed"
        assert result.remedies == (about,)
        assert str(result.verdict).startswith("better on these tasks: ")
        assert "other families" not in json.dumps(asdict(result))


def test_a_word_on_other_families_takes_many_or_a_large_effect() -> None:
    """Ten families miss a share of 31 % once in 40 times; 2 (.31) / (.69) is a ratio of .38."""
    few = [f"f{t}" for t in range(10)]
    for mean, word in ((-0.3, "better on these tasks"), (-1.2, "better"), (1.2, "worse")):
        assert decided(drawn(10, mean, 0.02), few).verdict.word == word
    many = [f"f{t}" for t in range(60)]
    result = decided(drawn(60, -0.3, 0.02), many)
    assert result.verdict.word == "better"
    assert result.remedies == (
        "this holds for other families, too, even if 6 % of them are unlike all of these",
    )
    equal = decided(drawn(60, 0, 0.001), many)
    assert equal.verdict.word == "equivalent on these tasks"


def test_one_task_cannot_carry_a_word() -> None:
    """Nine small gains beside one heavy loss, and nine small losses beside one heavy gain."""
    for sign in (1, -1):
        d_TS = sign * drawn(10, -0.05, 0.01)
        d_TS[4] += sign * 3.0
        result = decided(d_TS)
        assert result.verdict.word == "inconclusive"
        (agreement,) = [c for c in result.criteria if c.name == "agreement"]
        assert not agreement.holds
        assert "do not both agree" in str(result.verdict)
        assert "a few tasks carry one of them" in str(result.verdict)


@pytest.mark.parametrize(
    ("a", "word"),
    [
        (lambda t, s: 1e-300, "better on these tasks"),
        (lambda t, s: 1e300, "worse on these tasks"),
        (lambda t, s: 1.0, "equivalent on these tasks"),
        (lambda t, s: 1 + 1e-15, "equivalent on these tasks"),
        (lambda t, s: 1e100 if t % 2 else 1e-100, "inconclusive"),
        (lambda t, s: 1e100 if s else 1e-100, "inconclusive"),
    ],
)
def test_extreme_errors_have_words(a: Callable[[int, int], float], word: str) -> None:
    """Whatever the families, and fit for JSON."""
    for families in (1, 2, 8):
        errors: Cells = {}
        for t in range(8):
            errors["a", f"t{t}"] = {s: a(t, s) for s in range(3)}
            errors["b", f"t{t}"] = dict.fromkeys(range(3), 1.0)
        named = {f"t{t}": f"f{t // 2 % families}" for t in range(8)}
        found = weigh(ErrorTable.of(errors, families=named))
        (result,) = found.pairs
        assert result.verdict.word == word
        assert "nan" not in json.dumps(plain(asdict(found)), allow_nan=False).lower()


def test_names_of_seeds_and_tasks_do_not_matter() -> None:
    """Another name is another place in the table."""
    d_TS, families = drawn(8), ["b", "a", "c", "a", "b", "c", "c", "b"]
    one = decided(d_TS, families)
    other = decided(d_TS[::-1, [2, 0, 1]], families[::-1])
    assert one.verdict == other.verdict
    for mine, theirs in zip(one.tasks, other.tasks[::-1], strict=True):
        assert mine.interval == theirs.interval


def test_golden_words() -> None:
    d_TS = np.tile([-0.1, -0.2, -0.3], (6, 1)) + 0.01 * np.arange(6)[:, None]
    assert str(decided(d_TS, ["pde"] * 6).verdict) == (
        "better on these tasks: error −16.0 % on average over 6 tasks, 95 % interval −17.7 % to "
        "−14.4 %; the other averages agree: geometric mean −16.1 %, median −16.1 %; a run has a "
        "smaller error than its pair with probability 1.00 (1.00 to 1.00); Student's test over 6 "
        "tasks p = 2.9e-06, 2.9e-06 after correction for 1 pair; this is about these tasks only: 1 "
        "family of tasks, 6 are needed"
    )


# --- errors near 0 -----------------------------------------------------------------------------


def test_how_small_an_error_near_0_is_taken_to_be_hardly_matters() -> None:
    """An AUROC of 1 on one task of seven: the geometric mean doubles its effect with the floor."""
    errors: Cells = {}
    for t in range(7):
        for s in range(3):
            wobble = 1 + 0.03 * math.sin(5 * t + s)
            errors["a", f"t{t}"] = errors.get(("a", f"t{t}"), {}) | {s: 0.08 * wobble if t else 0.0}
            errors["b", f"t{t}"] = errors.get(("b", f"t{t}"), {}) | {s: 0.1 if t else 0.002}
    found = []
    for step in (1e-4, 1e-6, 1e-9):
        steps = {f"t{t}": step for t in range(7)}
        (result,) = judge(ErrorTable.of(errors, steps=steps))
        assert result.numbers is not None
        found.append(result)
    first, *others = (result.numbers for result in found)
    assert first is not None
    for other in others:
        assert other is not None
        assert other.effect.value == pytest.approx(first.effect.value, abs=0.02)
        assert other.p == pytest.approx(first.p, rel=0.1)
        assert other.geometric < 1.5 * first.geometric  # of negative numbers
    assert len({result.verdict.word for result in found}) == 1


# --- error rates -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """The script whose tables stand in docs/verdicts.md."""
    spec = importlib.util.spec_from_file_location(
        "verdicts_simulation", ROOT / "benchmarks" / "verdicts_simulation.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["verdicts_simulation"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mean", [-0.25, -1.2])
def test_the_simulation_decides_as_judge_does(simulation: ModuleType, mean: float) -> None:
    for sizes in ((1,) * 10, (8,), (3, 3, 2)):
        world = simulation.World("", sizes, 3, simulation.alike(0.3))
        _, d_RTS = world.draw(np.random.default_rng(0), 8, mean)
        words = simulation.decide(np.round(d_RTS, 12), world.families, Rule())
        for r, d_TS in enumerate(d_RTS):
            result = decided(d_TS, world.families)
            side = {"better": -1, "worse": 1}.get(result.verdict.kind, 0)
            assert (side, result.verdict.kind == "equivalent") == (
                words.direction[r], words.equivalent[r],
            )  # fmt: skip
            assert bool(words.further[r]) == (result.verdict.word in ("better", "worse"))


@pytest.mark.parametrize("name", ["three families, correlation .6", "heavy tails (t, 2 df)"])
def test_no_direction_where_there_is_none(simulation: ModuleType, name: str) -> None:
    """In 5 % of 1000 tables at most, with families and with tasks as observations."""
    rule = Rule()
    for world in [world for world in simulation.WORLDS if world.name == name][:2]:
        _, d_RTS = world.draw(np.random.default_rng(1), 1000, 0.0)
        words = simulation.decide(d_RTS, world.families, rule)
        assert (words.direction != 0).mean() <= 0.05
        assert (np.abs(words.mean) <= words.half).mean() >= 0.93
        _, d_RTS = world.draw(np.random.default_rng(2), 300, math.log(0.5))
        assert (simulation.decide(d_RTS, world.families, rule).direction < 0).mean() > 0.9


def test_a_heavy_loss_that_was_not_seen_is_not_ruled_out(simulation: ModuleType) -> None:
    """A third of such tables show no loss: their word is true of these tasks, and of them only."""
    world = simulation.World("", (1,) * 10, 5, simulation.losing(0.1, 0.9))
    effect_RT, d_RTS = world.draw(np.random.default_rng(3), 1000, 0.0)
    words = simulation.decide(d_RTS, world.families, Rule())
    assert (words.direction != 0).mean() > 0.1
    assert (words.further != 0).mean() <= 0.05
    assert (words.direction * np.sign(effect_RT.mean(axis=1)) < 0).mean() <= 0.05
