"""Verdicts in words: right on small, constant and undefined cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xmodal.assess import ScoreInterval, constant_answer, judge
from xmodal.assess.judge import Against, sentence
from xmodal.facts import Target
from xmodal_basics import metrics

from .test_resample import NUMBER, TWO, build, draw, guesses, zeros

N_V = ("N", "V")


def against_majority(prediction: Tensor, y: Tensor, train: Tensor, cls: Any = None) -> Any:
    answer = constant_answer([train], TWO, N_V)
    answers = {answer.words: answer.predictions(len(y))}
    metric = build(cls or metrics.ErrorRate)
    return judge(metric, prediction, y, answers, classes=N_V, name="error-rate")


def test_nothing_learned_is_said_with_what_it_does_instead() -> None:
    """44 of 45 predictions are N, 22 of 45 labels are."""
    y = torch.tensor([0] * 22 + [1] * 23)
    prediction = guesses([0] * 44 + [1])
    found = against_majority(prediction, y, torch.tensor([0] * 60 + [1] * 40))
    assert found.against[0].outcome == "open"
    assert found.sentence == (
        "Not clearly better than always guessing N (error-rate 0.489 [0.337, 0.642] against "
        "0.511): 44 of 45 predictions are N"
    )
    same = against_majority(guesses([0] * 45), y, torch.tensor([0] * 60 + [1] * 40))
    assert same.sentence == (
        "No better than always guessing N (error-rate 0.511 [0.358, 0.663] against 0.511): "
        "all 45 predictions are N"
    )


def test_clearly_better_and_clearly_worse() -> None:
    y = torch.tensor([0] * 30 + [1] * 70)
    right = guesses(y.tolist())
    better = against_majority(right, y, y)
    assert better.sentence.startswith("Clearly better than always guessing V (error-rate 0 [0, 0.0")
    worse = against_majority(1 - right, y, y)
    assert worse.sentence.startswith("Clearly worse than always guessing V (error-rate 1.00 [0.96")
    assert worse.against[0].metric == pytest.approx(0.3)


def test_few_samples_are_said_to_be_few() -> None:
    y = torch.tensor([0, 1, 1, 0])
    found = against_majority(guesses([0, 1, 1, 0]), y, y)
    assert found.against[0].outcome == "open"
    assert found.sentence.endswith("against 0.500). 4 test samples are too few to be sure")


def test_a_majority_that_is_right_everywhere_is_no_reproach() -> None:
    """All labels are N: predictions of N are right, and said to be no better."""
    found = against_majority(guesses([0] * 20), zeros(20), zeros(50))
    assert found.against[0].outcome == "equal"
    assert "predictions are" not in found.sentence


def test_a_metric_that_is_not_a_number_gives_no_score() -> None:
    found = against_majority(draw(20, 2), zeros(20), torch.tensor([0, 1]), metrics.AUROCError)
    assert (found.metric, found.interval, found.against[0].outcome) == (None, None, "undefined")
    assert found.sentence == "No score: error-rate is not a number on these test samples"


def test_a_constant_answer_has_an_area_of_a_half() -> None:
    y = torch.tensor([0, 1] * 40)
    prediction = torch.stack([torch.zeros(80), draw(80).float() + 3 * y], 1)
    found = against_majority(prediction, y, torch.tensor([0, 0, 1]), metrics.AUROCError)
    assert found.against[0].metric == 0.5
    assert found.against[0].outcome == "better"


class Accuracy(metrics.ErrorRate):
    """A score of which more is better."""

    better = "higher"

    def compute(self) -> float:
        return 1 - super().compute()


def test_the_direction_of_the_metric_counts() -> None:
    y = torch.tensor([0] * 30 + [1] * 70)
    right = guesses(y.tolist())
    assert against_majority(right, y, y, Accuracy).against[0].outcome == "better"
    assert against_majority(1 - right, y, y, Accuracy).against[0].outcome == "worse"


def test_the_sentence_begins_with_what_is_worst() -> None:
    rivals = [
        Against("always guessing N", 0.64, "better"),
        Against("boosted trees", 0.2, "behind"),
        Against("nothing", None, "undefined"),
    ]
    said = sentence("error-rate", 0.21, ScoreInterval(0.17, 0.26, 300), rivals)
    assert said == (
        "No better than boosted trees (error-rate 0.210 [0.170, 0.260] against 0.200); clearly "
        "better than always guessing N (0.640)"
    )


# --- the constant answer ---


def test_batches_and_unseen_classes_of_a_constant_answer() -> None:
    target = Target("classification", 3)
    answer = constant_answer([torch.tensor([2, 2]), torch.tensor([0])], target, ("a", "b", "c"))
    assert (answer.words, answer.counts_K) == ("always guessing c", (1, 0, 2))
    assert answer.predictions(4).softmax(1)[3].tolist() == pytest.approx(
        [1 / 3, 0, 2 / 3], abs=2e-6
    )


def test_labels_that_are_not_known_are_left_out_of_frequencies() -> None:
    y = torch.tensor([[1.0, 0.0], [1.0, torch.nan], [0.0, 0.0], [1.0, 0.0]])
    answer = constant_answer([y], Target("multi-label", 2))
    assert answer.output.sigmoid().tolist() == pytest.approx([0.75, 0.0], abs=2e-6)
    assert answer.counts_K == (3, 0)


@pytest.mark.parametrize(("cls", "what"), [("MeanAbsoluteError", "median"), ("R2Error", "mean")])
def test_numbers_are_answered_by_what_the_metric_likes_best(cls: str, what: str) -> None:
    y = torch.tensor([[1.0], [2.0], [9.0]], dtype=torch.float64)
    answer = constant_answer(
        [y[:2], y[2:]], NUMBER, columns=("price",), metric=build(getattr(metrics, cls), NUMBER)
    )
    value = {"median": 2.0, "mean": 4.0}[what]
    assert answer.output.tolist() == [value]
    assert answer.words == f"always answering the {what} of price, {value:.3f}"


def test_numbers_of_any_unit_keep_their_mean() -> None:
    y = torch.full((3, 1), 1e300, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [3.0]])
    assert constant_answer([y], NUMBER).output.item() == pytest.approx(2e300)


def test_fields_are_answered_place_by_place() -> None:
    target = Target("dense", 1, (2,))
    y = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])
    assert constant_answer([y], target).output.tolist() == [[0.5, 1.0]]
    odds = constant_answer([y], target, odds=True)
    assert odds.output.sigmoid()[0].tolist() == pytest.approx([0.5, 1.0], abs=2e-6)
    # Fields of other numbers stay numbers, whatever the loss.
    assert constant_answer([3 * y], target, odds=True).output.tolist() == [[1.5, 3.0]]
