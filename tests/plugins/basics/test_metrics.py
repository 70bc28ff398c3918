"""Metrics against scikit-learn and torchmetrics, fed in uneven batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multilabel_auroc

from xmodal.interfaces import BackboneFacts, Context, Facts, Target, TaskFacts
from xmodal_basics import metrics

NAN = float("nan")
GENERATOR = torch.Generator().manual_seed(0)


def build(cls: type[Any], output: Target, **settings: Any) -> Any:
    facts = Facts(TaskFacts("toy", (1, 4, 4), output, {}), BackboneFacts("stub", "any", 4, 4))
    context = Context(facts, GENERATOR, store=SimpleNamespace())  # type: ignore[arg-type]
    return cls(cls.Config(**settings), context)


def score(cls: type[Any], output: Target, p: Tensor, y: Tensor, **settings: Any) -> float:
    """Feed in batches of 7, after a first use that must be forgotten."""
    metric = build(cls, output, **settings)
    metric.update(p[:3], y[:3])
    metric.reset()
    for start in range(0, len(p), 7):
        metric.update(p[start : start + 7], y[start : start + 7])
    value = metric.compute()
    assert isinstance(value, float)
    order = torch.randperm(len(p), generator=GENERATOR)
    metric.reset()
    metric.update(p[order], y[order])
    assert metric.compute() == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)
    return value


def classes(k: int, n: int = 60) -> tuple[Tensor, Tensor, Target]:
    y = torch.randint(k, (n,), generator=GENERATOR)
    p = torch.randn(n, k, generator=GENERATOR)
    return p + torch.nn.functional.one_hot(y, k), y, Target("classification", k)


def labels(k: int = 5, n: int = 60) -> tuple[Tensor, Tensor, Target]:
    y = (torch.rand(n, k, generator=GENERATOR) < 0.3).float()
    return torch.randn(n, k, generator=GENERATOR) + y, y, Target("multi-label", k)


def numbers(*shape: int, n: int = 20) -> tuple[Tensor, Tensor]:
    y = 100 + torch.randn(n, *shape, generator=GENERATOR)
    return y + 0.5 * torch.randn(n, *shape, generator=GENERATOR), y


@pytest.mark.parametrize("k", [2, 5])
def test_class_metrics(k: int) -> None:
    p, y, output = classes(k)
    guess = p.argmax(1)
    accuracy = multiclass_accuracy(p, y, k, average="micro").item()
    assert score(metrics.ErrorRate, output, p, y) == pytest.approx(1 - accuracy)
    f1 = reference.f1_score(y, guess, average="macro")
    assert score(metrics.F1Error, output, p, y) == pytest.approx(1 - f1)
    recall = reference.balanced_accuracy_score(y, guess)
    assert score(metrics.BalancedError, output, p, y) == pytest.approx(1 - recall)
    one_hot = np.eye(k)[y]
    precision = reference.average_precision_score(one_hot, p.double().softmax(1))
    assert score(metrics.AveragePrecisionError, output, p, y) == pytest.approx(1 - precision)


@pytest.mark.parametrize("seed", range(20))
def test_area_and_precision_with_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, 30)
    y[:2] = 0, 1
    score_B = random.integers(0, [1, 3, 100][seed % 3], 30) / 3 if seed % 3 else np.zeros(30)
    area, precision = reference.roc_auc_score, reference.average_precision_score
    assert metrics.area(y, score_B) == pytest.approx(area(y, score_B), abs=1e-14)
    assert metrics.average_precision(y, score_B) == pytest.approx(precision(y, score_B), abs=1e-14)


@pytest.mark.parametrize("cls", [metrics.AUROCError, metrics.AveragePrecisionError])
def test_predictions_that_are_no_numbers_have_no_order(cls: type[Any]) -> None:
    p, y, output = classes(3)
    p[5, 1] = NAN
    assert math.isnan(score(cls, output, p, y))


def test_auroc() -> None:
    p, y, output = classes(2)
    area = reference.roc_auc_score(y, p.double().softmax(1)[:, 1])
    assert score(metrics.AUROCError, output, p, y) == pytest.approx(1 - area)
    p, y, output = classes(5)
    area = reference.roc_auc_score(y, p.double().softmax(1), multi_class="ovo")
    assert score(metrics.AUROCError, output, p, y) == pytest.approx(1 - area)


def test_auroc_of_pairs_that_occur() -> None:
    p, y, _ = classes(3)
    wide = torch.cat([p, torch.full((len(p), 1), -40.0)], 1)
    full = score(metrics.AUROCError, Target("classification", 3), p, y)
    absent = score(metrics.AUROCError, Target("classification", 4), wide, y)
    assert absent == pytest.approx(full)


def test_f1_counts_classes_that_occur_only() -> None:
    p, y, _ = classes(3)
    wide = torch.cat([p, torch.full((len(p), 1), -40.0)], 1)
    expected = 1 - reference.f1_score(y, p.argmax(1), average="macro")
    assert score(metrics.F1Error, Target("classification", 4), wide, y) == pytest.approx(expected)


def test_multi_label_rankings() -> None:
    p, y, output = labels()
    area = multilabel_auroc(p, y.long(), 5, average="macro").item()
    assert score(metrics.AUROCError, output, p, y) == pytest.approx(1 - area, abs=1e-6)
    precision = reference.average_precision_score(y, p, average="macro")
    assert score(metrics.AveragePrecisionError, output, p, y) == pytest.approx(1 - precision)
    y[:, 0] = 0.0
    rest = reference.roc_auc_score(y[:, 1:], p[:, 1:])
    assert score(metrics.AUROCError, output, p, y) == pytest.approx(1 - rest)
    rest = reference.average_precision_score(y[:, 1:], p[:, 1:], average="macro")
    assert score(metrics.AveragePrecisionError, output, p, y) == pytest.approx(1 - rest)


@pytest.mark.parametrize(
    ("cls", "function"),
    [
        (metrics.MeanAbsoluteError, reference.mean_absolute_error),
        (metrics.RootMeanSquaredError, lambda y, p: reference.mean_squared_error(y, p) ** 0.5),
        (metrics.R2Error, lambda y, p: 1 - reference.r2_score(y, p)),
    ],
)
def test_numeric_metrics(cls: Any, function: Callable[..., float]) -> None:
    p, y = numbers(3)
    expected = function(y.double().numpy(), p.double().numpy())
    assert score(cls, Target("regression", 3), p, y) == pytest.approx(expected, rel=1e-6)


def test_dense_numeric_metrics_and_unknown_labels() -> None:
    output = Target("dense", 2, (4, 4))
    p, y = numbers(2, 4, 4)
    relative = ((p - y).flatten(2).norm(dim=2) / y.flatten(2).norm(dim=2)).mean().item()
    assert score(metrics.RelativeL2Error, output, p, y) == pytest.approx(relative, rel=1e-5)
    assert score(metrics.NormalisedRMSE, output, p, y) == pytest.approx(relative, rel=1e-5)
    y[..., :2] = NAN
    for cls in (
        metrics.MeanAbsoluteError,
        metrics.RootMeanSquaredError,
        metrics.R2Error,
        metrics.RelativeL2Error,
    ):
        known = score(cls, output, p[..., 2:], y[..., 2:])
        assert score(cls, output, p, y) == pytest.approx(known, rel=1e-9)


def test_r2_of_dense_outputs_pools_pixels() -> None:
    p, y = numbers(2, 4, 4)
    flat_p, flat_y = (t.movedim(1, -1).reshape(-1, 2).double() for t in (p, y))
    expected = 1 - reference.r2_score(flat_y, flat_p)
    assert score(metrics.R2Error, Target("dense", 2, (4, 4)), p, y) == pytest.approx(expected)


def test_balanced_error_of_maps() -> None:
    output = Target("dense", 1, (4, 4))
    y = (torch.rand(20, 1, 4, 4, generator=GENERATOR) < 0.2).float()
    p = torch.randn(20, 1, 4, 4, generator=GENERATOR) + y
    recall = reference.balanced_accuracy_score(y.flatten(), p.flatten() > 0)
    assert score(metrics.BalancedError, output, p, y) == pytest.approx(1 - recall)
    ignore = torch.rand(20, 1, 4, 4, generator=GENERATOR) < 0.3
    masked = torch.where(ignore, NAN, y)
    recall = reference.balanced_accuracy_score(y[~ignore], p[~ignore] > 0)
    assert score(metrics.BalancedError, output, p, masked) == pytest.approx(1 - recall)
    # The published code: both sides times (1 - ignore), then roc_auc of the thresholded logits.
    kept = (~ignore).float()
    published = reference.roc_auc_score((y * kept).flatten(), (p * kept).flatten() > 0)
    value = score(metrics.BalancedError, output, p, masked, ignored_as_negative=True)
    assert value == pytest.approx(1 - published)


def test_undefined_scores_are_nan() -> None:
    output = Target("classification", 2)
    for cls in (
        metrics.ErrorRate,
        metrics.AUROCError,
        metrics.F1Error,
        metrics.BalancedError,
    ):
        assert math.isnan(build(cls, output).compute())
    assert math.isnan(build(metrics.R2Error, Target("regression", 1)).compute())
    p, y = torch.randn(9, 2), torch.zeros(9, dtype=torch.int64)
    assert math.isnan(score(metrics.AUROCError, output, p, y))
    # Of positives alone, the average precision is 1 whatever is predicted: it can choose nothing.
    assert math.isnan(score(metrics.AveragePrecisionError, output, p, y))


def test_half_precision_predictions_are_scored() -> None:
    p, y = numbers(3)
    value = score(metrics.MeanAbsoluteError, Target("regression", 3), p.bfloat16(), y)
    assert value == pytest.approx((p.bfloat16().double() - y.double()).abs().mean().item())


def test_wrong_kinds_are_a_problem() -> None:
    facts = Facts(
        TaskFacts("toy", (4,), Target("regression", 1), {}), BackboneFacts("stub", "any", 4, 4)
    )
    assert "regression labels" in next(iter(metrics.AUROCError.problems(None, facts)))
    assert not list(metrics.R2Error.problems(None, facts))


def least(cls: type[Any], output: Target, y: Tensor, guesses: list[Tensor]) -> float:
    """The smallest error above 0 among predictions that are nearly right."""
    errors = []
    for p in guesses:
        metric = build(cls, output)
        metric.update(p, y)
        errors.append(metric.compute())
    return min(error for error in errors if error > 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(3, 5), (4, 4), (2, 3, 5)])
def test_smallest_error_of_classes(counts: tuple[int, ...]) -> None:
    """One sample wrong, tried for every sample and class; one pair in the wrong order."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    output = Target("classification", len(counts))
    right = 9.0 * torch.nn.functional.one_hot(y, len(counts))
    flipped = []
    for sample in range(len(y)):
        for wrong in range(len(counts)):
            p = right.clone()
            p[sample] = 9.0 * torch.nn.functional.one_hot(torch.tensor(wrong), len(counts))
            flipped.append(p)
    for cls in (metrics.ErrorRate, metrics.BalancedError, metrics.F1Error):
        metric = build(cls, output)
        assert metric.smallest() is None
        metric.update(right, y)
        assert metric.smallest() == pytest.approx(least(cls, output, y, flipped))
    ranked = metrics.AUROCError
    swapped = []
    spread = right + torch.linspace(0, 0.1, len(y))[:, None] * torch.arange(len(counts))
    for a in range(len(y)):
        for b in range(len(y)):
            for column in range(len(counts)):
                p = spread.log_softmax(1)
                p[[a, b], column] = p[[b, a], column]
                swapped.append(p)
    metric = build(ranked, output)
    metric.update(spread, y)
    best = least(ranked, output, y, swapped)
    assert metric.smallest() <= best * (1 + 1e-9)


def test_smallest_error_of_rankings() -> None:
    """Labels: the two samples at the border change places."""
    y = torch.tensor([[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).T
    output = Target("multi-label", 2)
    right = torch.arange(5.0, 0, -1)[:, None].repeat(1, 2)
    guesses = []
    for column, border in ((0, 2), (1, 0)):
        p = right.clone()
        p[[border, border + 1], column] = p[[border + 1, border], column]
        guesses.append(p)
    for cls in (metrics.AUROCError, metrics.AveragePrecisionError):
        metric = build(cls, output)
        metric.update(right, y)
        assert metric.compute() == pytest.approx(0, abs=1e-12)
        assert metric.smallest() == pytest.approx(least(cls, output, y, guesses))
    two = build(metrics.AUROCError, Target("classification", 2))
    two.update(torch.zeros(7, 2), torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert two.smallest() == pytest.approx(1 / 12)
    assert build(metrics.MeanAbsoluteError, Target("regression", 1)).smallest() is None


@pytest.mark.parametrize("scale", [1e-200, 1e-13, 1.0, 1e13, 1e200])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_numeric_metrics_do_not_depend_on_the_unit(scale: float, offset: float) -> None:
    """Squares of 1e200 are infinite, those of 1e-200 are 0, and a large mean hides both."""
    p, y = (t.double() for t in numbers(2, 8))
    moved_p, moved_y = (p + offset) * scale, (y + offset) * scale
    output = Target("dense", 2, (8,))
    for cls, unit in (
        (metrics.MeanAbsoluteError, scale),
        (metrics.RootMeanSquaredError, scale),
        (metrics.R2Error, 1.0),
    ):
        wanted = score(cls, output, p, y)
        assert score(cls, output, moved_p, moved_y) / unit == pytest.approx(wanted, rel=1e-6)
    if not offset:
        wanted = score(metrics.RelativeL2Error, output, p, y)
        far = torch.tensor([scale, 1 / scale], dtype=torch.float64)[:, None]
        for unit in (scale, far):
            found = score(metrics.RelativeL2Error, output, p * unit, y * unit)
            assert found == pytest.approx(wanted, rel=1e-12)


def test_rmse_of_batches_whose_errors_differ_by_all_a_float_has() -> None:
    output = Target("regression", 1)
    p = torch.tensor([[1e-200], [3e200], [0.0], [4e200]], dtype=torch.float64)
    found = score(metrics.RootMeanSquaredError, output, p, torch.zeros_like(p))
    assert found == pytest.approx(2.5e200)


def test_a_label_of_zeros_has_no_relative_error() -> None:
    output = Target("dense", 1, (4,))
    p, y = torch.ones(3, 1, 4), torch.zeros(3, 1, 4)
    y[0] = 2.0
    assert score(metrics.RelativeL2Error, output, p, y) == pytest.approx(0.5)
    assert math.isnan(score(metrics.RelativeL2Error, output, p[1:], y[1:]))


@pytest.mark.parametrize("value", [0.1, 1.7e9, 1e-200])
def test_r2_of_constant_labels_is_undefined(value: float) -> None:
    y = torch.full((7, 1), value, dtype=torch.float64)
    assert math.isnan(score(metrics.R2Error, Target("regression", 1), y * 1.5, y))
