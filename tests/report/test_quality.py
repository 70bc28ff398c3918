"""The figures of all test predictions: their numbers by hand, and hostile or poor data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from xmodal.report.quality import confusion, error_map, power, quality

CLASSES = {"kind": "classification", "size": 3, "shape": []}


def drawn(charts: Any) -> dict[str, Any]:
    return {chart.title: chart for chart in charts}


def test_classes_have_their_counts_precision_and_recall() -> None:
    said = torch.tensor([0, 0, 1, 1, 1, 0])
    predicted = {
        "prediction": 4 * torch.nn.functional.one_hot(said, 3).double(),
        "label": torch.tensor([0, 0, 0, 1, 1, 1]),
    }
    found = quality(predicted, CLASSES, ("a", "b", "<c>"), (10, 20, 30))
    assert found.table is not None
    heads, rows = found.table
    assert heads[:4] == ["class", "training samples", "test samples", "predicted"]
    assert rows[0] == ["a", "10", "3", "3", "0.667", "0.667", "0.667"]
    assert rows[2] == ["<c>", "30", "0", "0", "–", "–", "–"]
    charts = drawn(found.charts)
    assert set(charts) == {
        "Confusion matrix", "ROC curve", "Precision and recall", "Calibration",
    }  # fmt: skip
    assert "4 of 6 on the diagonal" in charts["Confusion matrix"].words
    # Three a's and three others: of nine pairs six count (ties count half).
    assert "a (area 0.667)" in charts["ROC curve"].words
    # Four of six are right, but every answer says exp(4) / (exp(4) + 2).
    stated = math.exp(4) / (math.exp(4) + 2)
    assert f"off by {stated - 4 / 6:.3f}" in charts["Calibration"].note
    assert "&lt;c&gt;" in charts["Confusion matrix"].svg


def test_two_classes_have_one_curve() -> None:
    share = torch.tensor([0.1, 0.4, 0.35, 0.8], dtype=torch.float64)
    logits = torch.stack([torch.zeros(4, dtype=torch.float64), share.logit()], dim=1)
    predicted = {"prediction": logits, "label": torch.tensor([0, 0, 1, 1])}
    found = quality(predicted, {**CLASSES, "size": 2}, ("no", "yes"))
    roc = drawn(found.charts)["ROC curve"]
    # Of four pairs of a "yes" and a "no", three are in order.
    assert [line.label for line in roc.keys] == ["yes (area 0.750)"]


def test_many_classes_show_those_with_most_mistakes() -> None:
    counts = np.diag(np.full(40, 5))
    counts[7, 30] = 9
    chart = confusion(counts, [f"class-{k}" for k in range(40)])
    assert "Of 40 classes, the 25 with most mistakes" in chart.note
    assert {"class-7", "class-30"} <= set(str(chart.svg).replace(">", "<").split("<"))


def test_numbers_are_drawn_against_the_truth() -> None:
    y = torch.linspace(0, 9, 10, dtype=torch.float64)[:, None]
    predicted = {"prediction": y + torch.tensor([1.0, -1.0]).repeat(5)[:, None], "label": y}
    found = quality(predicted, {"kind": "regression", "size": 1, "shape": []}, (), (), ("price",))
    against, residuals = found.charts
    assert (against.title, residuals.title) == (
        "Predicted against true of price", "Residuals of price",
    )  # fmt: skip
    r2 = 1 - 10 / float(((y - y.mean()) ** 2).sum())
    assert f"R² is {r2:.3f}; the mean absolute error 1.00" in against.note
    assert "between −1.00 and 1.00; their mean is 0" in residuals.note


def test_a_page_says_how_many_outputs_it_leaves_out() -> None:
    for shape, shown in (((), "the first 4"), ((6,), "the first one")):
        y, said = torch.randn(2, 30, 7, *shape, generator=torch.Generator().manual_seed(0))
        kept = {"label": y, "prediction": said}
        target = {"kind": "dense" if shape else "regression", "size": 7, "shape": list(shape)}
        found = quality(kept, target, (), (), ())
        assert found.charts
        for chart in found.charts:
            assert chart.note.endswith(f"Of 7 outputs, this page shows {shown}.")


def test_several_labels_with_unknown_ones() -> None:
    y = torch.tensor([[1.0, 0.0], [0.0, math.nan], [1.0, 1.0], [0.0, 0.0]])
    odds = torch.tensor([[2.0, -1.0], [-2.0, 3.0], [-1.0, 1.0], [1.0, -3.0]])
    target = {"kind": "multi-label", "size": 2, "shape": []}
    found = quality({"prediction": odds, "label": y}, target, ("u", "v"))
    assert found.table is not None
    assert found.table[1][0][:5] == ["u", "2", "2", "0.500", "0.500"]
    assert found.table[1][1][:5] == ["v", "1", "1", "1.00", "1.00"]


def test_the_spectrum_of_a_wave_has_its_power_at_its_number() -> None:
    place = np.arange(32) / 32
    wave = np.sin(2 * np.pi * 3 * place)[None, None] * np.ones((2, 32, 1))
    waves, found = power(wave)
    assert waves.tolist() == list(range(1, 17))
    assert found[2] == pytest.approx(0.5)  # the mean square of a sine (Parseval)
    assert np.delete(found, 2) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(12, 10), (30,)])
def test_fields_show_where_and_on_which_scales(shape: tuple[int, ...]) -> None:
    truth = torch.randn(5, 1, *shape, generator=torch.Generator().manual_seed(0))
    said = truth.clone()
    said[(slice(None), 0, *(side // 2 for side in shape))] += 2.0
    target = {"kind": "dense", "size": 1, "shape": list(shape)}
    where, scale = quality({"prediction": said, "label": truth}, target, ()).charts
    assert where.title == "Where the error is"
    if len(shape) == 2:
        assert "2.00, is in row 7, column 6" in where.words
    assert scale.title == "Error by scale"
    truth[0, 0, 0] = math.nan  # a hole: there is no spectrum
    assert len(quality({"prediction": said, "label": truth}, target, ()).charts) == 1


def test_the_largest_error_is_found_wherever_it_is() -> None:
    error_HW = np.ones((401, 400))
    error_HW[337, 41] = 50
    chart = error_map(error_HW)
    assert "the largest error, 50.0, is in row 338, column 42" in chart.words
    assert float(chart.figure.axes[0].images[0].get_array().max()) == 50  # drawn smaller
    error_HW[:, 5] = np.nan
    assert "row 338, column 42" in error_map(error_HW).words


def test_curves_of_a_rare_class_keep_their_shape() -> None:
    """Ten of 10,000 samples; the first nine that are named are of them."""
    truth, score = np.zeros(10_000, dtype=np.int64), -np.arange(10_000.0) / 1e4
    truth[[*range(9), 5000]] = 1
    scores = torch.from_numpy(np.stack([-score, score], 1))
    predicted = {"prediction": scores, "label": torch.from_numpy(truth)}
    found = quality(predicted, {**CLASSES, "size": 2}, ("no", "yes"))
    (curve,) = drawn(found.charts)["Precision and recall"].keys
    early = [y for x, y in zip(curve.x, curve.y, strict=True) if 0.1 <= x <= 0.9]
    assert max(early) == 1
    assert len(early) >= 9


def test_labels_that_nobody_knows_have_no_numbers() -> None:
    nan = math.nan
    y = torch.tensor([[0, nan, 1], [1, nan, 1], [nan, nan, 1], [0, nan, 1.0]])
    odds = torch.tensor([[-1, 0, 1], [1, 0, -1], [0, 0, 1], [1, 0, 1.0]])
    target = {"kind": "multi-label", "size": 3, "shape": []}
    found = quality({"prediction": odds, "label": y}, target, ("a", "b", "c"))
    assert found.table is not None
    assert [row[3:5] for row in found.table[1]] == [
        ["0.500", "1.00"],
        ["–", "–"],
        ["1.00", "0.750"],
    ]
    # The one label that varies has its curves, though no sample has all labels known.
    assert [line.label for line in drawn(found.charts)["ROC curve"].keys] == ["a (area 0.750)"]


def test_predictions_that_are_no_numbers_are_counted_and_left_out() -> None:
    logits = torch.eye(3).repeat(2, 1)
    logits[0] = math.nan
    found = quality({"prediction": logits, "label": torch.arange(3).repeat(2)}, CLASSES, ())
    assert found.note.startswith("1 predictions are not numbers")
    assert quality({"prediction": logits[:1], "label": torch.arange(1)}, CLASSES, ()).charts == []
