"""The arithmetic of a comparison: by hand, against libraries, and on simulated data.

Shapes: T tasks, S seeds, M methods, R draws.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs as posthocs
from hypothesis import given, settings
from hypothesis import strategies as st
from scikit_posthocs import _plotting
from scipy import stats
from statsmodels.stats.multitest import multipletests

from xmodal.comparison import ranks, statistics
from xmodal.comparison.error_table import ErrorTable
from xmodal.errors import UsageError

pytestmark = pytest.mark.slow

NAN, INF = math.nan, math.inf

# --- scores ------------------------------------------------------------------------------------


def test_scores_are_sorted_and_leave_gaps():
    scores = ErrorTable.of({("b", "z"): {1: 2.0, 0: 1.0}, ("a", "y"): {1: 3.0}})
    assert (scores.methods, scores.tasks, scores.seeds) == (("b", "a"), ("y", "z"), (0, 1))
    expected_MTS = [[[NAN, NAN], [1.0, 2.0]], [[NAN, 3.0], [NAN, NAN]]]
    np.testing.assert_array_equal(scores.errors_MTS, expected_MTS)
    with pytest.raises(ValueError, match="read-only"):
        scores.errors_MTS[0] = 1


@pytest.mark.parametrize(
    ("cells", "keywords", "message"),
    [
        ({0: 0.0}, {}, "an error is 0.*smallest step"),
        ({0: -0.1}, {}, "m on t, seed 0: the error is -0.1"),
        ({0: NAN}, {}, "not a number"),
        ({0: 0.9}, {"better": {"t": "higher"}}, "higher is better.*1 - accuracy"),
        ({0: 0.9}, {"better": {"t": "upper"}}, "'lower' or 'higher', not 'upper'"),
        ({0: 0.9}, {"steps": {"t": -1.0}}, "step of its metric is -1"),
    ],
)
def test_scores_refuse_what_has_no_ratio(cells, keywords, message):
    with pytest.raises(UsageError, match=message):
        ErrorTable.of({("m", "t"): cells}, **keywords)


def test_an_error_below_half_a_step_is_half_a_step():
    """Of 50 test samples none wrong counts as half a sample wrong."""
    cells = {("m", "t"): {0: 0.0, 1: 0.02}, ("n", "t"): {0: 0.002}, ("n", "u"): {0: 0.001}}
    scores = ErrorTable.of(cells, steps={"t": 1 / 50})
    np.testing.assert_array_equal(scores.of_method("m")[0], [0.01, 0.02])
    np.testing.assert_array_equal(scores.of_method("n")[:, 0], [0.01, 0.001])
    assert scores.floored == (("t", 2),)


# --- one cell, one task ------------------------------------------------------------------------


def test_summary_of_a_cell():
    found = statistics.summary(np.array([1.0, 3.0, NAN, INF]))
    assert (found.mean, found.n, found.failed) == (2.0, 2, 1)
    assert found.sd == pytest.approx(math.sqrt(2))
    alone = statistics.summary(np.array([5.0, NAN]))
    assert (alone.mean, alone.sd, alone.n) == (5.0, None, 1)
    assert statistics.summary(np.array([NAN])) == statistics.CellSummary(None, None, 0, 0)


def test_log_ratio_pairs_the_seeds_and_marks_failures():
    a_TS = np.array([[1.0, 2.0, NAN, INF, INF, 1.0]])
    b_TS = np.array([[2.0, 2.0, 1.0, 1.0, INF, INF]])
    expected = [[-math.log(2), 0.0, NAN, INF, NAN, -INF]]
    np.testing.assert_allclose(statistics.log_ratios(a_TS, b_TS), expected)


def test_the_interval_of_three_seeds_is_their_range():
    d_S = np.array([-0.3, 0.1, 0.2])
    found = statistics.seed_interval(d_S, 0.95, 10_000, 0)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-0.3, 0.2))
    assert found.value == pytest.approx(0)
    assert statistics.seed_interval(np.array([0.1, NAN]), 0.95, 1000, 0) is None


def test_a_range_of_few_seeds_reaches_less_than_the_confidence_asked_for():
    """The median lies outside the range of n draws with probability 2 * 2^-n: counted here."""
    assert statistics.reachable_level(0.95, 3) == 0.75
    assert statistics.reachable_level(0.95, 5) == 0.9375
    assert statistics.reachable_level(0.95, 6) == 0.95
    drawn_RS = np.random.default_rng(0).standard_normal((20_000, 3))
    inside_R = (drawn_RS.min(axis=1) < 0) & (drawn_RS.max(axis=1) > 0)
    assert inside_R.mean() == pytest.approx(0.75, abs=0.01)


def test_expanded_level_gives_students_interval_for_normal_draws():
    """With the bootstrap's own spread, sd * sqrt((n - 1) / n), the quantile is t times the sd."""
    for n in (4, 10, 50):
        z = -stats.norm.ppf(statistics.expanded_level(0.95, n))
        assert z * math.sqrt((n - 1) / n) == pytest.approx(stats.t.ppf(0.975, n - 1))


# --- over tasks --------------------------------------------------------------------------------


def test_relative_difference_by_hand():
    """1 against 3: -2 / 2 = -1. Small ones are the log-ratio, those of an error of 0 are -2."""
    d = np.log(np.array([1 / 3, 1.02, 1.0, 3.0]))
    np.testing.assert_allclose(
        statistics.relative_differences(d), [-1, 2 * 0.02 / 2.02, 0, 1], atol=1e-12
    )
    assert statistics.relative_differences(np.array([-INF, INF])).tolist() == [-2, 2]
    for difference in (-1.3, 0.0, 0.7):
        back = statistics.relative_differences(np.array(statistics.as_log_ratio(difference)))
        assert float(back) == pytest.approx(difference)
    assert statistics.as_log_ratio(-2.5) == -INF


def test_the_mean_of_a_family_is_one_unit():
    x_T = np.array([1.0, 2.0, 6.0, 5.0])
    families = ["b", "a", "b", "b"]
    np.testing.assert_allclose(statistics.unit_means(x_T, families), [2.0, 4.0])
    np.testing.assert_allclose(statistics.unit_means(np.stack([x_T, -x_T]), families)[1], [-2, -4])
    np.testing.assert_array_equal(statistics.unit_means(x_T, ["a"] * 4), x_T)
    assert statistics.median_effect(x_T, families) == 3.5  # of 2 and of the median of 1, 5, 6
    assert statistics.median_effect(x_T, [""] * 4) == 3.5


@pytest.mark.parametrize("units", [2, 3, 6, 30])
def test_student_against_scipy(units):
    x_U = np.random.default_rng(units).normal(0.2, 1, units)
    found = statistics.student(x_U, [""] * units)
    theirs = stats.ttest_1samp(x_U, 0)
    assert float(found.p) == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    half = float(found.half_width(0.95))
    assert (found.mean - half, found.mean + half) == pytest.approx((low, high))
    below = stats.ttest_1samp(x_U, 1.5, alternative="less").pvalue
    above = stats.ttest_1samp(x_U, -1.5, alternative="greater").pvalue
    assert float(found.p_within(1.5)) == pytest.approx(max(below, above))


def test_units_without_any_spread():
    same = statistics.student(np.zeros((2, 5)), [""] * 5)
    assert same.p.tolist() == [1, 1]
    assert same.p_within(0.01).tolist() == [0, 0]
    assert float(statistics.student(np.full(4, 0.5), list("abcd")).p) == 0


def test_families_that_agree_by_chance_are_not_more_certain_than_their_tasks():
    """Means of 2 and 2.1, each of two tasks whose means have the variance 1 / 2."""
    x_T = np.array([1.5, 2.5, 1.6, 2.6])
    found = statistics.student(x_T, ["a", "a", "b", "b"])
    assert float(found.error) == pytest.approx(math.sqrt((0.25 + 0.25) / 4))
    apart = statistics.student(np.array([1.5, 2.5, 7.5, 8.5]), ["a", "a", "b", "b"])
    assert float(apart.error) == pytest.approx(np.std([2, 8], ddof=1) / math.sqrt(2))
    assert float(statistics.student(x_T[1:], ["a", "b", "b"]).error) == pytest.approx(0.25)


def test_what_may_have_been_missed_by_hand():
    """Of families of which 30.85 % are unlike the others, 10 show none once in 40 times."""
    share = statistics.missed(10, 0.05)
    assert (1 - share) ** 10 == pytest.approx(0.025)
    low, high = statistics.beyond(np.array(-1.0), np.array(0.1), 10, 0.05)
    assert float(low) == pytest.approx((1 - share) * -1.1 - 2 * share)
    assert float(high) == pytest.approx((1 - share) * -0.9 + 2 * share)


def test_hits_by_hand():
    """Seeds -1, 0, 1, 1: one win and half a tie of four; a run that is missing counts for none."""
    found = statistics.hits(np.array([-1.0, 0.0, 1.0, 1.0, NAN]))
    assert np.nanmean(found) == pytest.approx(1.5 / 4)
    assert np.isnan(found[-1])


def test_the_names_of_seeds_do_not_move_an_interval():
    d_S = np.array([-0.3, 0.1, 0.2, 0.05, 0.4, -0.1, 0.15])
    one = statistics.seed_interval(d_S, 0.95, 1000, 0)
    assert one == statistics.seed_interval(d_S[::-1], 0.95, 1000, 0)


# --- tests -------------------------------------------------------------------------------------

STEPS = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


def by_enumeration(d_T):
    """Every one of the 2^n assignments of signs, with Pratt's ranks."""
    ranks_T = stats.rankdata(np.abs(d_T))
    ranks_n = ranks_T[d_T != 0]
    middle = ranks_n.sum() / 2
    observed = abs(ranks_T[d_T > 0].sum() - middle)
    sums = [np.dot(signs, ranks_n) for signs in product((0, 1), repeat=len(ranks_n))]
    return np.mean([abs(total - middle) >= observed for total in sums])


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_signed_rank_is_exact_with_ties_and_zeros(steps):
    d_T = np.array(steps, dtype=float)
    assert statistics.signed_rank(d_T) == pytest.approx(by_enumeration(d_T))


def test_signed_rank_against_scipy():
    generator = np.random.default_rng(0)
    for tasks in (6, 10, 30, 48):
        d_T = generator.normal(0.3, 1, tasks)  # no ties: scipy's table is exact
        theirs = stats.wilcoxon(d_T, method="exact").pvalue
        assert statistics.signed_rank(d_T) == pytest.approx(theirs)
    d_T = np.array([0, 0, 1, -1, 2, 2, 3, 4, 5, -2.0])
    every_sign = stats.PermutationMethod(n_resamples=2**10)
    for zeros in ("pratt", "zsplit"):
        theirs = stats.wilcoxon(d_T, zero_method=zeros, method=every_sign).pvalue
        assert statistics.signed_rank(d_T) == pytest.approx(theirs)


def test_a_task_on_which_both_are_equal_costs_significance():
    """8 wins and 2 ties give 2 / 2^8; a table for 10 tasks without ties would give 2 / 2^10."""
    d_T = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8.0])
    assert statistics.signed_rank(d_T) == statistics.signed_rank(-d_T) == 2 / 2**8
    # The ranks of the zeros are dropped, not the zeros: here that moves p from 0.125 to 0.25.
    few = np.array([-1, -1, 2, 2, 2, 2.0])
    assert statistics.signed_rank(few) != statistics.signed_rank(np.append(few, np.zeros(9)))


def test_five_tasks_are_never_significant():
    assert statistics.signed_rank(np.arange(1.0, 6.0)) == 0.0625
    assert statistics.signed_rank(np.arange(1.0, 7.0)) == 0.03125
    assert statistics.signed_rank(np.zeros(8)) == 1


@pytest.mark.long
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_holm_against_statsmodels(p_N):
    theirs = multipletests(p_N, method="holm")[1]
    assert statistics.holm(p_N) == pytest.approx(list(theirs))


def test_seeds_and_tasks_needed_by_hand():
    """Six tasks, effect -0.1 on each, no spread between tasks, sd 0.2 between seeds.

    S = sigma^2 z^2 / (T g^2) with z = t(0.975) + t(0.8) of 5 degrees of freedom = 2.57 + 0.92.
    """
    residual_S = np.array([-1.0, 0.0, 1.0]) * 0.2
    r_TS = np.tile(-0.1 + residual_S, (6, 1))
    t = stats.t(5)
    found = statistics.needed(r_TS, [""] * 6, 0.01, 0.95)
    z = t.ppf(0.975) + t.ppf(0.8)
    assert found.seeds == math.ceil(0.2**2 * z**2 / (6 * 0.1**2))
    assert not found.equivalent

    def enough(tasks):
        t = stats.t(tasks - 1)
        return 0.2**2 / 3 / tasks <= (0.1 / (t.ppf(0.975) + t.ppf(0.8))) ** 2

    assert found.units == next(tasks for tasks in range(2, 99) if enough(tasks))


def test_families_are_planned_as_families():
    """Twice the tasks in each family halve what seeds add, and leave what families differ by."""
    r_TS = np.array([-0.4, -0.1, -0.3])[:, None] + np.array([-0.05, 0.0, 0.05])
    one = statistics.needed(r_TS, ["a", "b", "c"], 0.01, 0.95)
    two = statistics.needed(np.concatenate([r_TS, r_TS]), ["a", "b", "c"] * 2, 0.01, 0.95)
    assert one.seeds is two.seeds is None
    assert one.units == two.units > 3


def test_no_number_of_seeds_helps_when_the_tasks_disagree():
    effect_T = np.array([-0.5, 0.5, -0.4, 0.4, -0.3, 0.2])
    r_TS = effect_T[:, None] + np.array([-0.01, 0.0, 0.01])
    found = statistics.needed(r_TS, [""] * 6, 0.01, 0.95)
    assert found.seeds is None
    assert found.units > 6
    even = statistics.needed(np.stack([r_TS[0], -r_TS[0]] * 3), [""] * 6, 1e-9, 0.95)
    assert even.units is None


def test_the_planned_seeds_do_settle_it():
    """With the number of seeds it names, about 80 % of repetitions leave out 0."""
    generator = np.random.default_rng(2)
    pilot_TS = -0.05 + 0.1 * stats.norm.ppf((np.arange(12) + 0.5) / 12)[None].repeat(8, 0)
    planned = statistics.needed(pilot_TS, [""] * 8, 0.001, 0.95).seeds
    assert planned is not None
    wide_RTS = generator.normal(-0.05, pilot_TS.std(ddof=1), (2000, 8, planned))
    found = statistics.student(wide_RTS.mean(axis=2), [""] * 8)
    assert (found.p < 0.05).mean() == pytest.approx(0.8, abs=0.08)


# --- all methods -------------------------------------------------------------------------------


def random_levels(methods=6, tasks=14, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(0, 1, (methods, tasks)) + 0.7 * np.arange(methods)[:, None]


def test_levels_use_shared_seeds_and_forget_the_scale():
    cells = {
        ("a", "t"): {0: 1.0, 1: 4.0, 2: 100.0},
        ("b", "t"): {0: 4.0, 1: 4.0},
        ("a", "u"): {0: 1.0},
        ("a", "v"): {0: INF},
        ("b", "v"): {0: 5.0},
    }
    tasks, level_MT = ranks.levels(ErrorTable.of(cells))
    assert tasks == ("t", "v")  # u lacks one method
    np.testing.assert_allclose(level_MT, [[0.0, INF], [math.log(2), 0.0]])
    assert ranks.levels(ErrorTable.of({("a", "t"): {0: 1.0}, ("b", "u"): {0: 1.0}}))[0] == ()


def test_friedman_against_scipy_and_at_its_edges():
    level_MT = random_levels()
    assert ranks.friedman(level_MT) == pytest.approx(stats.friedmanchisquare(*level_MT).pvalue)
    assert ranks.friedman(np.zeros((4, 5))) == 1
    assert ranks.friedman(level_MT[:2]) is None


@pytest.mark.parametrize(("methods", "tasks", "expected"), [(4, 14, 1.25), (5, 30, 1.11)])
def test_critical_difference_of_published_examples(methods, tasks, expected):
    """Demsar 2006, section 3.2.2 (2.569 sqrt(4 5 / 84) = 1.25); 2.728 sqrt(5 6 / 180) = 1.11."""
    assert ranks.critical_difference(methods, tasks, 0.05) == pytest.approx(expected, abs=0.005)


def test_pairwise_tests_against_scikit_posthocs():
    level_MT = random_levels()
    frame = pd.DataFrame(level_MT.T).melt()
    theirs = posthocs.posthoc_wilcoxon(
        frame, val_col="value", group_col="variable", method="exact", p_adjust="holm"
    )
    np.testing.assert_allclose(ranks.pairwise_holm(level_MT), theirs.to_numpy(), rtol=1e-9)


def test_cliques_against_scikit_posthocs():
    for seed in range(20):
        upper_MM = np.triu(np.random.default_rng(seed).random((7, 7)), 1)
        p_MM = upper_MM + upper_MM.T + np.eye(7)
        alike = pd.DataFrame((p_MM >= 0.4).astype(int) * (1 - np.eye(7, dtype=int)))
        theirs = {frozenset(c) for c in _plotting._find_maximal_cliques(alike) if len(c) > 1}
        assert set(ranks.cliques(p_MM, 0.4)) == theirs


def test_profile_by_hand():
    """Ratios of a: 1, 1, 4; of b: 2, 1, 1; c failed twice: 1 (with a tie), inf, inf."""
    level_MT = np.log([[1.0, 3.0, 8.0], [2.0, 3.0, 2.0], [1.0, INF, INF]])
    a, b, c = ranks.profiles(("a", "b", "c"), level_MT)
    assert a.taus == pytest.approx((1.0, 2.0, 4.0))
    assert a.shares == pytest.approx((2 / 3, 2 / 3, 1.0))
    assert b.shares == pytest.approx((2 / 3, 1.0, 1.0))
    assert c.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    # Areas: log2 4 = 2 is the whole; a task at ratio 4 adds nothing, one at ratio 2 a half.
    assert (a.area, b.area, c.area) == pytest.approx((2 / 3, 5 / 6, 1 / 3))
    assert (a.at_one, b.at_one, c.at_one) == pytest.approx((2 / 3, 2 / 3, 1 / 3))


def test_area_is_the_integral_of_the_profile():
    for profile in ranks.profiles(tuple("abcdef"), random_levels(), tau_max=3.0):
        grid = np.exp2(np.linspace(0, math.log2(3), 4001))
        at = np.searchsorted(profile.taus, grid, side="right") - 1
        mean = np.asarray(profile.shares)[at].mean()
        assert profile.area == pytest.approx(mean, abs=2e-3)


def test_a_task_on_which_all_failed_counts_for_nobody():
    profile, _ = ranks.profiles(("a", "b"), np.array([[0.0, INF], [0.5, INF]]))
    assert (profile.at_one, profile.shares[-1]) == (0.5, 0.5)


def test_who_is_second_may_depend_on_who_takes_part():
    """The known weakness of profiles of more than two, and why pairs are given as well."""
    level_MT = np.log([[1.0, 1.0, 4.0], [1.9, 1.9, 1.0], [0.5, 0.5, 4.0]])
    together = {p.method: p for p in ranks.profiles(("a", "b", "c"), level_MT)}
    assert together["a"].at_one < together["b"].at_one
    a, b = ranks.profiles(("a", "b"), level_MT[:2])
    assert a.at_one > b.at_one
