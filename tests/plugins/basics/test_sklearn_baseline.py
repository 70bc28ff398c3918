"""The scikit-learn baseline: equality with scikit-learn, checkpoints, and its stage."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from xmodal.batch import Progress, Tokens
from xmodal.errors import UsageError
from xmodal.interfaces import (
    BackboneFacts,
    Context,
    Facts,
    FitData,
    Settings,
    Target,
    TaskFacts,
)
from xmodal_basics.embedders.flat import Flat
from xmodal_basics.fit import Fit, encoded
from xmodal_basics.identity import Identity
from xmodal_basics.sklearn_baseline import Sklearn
from xmodal_basics.sklearn_models import LinearModel, ridge

NONE: Any = SimpleNamespace()
NAN = float("nan")


def context(shape: tuple[int, ...], output: Target, levels: tuple[int, ...] = ()) -> Context:
    task = TaskFacts("toy", shape, output, {"train": 40}, levels)
    facts = Facts(task, Identity.describe(Settings(), NONE), grid=(1,))
    return Context(facts, torch.Generator().manual_seed(0), store=NONE, output=output)


def build(
    shape: tuple[int, ...], output: Target, levels: tuple[int, ...] = (), **settings: Any
) -> Sklearn:
    return Sklearn(Sklearn.Config(**settings), context(shape, output, levels))


def tokens(x: Tensor) -> Tokens:
    return Tokens(x.flatten(1)[:, None], (1,))


def fit(predictor: Sklearn, x_NF: Tensor, y: Tensor) -> None:
    predictor.fit(FitData(x_NF, y, x_NF[:0], y[:0]))


def survives(predictor: Sklearn, fresh: Sklearn, x: Tensor) -> None:
    """A checkpoint restores the predictions bit for bit."""
    fresh.load_state_dict(predictor.state_dict())
    assert torch.equal(fresh(tokens(x)), predictor(tokens(x)))


@pytest.mark.parametrize("n", [30, 200])
def test_ridge_in_the_basis_is_ridge(n: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(n, 2, 6, 6), torch.randn(n, 3)
    output = Target("regression", 3)
    predictor = build((2, 6, 6), output, alphas=(10.0,))
    fit(predictor, x.flatten(1), y)
    rows = x.flatten(1).double()
    centred = rows - rows.mean(0)
    scale = centred.square().mean().sqrt()
    expected = Ridge(10.0).fit(centred / scale, y.double()).predict(centred / scale)
    np.testing.assert_allclose(predictor(tokens(x)).numpy(), expected, atol=1e-4)
    survives(predictor, build((2, 6, 6), output), x)


def test_dense_ridge_is_fast_and_shaped() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3, 40, 40)
    y = x.sum(1, keepdim=True)
    output = Target("dense", 1, (40, 40))
    predictor = build((3, 40, 40), output)
    start = time.perf_counter()
    fit(predictor, x.flatten(1), y)
    assert time.perf_counter() - start < 30
    assert predictor(tokens(x)).shape == (200, 1, 40, 40)
    assert not predictor.zero_one


def test_dense_binary_labels_give_log_odds_and_ignore_unknown_pixels() -> None:
    torch.manual_seed(0)
    x = torch.randn(80, 1, 3, 3)
    y = (x > 0).float()
    labels = y.clone()
    labels[0, 0, 0, 0] = NAN
    predictor = build((1, 3, 3), Target("dense", 1, (3, 3)))
    fit(predictor, x.flatten(1), labels)
    assert predictor.zero_one
    assert ((predictor(tokens(x)) > 0) == (y > 0)).float().mean() > 0.9
    survives(predictor, build((1, 3, 3), Target("dense", 1, (3, 3))), x)


@pytest.mark.parametrize("k", [2, 4])
def test_logistic_regression(k: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(90, 1, 20), torch.arange(90) % k
    x[:, 0, 0] += y
    output = Target("classification", k)
    predictor = build((1, 20), output)
    assert predictor.estimator == "logistic"
    fit(predictor, x.flatten(1), y)
    rows = x.flatten(1).double()
    rows = rows - rows.mean(0)
    rows = rows / rows.square().mean().sqrt()
    expected = LogisticRegression(max_iter=1000).fit(rows, y).predict_log_proba(rows)
    np.testing.assert_allclose(predictor(tokens(x)).numpy(), expected, atol=2e-3)
    survives(predictor, build((1, 20), output), x)


def test_classes_and_labels_without_examples() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 1, 8)
    predictor = build((1, 8), Target("classification", 5))
    fit(predictor, x.flatten(1), torch.arange(40) % 2 * 3)  # classes 0 and 3 only
    p = predictor(tokens(x)).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(40))
    assert p[:, [1, 2, 4]].max() < 1e-4
    labels = torch.stack([torch.arange(40) % 2, torch.zeros(40), torch.ones(40)], 1).float()
    for estimator in ("logistic", "hist-gradient-boosting"):
        predictor = build((1, 8), Target("multi-label", 3), estimator=estimator)
        fit(predictor, x.flatten(1), labels)
        logits = predictor(tokens(x))
        assert logits.shape == (40, 3)
        assert (logits[:, 1] < -10).all()
        assert (logits[:, 2] > 10).all()


def table() -> tuple[Tensor, Tensor, tuple[int, ...]]:
    torch.manual_seed(0)
    x = torch.randn(120, 3)
    x[:, 1] = torch.randint(4, (120,))
    y = ((x[:, 1] == 2) | (x[:, 0] > 1)).long()
    x[::7, 0] = NAN
    x[::11, 1] = -1
    return x, y, (0, 4, 0)


def test_trees_are_scikit_learns_and_grow_again_after_loading() -> None:
    x, y, levels = table()
    output = Target("classification", 2)
    predictor = build((3,), output, levels, iterations=20)
    assert predictor.estimator == "hist-gradient-boosting"
    fit(predictor, x, y)
    model = HistGradientBoostingClassifier(
        max_iter=20, categorical_features=[False, True, False], random_state=predictor.seed
    ).fit(x.numpy(), y.numpy())
    expected = np.log(model.predict_proba(x.numpy()))
    np.testing.assert_allclose(predictor(tokens(x)).numpy(), expected, atol=1e-5)
    survives(predictor, build((3,), output, levels, iterations=20), x)


def test_boosted_regression_has_a_column_for_each_number() -> None:
    x, _, levels = table()
    y = torch.stack([x[:, 2], torch.full((120,), 4.0)], 1)
    predictor = build((3,), Target("regression", 2), levels, iterations=20)
    fit(predictor, x, y)
    got = predictor(tokens(x))
    assert got.shape == (120, 2)
    assert torch.equal(got[:, 1], y[:, 1])
    assert (got[:, 0] - y[:, 0]).square().mean() < 0.1


@pytest.mark.parametrize("estimator", ["logistic", "hist-gradient-boosting"])
def test_tables_with_missing_values_and_categories(estimator: str) -> None:
    x, y, levels = table()
    predictor = build((3,), Target("classification", 2), levels, estimator=estimator)
    fit(predictor, x, y)
    p = predictor(tokens(x))
    assert p.isfinite().all()
    assert (p.argmax(1) == y).float().mean() > 0.85


def test_unfitted_predictor_says_so() -> None:
    for shape, x in (((1, 8), torch.randn(2, 1, 8)), ((8,), torch.randn(2, 8))):
        with pytest.raises(UsageError, match="stage 'fit'"):
            build(shape, Target("classification", 2))(tokens(x))


def test_problems() -> None:
    def problems(output: Target, shape: tuple[int, ...] = (1, 8), **settings: Any) -> list[str]:
        facts = context(shape, output).facts
        return list(Sklearn.problems(Sklearn.Config(**settings), facts))

    assert not problems(Target("classification", 2))
    assert "cannot predict" in problems(Target("classification", 2), estimator="ridge")[0]
    assert "cannot predict" in problems(Target("regression", 1), estimator="logistic")[0]
    assert "GB" in problems(Target("regression", 1), (57, 1024, 1024))[0]


class Affine(nn.Module):
    """y = x * std + mean, as an unnormalising decoder."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(shape))
        self.register_buffer("std", torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


def test_encoding_inverts_affine_decoding_only() -> None:
    decode, y = Affine((1, 3, 3)), torch.randn(5, 1, 3, 3)
    torch.testing.assert_close(decode(encoded(decode, y)), y)
    assert encoded(nn.Identity(), y) is y
    with pytest.raises(UsageError, match="invert"):
        encoded(nn.Sigmoid(), torch.rand(5, 1, 3, 3))


def test_stage_fits_the_whole_model() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 1, 4, 4)
    y = 3 * x + 10
    output = Target("dense", 1, (4, 4))
    around = context((1, 4, 4), output)
    predictor = Sklearn(Sklearn.Config(), around)
    model = nn.Module()
    model.embedder = Flat(Settings(), around)
    model.backbone = Identity(Settings(), around)
    model.predictor = predictor
    model.decode = Affine((1, 4, 4))
    session: Any = SimpleNamespace(
        model=model,
        data=SimpleNamespace(train=TensorDataset(x, y), raw=None, weights_of=lambda dataset: None),
        evaluation_split=lambda: TensorDataset(x, y),
        device=torch.device("cpu"),
        workers=0,
        interruptible=nullcontext,
        autocast=nullcontext,
    )
    stage = Fit(Fit.Config(), around)
    stage.begin(session)
    got = model.decode(predictor(model.backbone(model.embedder(x))))
    torch.testing.assert_close(got, y, rtol=0.02, atol=0.1)
    assert stage.steps_per_epoch(session) == 0
    assert stage.optimizer([]) is None
    assert not list(stage.steps(session, Progress(0, 0, 1, 0, 0)))
    model.predictor = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="sklearn"):
        stage.begin(session)


def test_identity_takes_any_width() -> None:
    assert Identity.describe(Settings(), NONE) == BackboneFacts("identity", "any", 0, 0)
    backbone = Identity(Settings(), context((3,), Target("regression", 1)))
    assert backbone(tokens(torch.ones(2, 3))).x_BND.shape == (2, 1, 3)
    assert backbone.embed(torch.ones(2, 3, 4, 4)).x_BND.shape == (2, 1, 48)


def test_a_number_that_never_varies_has_no_scale() -> None:
    """The mean of equal numbers is off by rounding, and division by that would be a number."""
    x = np.random.default_rng(0).normal(size=(30, 3))
    x[:, 2] = 0.1
    assert 0 < np.abs(x[:, 2] - x[:, 2].sum() / 30).max() < 1e-15
    model = LinearModel()
    model.fit(x.copy(), lambda z_NR: ridge(z_NR, x[:, :1], (1.0,)), 512, own_scales=True, seed=0)
    assert model.scale_P[2] == 1.0
