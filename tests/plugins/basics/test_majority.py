"""The predictor ``majority``: frequencies and means, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import FitData, Target
from xmodal.testing import check, tiny_context, tiny_facts
from xmodal_basics.majority import Majority

NAN = float("nan")


def answer(y: Tensor, output: Target) -> Tensor:
    predictor = Majority(Majority.Config(), tiny_context(tiny_facts("row", output)))
    x_NF = torch.randn(len(y), 4)
    predictor.fit(FitData(x_NF, y, x_NF[:0], y[:0]))
    return predictor(Tokens(x_NF[:2, None], (1,)))


def test_classes_get_their_frequencies() -> None:
    found = answer(torch.tensor([2, 0, 2, 2]), Target("classification", 4))
    expected = torch.tensor([0.25, 1e-6, 0.75, 1e-6]).log().expand(2, 4)
    torch.testing.assert_close(found, expected)


def test_labels_get_the_log_odds_of_their_frequency() -> None:
    y = torch.tensor([[1.0, 0.0, NAN], [0.0, 0.0, 1.0], [1.0, 0.0, NAN], [1.0, 0.0, 0.0]])
    found = answer(y, Target("multi-label", 3))
    assert found[0].sigmoid().tolist() == pytest.approx([0.75, 1e-6, 0.5], abs=1e-7)


def test_numbers_and_fields_get_their_mean() -> None:
    y = torch.tensor([[1.0, NAN], [2.0, NAN], [6.0, NAN]])
    assert answer(y, Target("regression", 2)).tolist() == [[3.0, 0.0]] * 2
    fields = torch.randn(5, 1, 3, 4)
    found = answer(fields, Target("dense", 1, (3, 4)))
    torch.testing.assert_close(found, fields.mean(0).expand(2, 1, 3, 4))
    masks = torch.tensor([0.0, 1.0, 1.0, 1.0]).view(4, 1, 1)
    found = answer(masks, Target("dense", 1, (1,)))
    assert found.flatten().sigmoid().tolist() == pytest.approx([0.75] * 2)


def test_contract() -> None:
    check(Majority)
