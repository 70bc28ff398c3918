"""Scores of an estimator's numbers and fields: scikit-learn's, in any unit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, r2_score

from xmodal.data.in_memory import score_numbers

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("scale", [1e-200, 1e-13, 1.0, 1e200])
def test_r2_of_outputs_in_far_units(scale: float) -> None:
    y = DRAW.normal(size=(30, 2))
    found = y + DRAW.normal(size=y.shape) / 3
    weight = DRAW.uniform(size=30)
    unit = np.array([scale, 1 / scale])
    for weight_N in (None, weight):
        wanted = r2_score(y, found, sample_weight=weight_N)
        assert score_numbers(y * unit, found * unit, weight_N) == pytest.approx(wanted, rel=1e-12)


def test_fields_are_pooled_over_their_places() -> None:
    y = DRAW.normal(size=(6, 2, 3, 4))
    found = y + DRAW.normal(size=y.shape)
    weight = DRAW.uniform(size=6)
    flat, flat_found = (np.moveaxis(v, 1, -1).reshape(-1, 2) for v in (y, found))
    wanted = r2_score(flat, flat_found, sample_weight=np.repeat(weight, 12))
    assert score_numbers(y, found, weight) == pytest.approx(wanted, rel=1e-12)
    yes, guess = (y > 0).astype(float), (found > 0).astype(float)
    wanted = accuracy_score(yes.ravel(), guess.ravel(), sample_weight=np.repeat(weight, 24))
    assert score_numbers(yes, guess, weight, binary=True) == pytest.approx(wanted, rel=1e-12)
