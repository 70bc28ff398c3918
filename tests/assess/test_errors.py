"""The error of each sample, against a loop in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from xmodal.assess import sample_errors, worst_and_typical
from xmodal.facts import Target


def test_classes_are_judged_by_the_probability_of_the_true_one() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0], [math.nan, 0.0]])
    found = sample_errors(logits, torch.tensor([0, 1, 0, 0]), Target("classification", 2))
    expected = [math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.exp(3))]
    assert found[:3].tolist() == pytest.approx(expected)
    assert found[3] == math.inf


def test_several_labels_leave_unknown_ones_out() -> None:
    odds = torch.tensor([[0.0, 5.0], [2.0, 2.0]])
    y = torch.tensor([[1.0, math.nan], [1.0, 0.0]])
    found = sample_errors(odds, y, Target("multi-label", 2))
    expected = [math.log(2), (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2]
    assert found.tolist() == pytest.approx(expected)


def test_numbers_count_in_units_of_their_deviation() -> None:
    y = torch.tensor([[0.0, 0.0], [2.0, 200.0]])  # deviations 1 and 100
    said = torch.tensor([[1.0, 50.0], [2.0, 0.0]])
    found = sample_errors(said, y, Target("regression", 2))
    assert found.tolist() == pytest.approx([(1 + 0.5) / 2, (0 + 2) / 2])


def test_fields_are_relative_even_where_squares_are_infinite() -> None:
    y = 1e200 * torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]], dtype=torch.float64)
    said = y + 1e200 * torch.tensor([[[0.0, 1.0]], [[2.0, 0.0]]], dtype=torch.float64)
    found = sample_errors(said, y, Target("dense", 1, (2,)))
    assert found.tolist() == pytest.approx([1 / 5, 2.0])


def test_the_worst_come_first_and_typical_ones_are_about_the_median() -> None:
    error = torch.tensor([0.5, 9.0, 0.1, 3.0, math.inf, 1.0, 2.0])
    worst, typical = worst_and_typical(error, 3)
    assert worst.tolist() == [4, 1, 3]
    assert error[typical].tolist() == [1.0, 2.0, 3.0]
