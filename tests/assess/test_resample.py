"""Intervals and differences of scores, against closed forms and other estimators."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import one_hot

from xmodal.assess import Resamples
from xmodal.assess.resample import binomial
from xmodal.facts import BackboneFacts, Facts, Target, TaskFacts
from xmodal.interfaces import Context
from xmodal_basics import grouped, metrics

TWO, NUMBER = Target("classification", 2), Target("regression", 1)


def build(cls: type[Any], target: Target = TWO) -> Any:
    facts = Facts(TaskFacts("toy", (4,), target, {}), BackboneFacts("stub", "any", 4, 4))
    context = Context(facts, torch.Generator(), store=SimpleNamespace())  # type: ignore[arg-type]
    return cls(cls.Config(), context)


def guesses(wrong: list[int]) -> Tensor:
    """Outputs for labels 0: class 1 where ``wrong``."""
    return one_hot(torch.tensor(wrong), 2).float()


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 45), (44, 45), (7, 7), (30, 200)])
def test_a_share_of_wrong_answers_has_the_binomial_interval(count: int, n: int) -> None:
    found = Resamples(build(metrics.ErrorRate), zeros(n)).interval(
        guesses([1] * count + [0] * (n - count))
    )
    assert found is not None
    assert (found.method, found.units) == ("binomial", n)
    ends = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-12)
    assert binomial(count, n) == (found.low, found.high)


def test_the_bootstrap_of_a_mean_is_students_interval() -> None:
    y, error = torch.zeros(40, 1, dtype=torch.float64), draw(40, 1).abs()
    found = Resamples(build(metrics.MeanAbsoluteError, NUMBER), y).interval(error)
    half = stats.t.ppf(0.975, 39) * stats.sem(error.flatten().numpy())
    mean = float(error.mean())
    assert found is not None
    assert found.method == "bootstrap"
    assert found.low == pytest.approx(mean - half, abs=0.15 * half)
    assert found.high == pytest.approx(mean + half, abs=0.15 * half)


@pytest.mark.parametrize(
    ("cls", "target", "is_mean"),
    [
        (metrics.ErrorRate, TWO, True),
        (metrics.MeanAbsoluteError, NUMBER, True),
        (metrics.RootMeanSquaredError, NUMBER, True),
        (metrics.R2Error, NUMBER, False),
        (metrics.AUROCError, TWO, False),
        (metrics.BalancedError, TWO, False),
    ],
)
def test_a_score_that_is_a_mean_is_found_out_and_drawn_as_the_metric_would(
    cls: type[Any], target: Target, is_mean: bool
) -> None:
    y = (draw(50, seed=1) > 0.7).long() if target is TWO else draw(50, 1, seed=1)
    prediction = draw(50, target.size, seed=2)
    samples = Resamples(build(cls, target), y)
    parts = samples.decomposed(prediction)
    assert (parts is not None) == is_mean
    index = np.random.default_rng(5).integers(50, size=50)
    metric = build(cls, target)
    metric.update(prediction[index], y[index])
    assert samples._scored(prediction, index) == pytest.approx(metric.compute(), rel=1e-12)
    if parts is not None:
        assert parts.score(index) == pytest.approx(metric.compute(), rel=1e-9)


def test_the_interval_of_an_area_is_about_that_of_delong() -> None:
    """DeLong et al. 1988: the variance from how each sample is placed among the other class."""
    y = torch.cat([zeros(60), torch.ones(40, dtype=torch.int64)])
    score = draw(100, seed=3) + y
    low, high = score[:60].numpy(), score[60:].numpy()
    above = (high[:, None] > low[None]).mean
    variance = above(axis=1).var(ddof=1) / 40 + above(axis=0).var(ddof=1) / 60
    found = Resamples(build(metrics.AUROCError), y).interval(
        torch.stack([torch.zeros(100, dtype=torch.float64), score], 1)
    )
    assert found is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.15)


def test_samples_of_one_group_are_drawn_together() -> None:
    """Ten copies of each of 8 samples say no more than the 8 samples."""
    y, error = torch.zeros(8, 1, dtype=torch.float64), draw(8, 1).abs()
    alone = Resamples(build(metrics.MeanAbsoluteError, NUMBER), y).interval(error)
    groups = torch.arange(8).repeat_interleave(10)
    mixed = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    many = Resamples(
        build(metrics.MeanAbsoluteError, NUMBER), torch.zeros(80, 1).double(), groups[mixed]
    ).interval(error.repeat_interleave(10, 0)[mixed])
    assert alone is not None
    assert many is not None
    assert (many.units, many.over) == (8, "groups")
    assert (many.low, many.high) == pytest.approx((alone.low, alone.high), rel=1e-12)


def test_a_metric_of_groups_counts_each_group_once() -> None:
    """Three windows decide together: of 20 groups, 5 are wrong."""
    wrong = [1] * 5 + [0] * 15
    windows = guesses(wrong).repeat_interleave(3, 0)
    groups = torch.arange(20).repeat_interleave(3)
    found = Resamples(build(grouped.GroupedErrorRate), zeros(60), groups).interval(windows)
    assert found is not None
    assert (found.low, found.high, found.over) == (*binomial(5, 20), "groups")


def test_what_cannot_be_told_is_not_told() -> None:
    perfect = torch.stack([-torch.arange(5.0), torch.arange(5.0)], 1)
    y = torch.tensor([0, 0, 0, 1, 1])
    # Two positives in perfect order: no draw differs, and that is no certainty.
    samples = Resamples(build(metrics.AUROCError), y)
    assert samples.interval(perfect) is None
    assert samples.difference(perfect, torch.zeros(5, 2)) == (None, 0)
    # One class: an area is never defined.
    assert Resamples(build(metrics.AUROCError), zeros(20)).interval(draw(20, 2)) is None
    # Five numbers are too few for an interval.
    few = Resamples(build(metrics.MeanAbsoluteError, NUMBER), torch.zeros(5, 1))
    assert few.interval(draw(5, 1)) is None
    # A prediction that is not a number has no score.
    bad = Resamples(build(metrics.RootMeanSquaredError, NUMBER), torch.zeros(20, 1))
    assert bad.interval(torch.full((20, 1), torch.nan)) is None


@pytest.mark.parametrize(("only_first", "sign"), [(5, 0), (6, 1)])
def test_shares_are_told_apart_by_mcnemars_test(only_first: int, sign: int) -> None:
    """Five differences in one direction have p = .0625, six .03125."""
    one = guesses([1] * only_first + [0] * (40 - only_first))
    samples = Resamples(build(metrics.ErrorRate), zeros(40))
    assert samples.difference(one, guesses([0] * 40))[1] == sign
    assert samples.difference(guesses([0] * 40), one)[1] == -sign


def test_paired_scores_share_their_draws() -> None:
    """A constant gap has no spread, though both scores vary."""
    y, error = torch.zeros(30, 1, dtype=torch.float64), draw(30, 1).abs()
    samples = Resamples(build(metrics.MeanAbsoluteError, NUMBER), y)
    found, sign = samples.difference(error + 0.5, error)
    assert found is not None
    assert sign == 1
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


def test_the_seed_fixes_every_draw() -> None:
    y, p = (draw(30, seed=1) > 0).long(), draw(30, 2)
    found = [Resamples(build(metrics.AUROCError), y, seed=s).interval(p) for s in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@pytest.mark.long
def test_the_interval_covers_as_often_as_it_says() -> None:
    """Over 300 samples of 12 skewed numbers: at least 90 %, where a plain percentile has 87 %."""
    hits, y = 0, torch.zeros(12, 1, dtype=torch.float64)
    generator = np.random.default_rng(0)
    metric = build(metrics.MeanAbsoluteError, NUMBER)
    for _ in range(300):
        errors = torch.from_numpy(generator.exponential(size=(12, 1)))
        found = Resamples(metric, y).interval(errors)
        assert found is not None
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_a_score_of_folds_is_the_mean_of_their_scores() -> None:
    """Two repetitions of two folds of four samples, worked by hand."""
    rows = torch.tensor([0, 1, 2, 3, 0, 2, 1, 3])
    folds = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3])
    error = torch.tensor([1.0, 2.0, 3.0, 10.0, 4.0, 6.0, 0.0, 8.0], dtype=torch.float64)[:, None]
    y = torch.zeros(8, 1, dtype=torch.float64)
    metric = build(metrics.MeanAbsoluteError, NUMBER)
    samples = Resamples(metric, y, None, 0, rows, folds)
    assert samples.units == 4
    assert samples.over == "samples"
    assert samples.score(error) == pytest.approx((2 + 10 + 5 + 4) / 4)
    # Samples 1 and 3 alone: fold 2 holds neither, so it has no score.
    assert samples.score(error, np.array([1, 3])) == pytest.approx((2 + 10 + 4) / 3)


def test_in_cross_validation_a_sample_is_drawn_with_all_its_predictions() -> None:
    """Predicting every sample twice, equally, tells nothing more than predicting it once."""
    error = draw(40, 1).abs()
    y, rows = torch.zeros(80, 1, dtype=torch.float64), torch.arange(40).repeat(2)
    metric = build(metrics.MeanAbsoluteError, NUMBER)
    once = Resamples(metric, y[:40]).interval(error)
    folds = torch.arange(2).repeat_interleave(40)
    twice = Resamples(metric, y, None, 0, rows, folds).interval(error.repeat(2, 1))
    naive = Resamples(metric, y).interval(error.repeat(2, 1))
    assert once is not None
    assert twice is not None
    assert naive is not None
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), rel=1e-12)
    assert twice.units == 40
    assert naive.high - naive.low < 0.8 * (twice.high - twice.low)
