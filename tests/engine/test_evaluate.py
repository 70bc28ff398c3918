"""The loss of a split in the unit of the user's labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from xmodal.batch import Progress
from xmodal.data import RawForm
from xmodal.engine.evaluate import LossUnit
from xmodal.engine.loop import _check_gradient
from xmodal.errors import TrainingError

PLAIN = RawForm((3,), (3,))


class Power(nn.Module):
    """The mean of |p - y|^degree."""

    def __init__(self, degree: int | None) -> None:
        super().__init__()
        self.degree = degree

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).abs().pow(self.degree or 2).mean(1)


def restored(degree: int | None, scale: list[float], p: Tensor, y: Tensor) -> float | None:
    """The mean loss of labels in their unit, from that of standardised ones."""
    sizes = torch.tensor(scale, dtype=torch.float64)
    raw = dataclasses.replace(PLAIN, label_mean=torch.zeros_like(sizes), label_scale=sizes)
    loss = Power(degree)
    unit = LossUnit.of(loss, raw)  # type: ignore[arg-type]
    own = loss(p, y) if unit.even else unit.weighted(loss, p, y)  # type: ignore[arg-type]
    return unit.restored(float(own.mean()))


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("scale", [[1e-7], [3.0, 3.0], [1000.0, 0.5]])
def test_the_loss_is_that_of_the_labels(degree: int, scale: list[float]) -> None:
    p, y = torch.randn(5, len(scale)), torch.randn(5, len(scale))
    unit = torch.tensor(scale)
    wanted = float(Power(degree)(p * unit, y * unit).mean())
    assert restored(degree, scale, p, y) == pytest.approx(wanted, rel=1e-6)


def test_a_loss_that_float64_cannot_hold_is_none_and_never_zero_or_infinite() -> None:
    p, y = torch.ones(5, 1), torch.zeros(5, 1)
    assert restored(2, [1e200], p, y) is None
    assert restored(2, [1e-200], p, y) is None
    assert restored(1, [1e200], p, y) == pytest.approx(1e200)
    assert restored(2, [1e200], y, y) == 0.0
    assert restored(None, [1e200], p, y) == 1.0


def test_without_standardised_labels_the_loss_is_what_it_is() -> None:
    for raw in (None, PLAIN):
        unit = LossUnit.of(Power(2), raw)  # type: ignore[arg-type]
        assert unit.even
        assert unit.restored(0.25) == 0.25


def test_gradients_that_are_finite_but_too_large_are_named() -> None:
    named = [(name, nn.Parameter(torch.zeros(2))) for name in ("small", "large", "none")]
    named[0][1].grad, named[1][1].grad = torch.ones(2), torch.full((2,), 1e30)
    with pytest.raises(TrainingError, match=r"too large to be squared at .*, largest in: large"):
        _check_gradient(float("inf"), named, Progress(0, 0, 1, 0, 1))
    named[0][1].grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(TrainingError, match=r"not finite at .*, first in: small"):
        _check_gradient(float("nan"), named, Progress(0, 0, 1, 0, 1))
