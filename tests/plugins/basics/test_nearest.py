"""The predictor ``nearest`` against scikit-learn's neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.facts import TaskFacts
from xmodal.interfaces import FitData, Target
from xmodal.plugins import registry
from xmodal.recipe.cheap import cheap_methods
from xmodal.testing import check, tiny_context, tiny_facts
from xmodal_basics.nearest import LEAST, Nearest

GENERATOR = torch.Generator().manual_seed(0)
FIELD = Target("dense", 2, (5,))


def fitted(
    output: Target, x: Tensor, y: Tensor, neighbours: tuple[int, ...], train: int = 40
) -> Nearest:
    context = replace(tiny_context(tiny_facts("grid", output)), output=output)
    made = Nearest(Nearest.Config(neighbours=neighbours), context)
    rows = x.flatten(1)
    made.fit(FitData(rows[:train], y[:train], rows[train:], y[train:]))
    return made


def predicted(made: Nearest, x: Tensor) -> Tensor:
    found: Tensor = made(Tokens(x.flatten(1)[:, None], (1,)))
    return found


@pytest.mark.parametrize("k", [1, 4])
def test_fields_and_classes_as_in_scikit_learn(k: int) -> None:
    x = torch.randn(60, 3, 7, generator=GENERATOR)
    rows, y = x.flatten(1).numpy(), torch.randn(60, 2, 5, generator=GENERATOR)
    library = KNeighborsRegressor(k, algorithm="brute").fit(rows[:40], y[:40].flatten(1))
    found = predicted(fitted(FIELD, x, y, (k,)), x)
    np.testing.assert_allclose(found.flatten(1), library.predict(rows), atol=1e-5)
    classes = torch.randint(3, (60,), generator=GENERATOR)
    voters = KNeighborsClassifier(k, algorithm="brute").fit(rows[:40], classes[:40])
    found = predicted(fitted(Target("classification", 3), x, classes, (k,)), x).exp()
    np.testing.assert_allclose(found, voters.predict_proba(rows).clip(LEAST), atol=1e-6)


def test_validation_chooses_how_many() -> None:
    x = torch.rand(400, 1, 1, generator=GENERATOR)
    noise = 0.5 * torch.randn(400, 2, 5, generator=GENERATOR)
    y = x.view(-1, 1, 1) + noise
    made = fitted(FIELD, x, y, (1, 3, 20, 300), train=300)
    errors = []
    for k in (1, 3, 20, 300):
        library = KNeighborsRegressor(k).fit(x[:300].flatten(1), y[:300].flatten(1))
        wrong = library.predict(x[300:].flatten(1)) - y[300:].flatten(1).numpy()
        errors.append(np.square(wrong).mean())
    assert int(made.count) == (1, 3, 20, 300)[int(np.argmin(errors))] == 20
    assert int(fitted(FIELD, x, y, (1, 3), train=400).count) == 1  # nothing to choose by


def test_unknown_labels_and_masks() -> None:
    x = torch.arange(10.0).view(10, 1, 1)
    y = (x > 4.5).float().expand(10, 2, 5).clone()
    y[0, 0] = torch.nan
    made = fitted(FIELD, x, y, (2,), train=10)
    found = predicted(made, torch.tensor([[[0.1]], [[9.0]]]))
    low, high = torch.logit(torch.tensor([0.0, 1.0]), eps=LEAST)
    wanted = torch.stack([low, high]).view(2, 1, 1).expand(2, 2, 5)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_columns_of_a_table_count_alike() -> None:
    facts = tiny_facts("row", Target("regression", 1))
    task = replace(facts.task, shape=(2,), levels=(0, 3))
    made = Nearest(Nearest.Config(neighbours=(1,)), tiny_context(replace(facts, task=task)))
    x = torch.tensor([[0.0, 0.0], [1e6, 0.0], [0.0, 2.0], [1e6, -1.0]])
    y = torch.arange(4.0)[:, None]
    made.fit(FitData(x, y, x[:0], y[:0]))
    # The number is standardised: half a deviation is nearer than another level.
    probe = torch.tensor([[2e5, 0.0], [9e5, 0.0], [1e5, 2.0], [torch.nan, 2.0]])
    assert predicted(made, probe).flatten().tolist() == [0, 1, 2, 2]


def test_comparisons_of_fields_have_it_where_the_samples_can_be_kept() -> None:
    def found(train: int) -> list[str]:
        return cheap_methods(
            registry(), TaskFacts("f", (1, 64, 64), Target("dense", 1, (64, 64)), {"train": train})
        )

    assert "methods/nearest" in found(1000)
    assert "methods/nearest" not in found(1_000_000)


def test_contract() -> None:
    check(Nearest)
