"""The predictor ``forest`` against scikit-learn's own forests; its checkpoints and limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Facts, FitData, Target, TaskFacts
from xmodal.testing import check, tiny_context
from xmodal_basics import forest as forest_module
from xmodal_basics.forest import READ, Forest
from xmodal_basics.identity import Identity
from xmodal_basics.series_features import described, series_in
from xmodal_basics.tree_arrays import TreeArrays

NAN = float("nan")


def context(shape: tuple[int, ...], output: Target, train: int = 40) -> Context:
    task = TaskFacts("toy", shape, output, {"train": train})
    return tiny_context(Facts(task, Identity.describe(None, None), grid=(1,)))  # type: ignore[arg-type]


def fitted(shape: tuple[int, ...], output: Target, x: Tensor, y: Tensor, **settings: Any) -> Forest:
    settings = {"trees": 10, "features": "both", **settings}
    forest = Forest(Forest.Config(**settings), context(shape, output))
    forest.fit(FitData(x.flatten(1), y, x.flatten(1)[:0], y[:0]))
    return forest


def predicted(forest: Forest, x: Tensor) -> Tensor:
    return forest(Tokens(x.flatten(1)[:, None], (1,)))


@pytest.mark.parametrize("missing", [False, True])
def test_arrays_predict_what_scikit_learn_predicts(missing: bool) -> None:
    torch.manual_seed(0)
    x, more = torch.randn(60, 5), torch.randn(200, 5)
    if missing:
        x[::3, 2] = more[::4, 2] = NAN
    y = np.arange(60) % 3
    model = ExtraTreesClassifier(20, random_state=0).fit(x, y)
    arrays = TreeArrays()
    arrays.keep(model.estimators_)
    assert arrays.value_UK.shape == (3, 3)  # pure leaves say one of three things
    found = arrays(more)
    np.testing.assert_allclose(found, model.predict_proba(more.numpy()), atol=1e-12)
    # A number on the threshold itself goes left there and here.
    at = torch.zeros(1, 5)
    at[0, arrays.feature_M[0]] = arrays.threshold_M[0].float()
    np.testing.assert_allclose(arrays(at), model.predict_proba(at.numpy()), atol=1e-12)


def test_a_series_is_read_with_its_description() -> None:
    """By hand, with scikit-learn alone."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 2, 30), torch.arange(40) % 2 * 2  # class 1 of three is never seen
    x[y == 2] *= 3
    forest = fitted((2, 30), Target("classification", 3), x, y)
    rows = np.concatenate([x.flatten(1), described(x.numpy())], axis=1)
    model = ExtraTreesClassifier(10, random_state=forest.seed).fit(rows, y)
    more = torch.randn(50, 2, 30)
    rows = np.concatenate([more.flatten(1), described(more.numpy())], axis=1)
    expected = model.predict_proba(rows)
    found = predicted(forest, more).exp()
    np.testing.assert_allclose(found[:, [0, 2]], expected.clip(1e-6), rtol=1e-4)
    torch.testing.assert_close(found[:, 1], torch.full((50,), 1e-6))


@pytest.mark.parametrize("what", ["signs", "deviation"])
def test_what_the_trees_read_is_chosen_on_validation(what: str) -> None:
    """Among 400 points a deviation is hard to find; signs that alternate are seen in few points."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 1, 400), torch.arange(200) % 2
    if what == "deviation":
        x[y == 1] *= 1.1
    else:
        x[:, 0, :60] += (4.0 * y[:, None] - 2.0) * torch.tensor([1.0, -1.0]).repeat(30)
    output = Target("classification", 2)
    forest = Forest(Forest.Config(trees=20), context((1, 400), output))
    rows = x.flatten(1)
    forest.fit(FitData(rows[:100], y[:100], rows[100:], y[100:]))
    errors = {}
    for features in READ:
        one = fitted((1, 400), output, x[:100], y[:100], features=features, trees=20)
        p_B = predicted(one, x[100:])[:, 1].exp()
        errors[features] = (p_B - y[100:]).square().mean().item()
    assert forest.chosen() == {"features": min(errors, key=lambda name: errors[name])}
    assert (errors["summary"] < errors["both"]) == (what == "deviation")
    other = Forest(Forest.Config(trees=20), context((1, 400), output))
    other.load_state_dict(forest.state_dict())
    assert torch.equal(predicted(other, x), predicted(forest, x))


def test_numbers_have_no_unit_and_unknown_ones_say_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(80, 4)
    y = torch.stack([x[:, 0], x[:, 1]], dim=1)
    y[3, 0] = NAN
    output = Target("regression", 2)
    one = predicted(fitted((4,), output, x, y), x)
    other = predicted(fitted((4,), output, x, y * torch.tensor([1.0, 1e6])), x)
    torch.testing.assert_close(other / torch.tensor([1.0, 1e6]), one, rtol=1e-4, atol=1e-5)
    assert (one[:, 1] - y[:, 1]).square().mean() < 0.5 * y[:, 1].var()
    # One number, by hand.
    alone = fitted((4,), Target("regression", 1), x, y[:, 1:])
    label = y[:, 1].double().numpy()
    model = ExtraTreesRegressor(
        10, max_features=1.0, min_samples_split=5, random_state=alone.seed
    ).fit(x, (label - label.mean()) / label.std())
    expected = model.predict(x.numpy()) * label.std() + label.mean()
    np.testing.assert_allclose(predicted(alone, x)[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_labels_get_log_odds() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 1, 12)
    y = torch.stack([(x[:, 0, 0] > 0), torch.ones(60), torch.zeros(60)], dim=1).float()
    y[:5, 0] = NAN
    found = predicted(fitted((1, 12), Target("multi-label", 3), x, y), x).sigmoid()
    assert ((found[5:, 0] > 0.5) == (y[5:, 0] > 0.5)).all()
    assert found[:, 1].min() > 0.999
    assert found[:, 2].max() < 0.001


def test_units_of_channels_do_not_matter() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 2, 20), torch.arange(60) % 2
    x[y == 1, 1] *= 2
    more, unit = torch.randn(40, 2, 20), torch.tensor([1.0, 1024.0]).view(1, 2, 1)
    output = Target("classification", 2)
    one = predicted(fitted((2, 20), output, x, y), more)
    other = predicted(fitted((2, 20), output, x * unit, y), more * unit)
    assert (one - other).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 50), (3, 50)),
        ((1, 96, 101), (96, 101)),
        ((2, 8, 52), (16, 52)),
        ((3, 64, 64), None),
        ((7,), None),
    ],
)
def test_what_a_series_is(shape: tuple[int, ...], expected: tuple[int, int] | None) -> None:
    assert series_in(shape) == expected


def test_many_samples_are_drawn_and_leaves_are_bounded() -> None:
    x, y = torch.randn(200, 6), torch.arange(200) % 2
    small = fitted((6,), Target("classification", 2), x, y, samples=20, trees=3)
    assert len(small.trees.root_T) == 3
    assert len(small.trees.left_M) <= 3 * 2 * 20
    facts = context((4, 1000), Target("multi-label", 919), 70_000).facts
    assert list(Forest.problems(Forest.Config(), facts)) == [
        "the forest would need 29 GB for its leaves with 919 labels each (at most 2)"
    ]
    assert list(
        Forest.problems(
            Forest.Config(features="summary"), context((6,), Target("classification", 2)).facts
        )
    )


def test_contract() -> None:
    check(Forest, {"trees": 5})


def test_quantiles_are_not_tried_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what ``auto`` says of a task that quantiles alone can solve: which half has the spike."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 1, 64), torch.arange(60) % 2
    output, chosen = Target("classification", 2), []
    x[torch.arange(60), 0, torch.randint(32, (60,)) + 32 * y] += 9
    for most in (100, 20_000):
        monkeypatch.setattr(forest_module, "MOST_QUANTILES", most)
        forest = Forest(Forest.Config(trees=20), context((1, 64), output))
        forest.fit(FitData(x[:40].flatten(1), y[:40], x[40:].flatten(1), y[40:]))
        chosen.append(forest.chosen()["features"])
    assert chosen[0] != "intervals"
    assert chosen[1] == "intervals"
