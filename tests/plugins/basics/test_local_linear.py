"""The predictor ``local-linear`` against scikit-learn's Ridge on rows of cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.facts import TaskFacts
from xmodal.interfaces import FitData, Target
from xmodal.plugins import registry
from xmodal.recipe.cheap import cheap_methods
from xmodal.testing import check, tiny_context, tiny_facts
from xmodal_basics.local_linear import LocalLinear, trend

GENERATOR = torch.Generator().manual_seed(0)


def fitted(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """Predictions for the samples that it is fitted to."""
    facts = tiny_facts("grid", Target("dense", y.shape[1], tuple(y.shape[2:])))
    context = tiny_context(facts)
    predictor = LocalLinear(LocalLinear.Config(alpha=alpha), context)
    predictor.shape = tuple(x.shape[1:])
    x_NF = x.flatten(1)
    predictor.fit(FitData(x_NF, y, x_NF[:0], y[:0]))
    prediction: Tensor = predictor(Tokens(x_NF[:, None], (1,)))
    return prediction


@pytest.mark.parametrize("sides", [(6, 5), (30,)])
@pytest.mark.parametrize("alpha", [1e-3, 50.0])
def test_it_is_the_ridge_of_scikit_learn_on_cells(sides: tuple[int, ...], alpha: float) -> None:
    x = torch.randn(4, 3, *sides, generator=GENERATOR)
    x[:, 2] = 7  # says nothing
    y = torch.randn(4, 2, *sides, generator=GENERATOR) + x[:, :2].flip(1)
    y[1, 1, 2:] = torch.nan
    found = fitted(x, y, alpha)
    cells = trend(sides).T.numpy()
    rows = np.concatenate([np.c_[one.flatten(1).T.double().numpy(), cells] for one in x])
    for k in range(2):
        label = y[:, k].flatten().double().numpy()
        known = ~np.isnan(label)
        scaler = StandardScaler().fit(rows[known])
        ridge = Ridge(alpha).fit(scaler.transform(rows[known]), label[known])
        expected = ridge.predict(scaler.transform(rows))
        np.testing.assert_allclose(found[:, k].flatten(), expected, atol=2e-5)


def test_masks_get_log_odds_and_few_samples_are_read() -> None:
    x = torch.rand(4, 1, 5, 5, generator=GENERATOR)
    y = (x > 0.5).float()
    found = fitted(x, y, 1.0)
    assert found[y == 1].mean() > 1 > -1 > found[y == 0].mean()
    predictor = LocalLinear(LocalLinear.Config(), tiny_context(tiny_facts("grid")))
    assert predictor.most_samples == 256
    predictor.shape, predictor.output = (57, 512, 512), Target("dense", 1, (512, 512))
    assert predictor.most_samples == 16


def test_maps_of_pairs_have_a_cheap_answer_that_fits_memory() -> None:
    facts = TaskFacts("maps", (57, 512, 512), Target("dense", 1, (512, 512)), {"train": 3356})
    found = cheap_methods(registry(), facts)
    assert "methods/local-linear" in found
    assert "methods/baseline" not in found


def test_contract() -> None:
    check(LocalLinear)
