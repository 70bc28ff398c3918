"""XGBoost, LightGBM and CatBoost: equality with their own estimators, odd labels, checkpoints."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import xmodal
from xmodal.data.store import Store
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import FitData, Target
from xmodal.testing.running import StopAt, assert_same, weights
from xmodal_rivals import boosted, boosting, packages

from .tables import LEVELS, build, context, data, predict, table

BOOSTED = [boosting.XGBoost, boosting.LightGBM, boosting.CatBoost]
TWO, THREE = Target("classification", 2), Target("classification", 3)


def needs(component: type[boosting.Boosted]) -> None:
    if importlib.util.find_spec(component.package) is None:
        pytest.skip(f"{component.package} is not installed")


def of_three(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x[:, 2] > 1, 2, y)


def codes(x: Tensor) -> Any:
    """The table as a frame with a column of categories."""
    frame = pd.DataFrame(x.numpy(), columns=["a", "b", "c"])
    kind = pd.CategoricalDtype(range(LEVELS[1]))
    frame["b"] = frame["b"].where(frame["b"] >= 0).astype("Int64").astype(kind)
    return frame


@pytest.mark.parametrize("classes", [2, 3])
def test_xgboost_is_its_own_estimator(classes: int) -> None:
    xgboost = pytest.importorskip("xgboost")
    given = data(of_three if classes == 3 else None)
    predictor = build(boosting.XGBoost, Target("classification", classes), rounds=40, patience=5)
    predictor.fit(given)
    model = xgboost.XGBClassifier(
        n_estimators=40, early_stopping_rounds=5, random_state=predictor.seed, tree_method="hist",
        enable_categorical=True, learning_rate=0.05, max_depth=4, subsample=0.8,
        colsample_bytree=1.0, n_jobs=1,
    )  # fmt: skip
    more = codes(given.validation_x_NF), given.validation_y.numpy()
    model.fit(codes(given.x_NF), given.y.numpy(), eval_set=[more], verbose=False)
    expected = model.predict_proba(codes(given.x_NF))
    np.testing.assert_allclose(predict(predictor, given.x_NF).exp(), expected, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_lightgbm_is_its_own_estimator(classes: int) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    given = data(of_three if classes == 3 else None)
    predictor = build(boosting.LightGBM, Target("classification", classes), rounds=40, patience=5)
    predictor.fit(given)
    model = lightgbm.LGBMClassifier(
        n_estimators=40, seed=predictor.seed, deterministic=True, force_row_wise=True,
        learning_rate=0.05, subsample=0.8, subsample_freq=1, colsample_bytree=1.0, verbosity=-1,
        min_data_per_group=10, max_cat_to_onehot=8, n_jobs=1,
    )  # fmt: skip
    model.fit(
        codes(given.x_NF), given.y.numpy(),
        eval_set=[(codes(given.validation_x_NF), given.validation_y.numpy())],
        callbacks=[lightgbm.early_stopping(5, verbose=False)],
    )  # fmt: skip
    expected = model.predict_proba(codes(given.x_NF))
    np.testing.assert_allclose(predict(predictor, given.x_NF).exp(), expected, atol=1e-6)


def test_catboost_is_its_own_estimator() -> None:
    catboost = pytest.importorskip("catboost")
    given = data(of_three)
    predictor = build(boosting.CatBoost, THREE, rounds=20, patience=5)
    predictor.fit(given)

    def frame(x: Tensor) -> Any:
        table = pd.DataFrame(x.numpy()[:, [0, 2]])
        table["category"] = x[:, 1].long().numpy().astype(str)
        return table

    model = catboost.CatBoostClassifier(
        iterations=20, od_type="Iter", od_wait=5, random_seed=predictor.seed, learning_rate=0.05,
        bootstrap_type="Bernoulli", subsample=0.8, boosting_type="Plain", thread_count=1,
        allow_writing_files=False, logging_level="Silent", cat_features=["category"],
    )  # fmt: skip
    more = frame(given.validation_x_NF), given.validation_y.numpy()
    model.fit(frame(given.x_NF), given.y.numpy(), eval_set=more, use_best_model=True)
    expected = model.predict_proba(frame(given.x_NF))
    np.testing.assert_allclose(predict(predictor, given.x_NF).exp(), expected, atol=1e-6)


@pytest.mark.parametrize("component", BOOSTED)
def test_learns_and_comes_back_from_its_tensors(component: type[boosting.Boosted]) -> None:
    needs(component)
    given = data()
    predictor = build(component, TWO, rounds=60)
    predictor.fit(given)
    log_p = predict(predictor, given.validation_x_NF)
    assert (log_p.argmax(1) == given.validation_y).float().mean() > 0.8
    fresh = build(component, TWO, rounds=60)
    fresh.load_state_dict(predictor.state_dict())
    assert torch.equal(predict(fresh, given.validation_x_NF), log_p)
    assert {value.dtype for value in predictor.state_dict().values()} <= {
        torch.uint8,
        torch.int64,
        torch.float32,
    }


@pytest.mark.parametrize("component", BOOSTED)
def test_labels_that_are_rare_constant_or_unknown(component: type[boosting.Boosted]) -> None:
    needs(component)
    x, _ = table()
    absent = build(component, Target("classification", 4), rounds=5)
    absent.fit(data(lambda x, y: 3 * y))  # classes 0 and 3 only
    p = predict(absent, x).exp()
    torch.testing.assert_close(p[:, [0, 3]].sum(1), torch.ones(120))
    assert p[:, [1, 2]].max() < 1e-5
    single = build(component, TWO, rounds=5)
    single.fit(data(lambda x, y: torch.ones_like(y)))
    assert (predict(single, x).argmax(1) == 1).all()

    def labels(x: Tensor, y: Tensor) -> Tensor:
        columns = torch.stack([y, torch.zeros_like(y), torch.ones_like(y)], 1).float()
        columns[::5, 0] = float("nan")
        return columns

    several = build(component, Target("multi-label", 3), rounds=30)
    several.fit(data(labels))
    logits = predict(several, x)
    assert (logits[:, 1] < -10).all()
    assert (logits[:, 2] > 10).all()
    assert ((logits[:, 0] > 0) == data().y.bool()).float().mean() > 0.8
    numbers = build(component, Target("regression", 2), rounds=30)
    numbers.fit(data(lambda x, y: torch.stack([x[:, 2], torch.full((len(x),), 4.0)], 1)))
    y = predict(numbers, x)
    assert (y[:, 1] == 4).all()
    assert (y[:, 0] - x[:, 2]).square().mean() < 0.5 * x[:, 2].square().mean()


@pytest.mark.parametrize("component", BOOSTED)
def test_the_unit_of_the_labels_changes_nothing(component: type[boosting.Boosted]) -> None:
    """XGBoost makes no split that gains less than 1e-6, in whatever unit."""
    needs(component)

    def fitted(scale: float, offset: float) -> Tensor:
        given = data(lambda x, y: offset + scale * (x[:, 2:] + y[:, None]))
        predictor = build(component, Target("regression", 1), rounds=60)
        predictor.fit(given)
        return (predict(predictor, given.validation_x_NF).double() - offset) / scale

    plain = fitted(1.0, 0.0)
    assert plain.std() > 0.5
    for scale, offset in ((1e-6, 0.0), (1e6, 0.0), (1024.0, 2.0**20)):
        torch.testing.assert_close(fitted(scale, offset), plain, atol=0.05, rtol=0)


@pytest.mark.parametrize("component", BOOSTED)
def test_what_a_library_cannot_do_is_one_line(component: type[boosting.Boosted]) -> None:
    needs(component)
    for wrong in ({"max_dpth": 3}, {"max_depth": "deep"}):
        predictor = build(component, TWO, rounds=3, parameters=wrong)
        with pytest.raises(UsageError, match=r"max_dpth|max_depth") as caught:
            predictor.fit(data())
        assert "\n" not in str(caught.value)
    x, y = torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 0.0]]), torch.arange(2)
    two = build(component, TWO, rounds=3)
    two.fit(FitData(x, y, x[:0], y[:0]))
    assert predict(two, x).isfinite().all()


@pytest.mark.parametrize("component", BOOSTED)
def test_a_product_of_the_only_two_columns_is_learned(component: type[boosting.Boosted]) -> None:
    """A tree that sees one of two columns never learns it."""
    needs(component)
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    made = context(TWO, shape=(2,), levels=(0, 0))
    predictor: Any = component(component.Config(rounds=100), made)
    predictor.fit(FitData(x[:400], y[:400], x[400:500], y[400:500], x[:0]))
    wrong = predict(predictor, x[500:]).argmax(1) != y[500:]
    assert wrong.float().mean() < 0.1


@pytest.mark.parametrize(("columns", "share"), [(9, 1.0), (10, 0.8)])
def test_only_of_many_columns_some_are_drawn(columns: int, share: float) -> None:
    predictor = build(boosting.XGBoost, TWO)
    split = np.zeros((5, columns)), np.zeros(5)
    assert predictor.parameters_of({}, split)["colsample_bytree"] == share
    assert predictor.parameters_of({"colsample_bytree": 0.5}, split)["colsample_bytree"] == 0.5


def test_trials_choose_by_validation_loss() -> None:
    pytest.importorskip("lightgbm")
    given = data()
    losses = []
    for trials in (0, 8):
        predictor = build(boosting.LightGBM, TWO, rounds=30, trials=trials)
        predictor.fit(given)
        log_p = predict(predictor, given.validation_x_NF)
        losses.append(float(torch.nn.functional.nll_loss(log_p, given.validation_y)))
    assert losses[1] <= losses[0]  # the usual settings are the first trial


def test_ranges_are_kept_and_logarithms_are_even() -> None:
    random = np.random.default_rng(0)
    draws = [boosting.Range(0.01, 100, log=True).draw(random) for _ in range(2000)]
    assert min(draws) >= 0.01
    assert max(draws) <= 100
    assert abs(np.mean(np.array(draws) < 1) - 0.5) < 0.05
    assert {boosting.Range(1, 3, whole=True).draw(random) for _ in range(50)} == {1, 2, 3}


def test_what_they_cannot_do_is_said_before_a_run() -> None:
    def problems(output: Target, **about: Any) -> list[str]:
        facts = context(output, **about).facts
        return list(boosting.XGBoost.problems(boosted.BoostingSettings(), facts))

    assert problems(TWO) == []
    (dense,) = problems(Target("dense", 1, (9,)), shape=(1, 9), levels=())
    assert dense == "xgboost predicts one number per model, not maps or series"
    (many,) = problems(Target("multi-label", 919), shape=(4, 1000), levels=())
    assert "919" in many
    (large,) = problems(TWO, shape=(3, 64, 64), levels=(), samples=10**6)
    assert "98 GB" in large


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    (line,) = boosting.XGBoost.missing(boosted.BoostingSettings(), Store(tmp_path))
    assert line == ("needs the package 'xgboost'; install it: pip install 'xmodal[rivals-tables]'")
    with pytest.raises(DataError, match="needs the package 'xgboost'"):
        xmodal.run("methods/xgboost", "tasks/openml/balance-scale", directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("component", BOOSTED)
def test_a_run_goes_on_after_a_crash_and_its_model_comes_back(
    component: type[boosting.Boosted], tmp_path: Path
) -> None:
    needs(component)
    recipe = (f"methods/{component.package}", "tasks/openml/balance-scale")
    options: Any = {"overrides": ["predictor.rounds=10"], "report": False}
    one = xmodal.run(*recipe, directory=tmp_path / "one", **options)
    with pytest.raises(RuntimeError, match="crash"):
        xmodal.run(*recipe, directory=tmp_path / "two", observer=StopAt(0), **options)
    two = xmodal.run(*recipe, directory=tmp_path / "two", **options)
    assert_same(weights(one.run), weights(two.run))
    x = np.array([[1, 2, 3, 4], [5, 1, 1, 1]], dtype=np.float32)
    first, second = (xmodal.load(done.run.path).outputs(x) for done in (one, two))
    assert torch.equal(first, second)
    assert first.argmax(1).tolist() == [2, 0]
