"""Samples a second and the share of the peak, with clocks and operations counted by hand."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import nn

from xmodal.engine.loop import EpochRecord, Snapshot, Training
from xmodal.engine.observe import epoch_line
from xmodal.engine.result import overall
from xmodal.engine.speed import Meter, Speed, peak, peak_here

from .tape import TapeGraphs
from .test_capture import session_of


@pytest.mark.parametrize(
    ("card", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 4090 D", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None, None),
        ("Some card", None, None),
    ],
)
def test_peaks(card: str, bf16: float | None, fp32: float | None) -> None:
    assert peak(card, "bf16") == bf16
    assert peak(card, "fp32") == fp32
    assert peak_here(torch.device("cpu"), "bf16") is None


def test_operations_of_a_linear_layer() -> None:
    layer, encoded = nn.Linear(7, 11), [0]

    def step(rows: int) -> None:
        encoded[0] += rows
        layer(torch.randn(rows, 7)).square().sum().backward()

    meter = Meter(1000.0, lambda: encoded[0])
    assert meter.at_peak(5) is None  # nothing was counted yet
    with meter.counting():
        step(4)
    forward = backward = 2 * 7 * 11  # of a sample; no gradient flows to the input
    assert meter.at_peak(10) == pytest.approx(10 * (forward + backward) / 1000)
    with meter.counting():  # only the first block counts
        step(4)
        step(4)
    assert meter.at_peak(10) == pytest.approx(10 * (forward + backward) / 1000)
    meter.begin()
    assert meter.at_peak(10) is None
    unknown = Meter(None, lambda: encoded[0])
    with unknown.counting():
        step(4)
    assert unknown.at_peak(10) is None


def test_the_speed_of_epochs_and_of_the_run() -> None:
    ticks = count()
    training = Training(session_of("nft"), clock=lambda: float(next(ticks)), graphs=TapeGraphs)
    training.meter = Meter(1e6, lambda: training._encoded)
    epochs = [record for record in training.run() if isinstance(record, EpochRecord)]
    assert len(epochs) == 3
    for record in epochs[1:]:  # the first one begins the stage, too
        assert record.speed.samples_per_second == pytest.approx(10 / record.seconds)
        per_second = record.speed.share_of_peak
        assert per_second is not None
        assert per_second * record.seconds == pytest.approx(training.meter.at_peak(10))
    snapshot = training.snapshot
    assert snapshot.samples == 30
    whole = overall(snapshot)
    assert whole.samples_per_second == pytest.approx(30 / snapshot.step_seconds)
    assert whole.share_of_peak == pytest.approx(
        (training.meter.at_peak(30) or 0.0) / snapshot.step_seconds
    )
    assert overall(Snapshot()) == Speed()
    assert "samples/s" in epoch_line(epochs[1])
    assert epoch_line(epochs[1]).endswith("% of the GPU's peak")


def test_on_a_cpu_there_is_no_share_of_a_peak() -> None:
    training = Training(session_of("nft", "training.epochs=1"))
    (epoch,) = [record for record in training.run() if isinstance(record, EpochRecord)]
    assert epoch.speed.samples_per_second
    assert epoch.speed.share_of_peak is None
    assert epoch_line(epoch).endswith(" samples/s")
