"""Verdicts on pairs of methods: every word, every refusal, their invariances, and the flags.

Shapes: T tasks, S seeds.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from xmodal.comparison import fairness
from xmodal.comparison.criteria import Numbers, Rule, better_criteria
from xmodal.comparison.error_table import ErrorTable
from xmodal.comparison.fairness import Conditions
from xmodal.comparison.statistics import Interval, Needed
from xmodal.comparison.verdicts import judge, weigh
from xmodal.errors import UsageError

QUICK = Rule(draws=2000)
BETTER, WORSE, SAME = (f"{word} on these tasks" for word in ("better", "worse", "equivalent"))
OPPOSITE = {BETTER: WORSE, WORSE: BETTER}


def cells(effects, tasks=10, seeds=3, noise=0.03, between=0.05, run=8):
    """Errors whose logarithm is task + effect of the method + that on the task + seed."""
    generator = np.random.default_rng(run)
    found = {}
    for t in range(tasks):
        level = generator.normal(0, 2)
        for method, effect in effects.items():
            mean = level + effect + generator.normal(0, between)
            errors = np.exp(mean + generator.normal(0, noise, seeds))
            found[method, f"t{t:02}"] = dict(enumerate(map(float, errors)))
    return found


def verdict(found, rule=QUICK):
    (result,) = judge(ErrorTable.of(found), rule=rule)
    return result


# --- the words ---------------------------------------------------------------------------------


def test_better_and_worse():
    result = verdict(cells({"a": -0.3, "b": 0.0}))
    assert (result.verdict.word, result.verdict.kind) == (BETTER, "better")
    assert result.numbers.effect.high < 0
    assert (result.wins, result.ties, result.losses) == (10, 0, 0)
    assert len(result.verdict.reasons) == 5
    assert str(result.verdict).startswith("better on these tasks: error −2")
    assert result.remedies == ("this is about these tasks only: 1 family of tasks, 6 are needed",)
    assert verdict(cells({"a": 0.3, "b": 0.0})).verdict.word == WORSE


def test_equivalent_methods():
    result = verdict(cells({"a": 0.0, "b": 0.0}, noise=0.002, between=0.001))
    assert result.verdict.word == SAME
    assert result.numbers.p_equivalent < 0.05


def test_a_certain_difference_below_one_percent_is_equivalence():
    found = cells({"a": -0.004, "b": 0.0}, noise=1e-4, between=1e-4)
    result = verdict(found)
    assert result.verdict.word == SAME
    assert all(c.holds for c in result.criteria)  # better by the other four criteria, too
    assert verdict(found, Rule(draws=2000, rope=0.001)).verdict.word == BETTER


def test_one_large_difference_is_not_equivalence():
    """Nine equal tasks do not outvote a tenth."""
    found = cells({"a": 0.0, "b": 0.0}, noise=1e-4, between=1e-4)
    found["a", "t09"] = {seed: 2 * error for seed, error in found["b", "t09"].items()}
    result = verdict(found)
    assert result.numbers.median == pytest.approx(0, abs=0.01)
    assert result.verdict.word == "inconclusive"


def test_identical_methods_are_equivalent():
    found = cells({"a": 0.0})
    found |= {("b", task): errors for (_, task), errors in found.items()}
    result = verdict(found)
    assert (result.verdict.word, result.numbers.p) == (SAME, 1)
    assert (result.wins, result.ties, result.losses) == (0, 10, 0)


def test_inconclusive_names_what_is_missing_and_what_it_would_take():
    result = verdict(cells({"a": -0.05, "b": 0.0}, noise=0.3, between=0.0, run=5))
    assert result.verdict.word == "inconclusive"
    assert any("which includes 0" in reason for reason in result.verdict.reasons)
    (way_out,) = result.remedies
    assert way_out.startswith(f"about {result.numbers.needed.units} tasks with 3 seeds might show")
    assert {c.name for c in result.criteria if not c.holds} >= {"effect", "test"}


def test_many_pairs_take_clearer_differences():
    effects = {"a": 0.0, "b": 0.13, "c": 0.05, "d": 0.06}
    found = ErrorTable.of(cells(effects, tasks=6, between=0.05, run=8))
    (alone,) = judge(found, [("a", "b")], QUICK)
    together = judge(found, rule=QUICK)
    assert alone.numbers.p == together[0].numbers.p
    assert together[0].numbers.p_holm > alone.numbers.p_holm
    assert (alone.verdict.word, together[0].verdict.word) == (BETTER, "inconclusive")
    wide = {method: 10 * effect for method, effect in effects.items()}
    clear = judge(ErrorTable.of(cells(wide, tasks=6)), [("a", "b"), ("c", "b")], QUICK)
    assert [r.verdict.word for r in clear] == [BETTER, BETTER]


@pytest.mark.parametrize(
    ("hit", "low", "effect", "holds"),
    [(0.8, 0.6, -1, True), (0.7, 0.6, -1, False), (0.8, 0.5, -1, False), (0.2, 0.1, 1, True)],
)
def test_a_probability_has_to_be_large_and_certain(hit, low, effect, holds):
    """Seen from the side to which the effect points: 0.2 for A is 0.8 for B."""
    clear = Interval(0.1 * effect, 0.1 * effect - 0.05, 0.1 * effect + 0.05)
    share = Interval(hit, low, hit + 0.1)
    average, needed = clear.value, Needed(3, 6, False)
    numbers = Numbers(
        "task", 10, clear, clear, average, average, None, share, 0.01, 0.01, 0.9, 0.9, 1, needed
    )
    found = {c.name: c.holds for c in better_criteria(numbers, Rule())}
    assert found == {"effect": True, "agreement": True, "probability": holds, "test": True}


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [1, 4, 5])
def test_no_verdict_below_six_tasks(tasks):
    """However clear: a tenth of the error, every time."""
    result = verdict(cells({"a": -2.3, "b": 0.0}, tasks=tasks, seeds=10, noise=1e-3))
    count = "1 task" if tasks == 1 else f"{tasks} tasks"
    assert str(result.verdict) == f"refused: {count}, 6 are needed"
    assert result.numbers is None
    assert len(result.tasks) == tasks
    assert all(task.interval is not None and task.interval.high < 0 for task in result.tasks)


def test_no_rule_makes_five_tasks_or_two_seeds_enough():
    for keywords in (
        {"min_tasks": 5},
        {"min_seeds": 2},
        {"min_families": 5},
        {"alpha": 0.2},
        {"rope": 0},
    ):
        with pytest.raises(UsageError):
            Rule(**keywords)


def test_no_verdict_below_three_seeds():
    result = verdict(cells({"a": -1.0, "b": 0.0}, seeds=2))
    assert str(result.verdict) == "refused: 2 seeds, 3 are needed"


def test_seeds_have_to_be_shared():
    found = cells({"a": -1.0, "b": 0.0})
    moved = {
        key: {seed + 1: error for seed, error in errors.items()} if key[0] == "a" else errors
        for key, errors in found.items()
    }
    assert str(verdict(moved).verdict) == "refused: 2 seeds, 3 are needed"


def test_tasks_with_too_few_seeds_do_not_count():
    found = cells({"a": -1.0, "b": 0.0}, tasks=8)
    for task in ("t00", "t01"):
        del found["a", task][2]
    result = verdict(found)
    assert result.verdict.word == BETTER
    assert result.verdict.reasons[-1] == "left out, fewer than 3 seeds: t00, t01"
    del found["a", "t02"][2]
    assert str(verdict(found).verdict) == "refused: 5 tasks with 3 seeds, 6 are needed"


def test_a_failed_run_refuses_and_counts_as_a_loss():
    found = cells({"a": -1.0, "b": 0.0})
    found["a", "t03"][1] = math.inf
    result = verdict(found)
    assert str(result.verdict).startswith("refused: runs failed on t03")
    assert (result.wins, result.losses) == (9, 1)


def test_methods_without_a_common_task():
    result = verdict({("a", "t"): {0: 1.0}, ("b", "u"): {0: 1.0}})
    assert str(result.verdict) == "refused: the two share no seed on any task"


def test_pairs_are_checked():
    scores = ErrorTable.of(cells({"a": 0.0, "b": 0.0}))
    for pairs in ([("a", "c")], [("a", "a")], [("a", "b"), ("b", "a")]):
        with pytest.raises(UsageError):
            judge(scores, pairs)


# --- invariances -------------------------------------------------------------------------------

EFFECTS = [-0.3, -0.08, -0.03, 0.0, 0.05]


@pytest.mark.parametrize("effect", EFFECTS)
def test_swapping_flips_the_verdict(effect):
    scores = ErrorTable.of(cells({"a": effect, "b": 0.0}))
    (one,), (other,) = (judge(scores, [pair], QUICK) for pair in (("a", "b"), ("b", "a")))
    assert OPPOSITE.get(one.verdict.word, one.verdict.word) == other.verdict.word
    assert one.numbers.p == other.numbers.p
    mirrored = -other.numbers.effect
    assert (mirrored.low, mirrored.high) == pytest.approx(
        (one.numbers.effect.low, one.numbers.effect.high), abs=1e-12
    )
    assert (one.wins, one.losses) == (other.losses, other.wins)


@pytest.mark.parametrize("effect", EFFECTS)
def test_the_order_of_tasks_and_seeds_does_not_matter(effect):
    found = cells({"a": effect, "b": 0.0})
    turned = {
        key: dict(reversed(found[key].items()))
        for key in sorted(found, key=lambda key: (key[0], key[1][::-1]), reverse=False)[::-1]
    }
    pairs = [("a", "b")]
    assert judge(ErrorTable.of(found), pairs, QUICK) == judge(ErrorTable.of(turned), pairs, QUICK)


@pytest.mark.parametrize("effect", EFFECTS)
def test_the_unit_of_a_task_does_not_matter(effect):
    found = cells({"a": effect, "b": 0.0})
    scaled = {
        (method, task): {s: e * (100 if task == "t04" else 1) for s, e in errors.items()}
        for (method, task), errors in found.items()
    }
    one, other = verdict(found), verdict(scaled)
    assert one.verdict == other.verdict
    assert one.numbers.p == other.numbers.p
    assert one.numbers.effect.low == pytest.approx(other.numbers.effect.low, abs=1e-9)


# --- error rates -------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("tasks", "methods", "between"), [(6, 2, 0.1), (10, 2, 0.1), (10, 2, 0.0), (12, 4, 0.1)]
)
def test_methods_without_a_difference_are_rarely_called_better(tasks, methods, between):
    """In about 5 % of tables at most, whatever the number of pairs; 7 of 60 are twice that."""
    wrong = 0
    effects = {f"m{m}": 0.0 for m in range(methods)}
    for run in range(60):
        found = cells(effects, tasks=tasks, noise=0.05, between=between, run=run)
        words = {r.verdict.kind for r in judge(ErrorTable.of(found), rule=Rule(draws=1000))}
        wrong += bool(words & {"better", "worse"})
    assert wrong <= 6


def test_a_real_difference_is_found_and_not_called_equivalence():
    words = Counter(
        verdict(cells({"a": -0.2, "b": 0.0}, run=run), Rule(draws=1000)).verdict.kind
        for run in range(40)
    )
    assert words["better"] >= 38
    assert words["worse"] == words["equivalent"] == 0
    close = Counter(
        verdict(cells({"a": -0.02, "b": 0.0}, noise=0.01, run=run), Rule(draws=1000)).verdict.kind
        for run in range(40)
    )
    assert close["equivalent"] <= 2  # 2 % apart: outside of the region


# --- flags -------------------------------------------------------------------------------------


def conditions(methods=("a", "b"), tasks=10, **keywords):
    made = {"protocol": "clean", "scale": "full", "metric": "share", "encoded_samples": 1e6}
    made |= keywords
    return [Conditions(method, f"t{t:02}", **made) for method in methods for t in range(tasks)]


def kinds(flags):
    return [flag.kind for flag in flags]


def test_a_clean_table_has_no_flags():
    found = ErrorTable.of(cells({"a": -0.5, "b": 0.0}, noise=0.001))
    result = weigh(found, conditions(), rule=QUICK)
    assert result.flags == ()
    assert result.pairs[0].verdict.word == BETTER


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("protocol", "published", "different protocols in one table: clean, published"),
        ("scale", "cpu", "different scales in one table: cpu, full"),
        ("fraction", 0.1, "different fractions of the training data on task t05: 0.1, 1"),
        ("labelled", 0.5, "different fractions of labels on task t05: 0.5, 1"),
        ("metric", "mean", "different metrics on task t05: mean, share"),
        ("selected_by", "loss", "different choices of the epoch on task t05: by loss, by metric"),
    ],
)
def test_runs_that_cannot_be_compared_refuse_every_verdict(field, value, text):
    """One run of one method on one task is enough."""
    made = conditions()
    made[5] = replace(made[5], **{field: value})
    result = weigh(ErrorTable.of(cells({"a": -0.5, "b": 0.0})), made, rule=QUICK)
    assert [flag.text for flag in result.flags if flag.refuses] == [text]
    assert str(result.pairs[0].verdict) == f"refused: {text}"
    assert len(result.pairs[0].tasks) == 10


def test_a_task_may_use_a_share_of_its_data_for_all_methods() -> None:
    made = [replace(c, fraction=0.5) if c.task == "t01" else c for c in conditions()]
    result = weigh(ErrorTable.of(cells({"a": -0.5, "b": 0.0})), made, rule=QUICK)
    assert not [flag for flag in result.flags if flag.refuses]


def test_a_method_worse_than_the_trivial_one_is_flagged():
    found = cells({"a": -1.0, "b": 0.0, "mean": 0.5}, noise=0.01)
    found["a", "t02"] = {s: 3 * e for s, e in found["mean", "t02"].items()}
    (flag,) = fairness.flags(ErrorTable.of(found), trivial=["mean"])
    assert (flag.kind, flag.methods, flag.tasks) == ("worse-than-trivial", ("a", "mean"), ("t02",))
    assert flag.numbers == pytest.approx({"t02": 3.0})
    assert fairness.flags(ErrorTable.of(found)) == []


def test_the_strongest_cheap_answer_of_each_task_is_to_be_beaten():
    """The others are not, and one that is not meant for a task is not missing there."""
    found = cells({"a": 0.0, "mean": 0.5, "ridge": -0.5, "trees": 1.0}, tasks=3, noise=0.0)
    del found["trees", "t00"]
    strongest = {"t00": "ridge", "t01": "trees", "t02": "mean"}
    trivial = ("mean", "ridge", "trees")
    (flag,) = fairness.flags(ErrorTable.of(found), trivial=trivial, strongest=strongest)
    assert flag.text == "a is worse than ridge on t00"
    assert flag.methods == ("a", "ridge")
    ratios = [found["a", "t00"][s] / found["ridge", "t00"][s] for s in found["a", "t00"]]
    assert flag.numbers == pytest.approx({"t00": math.prod(ratios) ** (1 / len(ratios))})
    strongest["t02"] = "ridge"
    found["trees", "t01"] = {s: e / 2 for s, e in found["a", "t01"].items()}
    (flag,) = fairness.flags(ErrorTable.of(found), trivial=trivial, strongest=strongest)
    assert flag.text == "a is worse than ridge on t00, t02 and than trees on t01"
    assert flag.numbers["t01"] == pytest.approx(2.0)


def test_uneven_compute_needs_a_control():
    """``long`` is ``b`` trained as long as the dearer ``a``."""
    found = ErrorTable.of(cells({"a": 0.0, "b": 0.0, "long": 0.0}, tasks=2))
    made = conditions(("a",), 2, encoded_samples=2e6) + conditions(("b",), 2)
    (flag,) = fairness.flags(found, made)
    assert (flag.kind, flag.methods, flag.tasks) == ("uneven-compute", ("a", "b"), ("t00", "t01"))
    assert flag.numbers == {"t00": 2.0, "t01": 2.0}
    made += conditions(("long",), 2, encoded_samples=1.9e6)
    assert fairness.flags(found, made, controls=["long"]) == []
    assert len(fairness.flags(found, made)) == 2  # nobody said that it is a control
    half = [c for c in made if (c.method, c.task) != ("long", "t01")]
    (flag,) = fairness.flags(found, half, controls=["long"])
    assert flag.tasks == ("t01",)


@pytest.mark.parametrize(("ratio", "flagged"), [(1.1, False), (1.11, True), (0.9, True)])
def test_a_tenth_more_compute_is_the_same(ratio, flagged):
    found = ErrorTable.of(cells({"a": 0.0, "b": 0.0}, tasks=1))
    made = conditions(("a",), 1, encoded_samples=ratio * 1e6) + conditions(("b",), 1)
    assert bool(fairness.flags(found, made)) == flagged


@pytest.mark.parametrize(
    ("rate", "searched", "flagged"),
    [
        (1e-4, (1e-5, 1e-4, 1e-3), False),
        (1e-3, (1e-5, 1e-4, 1e-3), True),
        (1e-5, (1e-3, 1e-4, 1e-5), True),
        (1e-4, (), False),
        (1e-4, (1e-4,), False),
    ],
)
def test_best_learning_rate_at_the_edge_of_the_grid(rate, searched, flagged):
    found = ErrorTable.of(cells({"a": 0.0}, tasks=1))
    made = conditions(("a",), 1, learning_rate=rate, searched=searched)
    assert kinds(fairness.flags(found, made)) == ["edge-of-grid"] * flagged


def test_a_difference_within_the_spread_is_flagged():
    found = cells({"a": 0.0, "b": 0.0}, tasks=1)
    found["a", "t00"] = {0: 1.0, 1: 1.2, 2: 1.1}
    found["b", "t00"] = {0: 1.05, 1: 1.25, 2: 1.15}  # always worse, by less than seeds differ
    result = weigh(ErrorTable.of(found), rule=QUICK)
    (task,) = result.pairs[0].tasks
    assert task.within_spread
    assert task.interval.high < 0  # paired, the difference is clear
    assert (kinds(result.flags), result.flags[0].tasks) == (["within-spread"], ("t00",))
    found["b", "t00"] = {0: 1.3, 1: 1.5, 2: 1.4}
    assert weigh(ErrorTable.of(found), rule=QUICK).flags == ()


def test_missing_and_failed_runs_floors_and_selection_on_test_are_flagged():
    found = cells({"a": 0.0, "b": 1.0}, tasks=2)
    del found["a", "t00"][1]
    found["a", "t01"][0] = math.inf
    found["b", "t01"][0] = 0.0
    scores = ErrorTable.of(found, steps={"t01": 0.001})
    flags = fairness.flags(scores, conditions(tasks=2, selected_on_test=True))
    assert kinds(flags) == ["selected-on-test", "missing-runs", "failed-runs", "floored-errors"]
    assert not any(flag.refuses for flag in flags)
    assert flags[1].numbers == {"t00": 1.0}


def test_a_comparison_is_plain_values():
    """It can be written down as it is."""
    found = cells({"a": -0.5, "b": 0.0, "c": 0.1})
    found["c", "t03"][1] = math.inf
    result = weigh(ErrorTable.of(found), conditions(), rule=QUICK, trivial=["b"])
    again = json.loads(json.dumps(asdict(result), allow_nan=False))
    assert again["pairs"][2]["tasks"][3]["failed"] == [0, 1]
    assert again["pairs"][0]["verdict"]["word"] == BETTER
    assert again["cells"]["a"]["t00"]["n"] == 3
    assert set(again["overview"]["ranks"]) == {"a", "c"}  # the trivial answer does not compete
    assert len(again["overview"]["pair_profiles"]) == 1
    assert next(iter(again["overview"]["ranks"])) == "a"


def test_only_the_trivial_answer_is_there_yet():
    found = weigh(ErrorTable.of(cells({"b": 0.0})), pairs=[], rule=QUICK, trivial=["b"])
    assert found.overview is None
    assert found.pairs == ()
