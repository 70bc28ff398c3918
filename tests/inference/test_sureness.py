"""Intervals and calibrated probabilities: by hand, by a grid, and by coverage over many draws."""

from __future__ import annotations

import math

import pytest
import torch

from xmodal.errors import DataError
from xmodal.inference.sureness import LEAST, Sureness, conformal, sureness, temperature
from xmodal.runs import Run


def test_the_interval_is_the_order_statistic() -> None:
    error = torch.arange(1.0, 40.0, dtype=torch.float64)[:, None]  # 1 .. 39, shuffled signs
    y = torch.zeros(39, 1, dtype=torch.float64)
    shuffled = error[torch.randperm(39)] * torch.where(torch.rand(39, 1) > 0.5, 1, -1)
    # ceil(40 * 0.95) = 38
    assert conformal(shuffled, y).tolist() == [38.0]
    # ceil(20 * 0.95) = 19 of 19
    assert conformal(error[:19], y[:19]).tolist() == [19.0]
    with pytest.raises(DataError, match=r"18 validation samples are too few .*; 19 are needed"):
        conformal(error[:18], y[:18])


def test_intervals_hold_what_they_promise() -> None:
    generator = torch.Generator().manual_seed(0)
    held = []
    for _ in range(400):
        noise = torch.randn(40, 1, generator=generator, dtype=torch.float64).exp()
        half = conformal(noise[:39], torch.zeros(39, 1))
        held.append(bool(noise[39] <= half))
    # In expectation 38 / 40; the standard error is 0.011.
    assert sum(held) / 400 == pytest.approx(0.95, abs=0.035)


def test_every_output_has_its_own_interval() -> None:
    error = torch.stack([torch.ones(20), 100 * torch.ones(20)], dim=1)
    half = conformal(error, torch.zeros(20, 2))
    low, high = Sureness(20, half_K=half).interval(torch.tensor([[0.0, 0.0]]))
    assert (low.tolist(), high.tolist()) == ([[-1, -100]], [[1, 100]])


def test_the_temperature_is_that_of_the_least_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(20000, 4, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    found = temperature(3 * logits, y)  # three times too sure
    grid = torch.linspace(1.5, 5, 351)
    loss = [torch.nn.functional.cross_entropy(3 * logits / t, y) for t in grid]
    assert found == pytest.approx(float(grid[int(torch.stack(loss).argmin())]), abs=0.02)
    assert found == pytest.approx(3, rel=0.1)
    calibrated = Sureness(20000, temperature=found).calibrated(3 * logits)
    assert torch.allclose(calibrated, 3 * logits / found)
    assert (calibrated.argmax(1) == logits.argmax(1)).all()


def test_unknown_labels_are_left_out_of_the_temperature() -> None:
    odds = torch.tensor([[2.0, 9.0], [-2.0, -9.0]] * 10)
    y = torch.tensor([[1.0, math.nan], [1.0, math.nan]] * 10)
    # Half of the answers of odds 2 are wrong: the best odds are 0, as hot as it gets.
    assert temperature(odds, y) == pytest.approx(20, rel=0.01)


def test_what_cannot_be_known_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = Run(tmp_path)
    with pytest.raises(DataError, match="kept no validation predictions"):
        sureness(run, "classification")
    with pytest.raises(DataError, match="predicts fields"):
        sureness(run, "dense")
    (tmp_path / "validation.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="is damaged"):
        sureness(run, "regression")
    from safetensors.torch import save_file

    few = {"prediction": torch.zeros(LEAST - 1, 2), "label": torch.zeros(LEAST - 1).long()}
    save_file(few, tmp_path / "validation.safetensors")
    with pytest.raises(DataError, match="too few to calibrate"):
        sureness(run, "classification")
