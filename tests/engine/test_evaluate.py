"""The score of a split, and its loss in the unit of the user's labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal.batch import Progress
from xmodal.data import RawForm, Store, loader
from xmodal.engine.evaluate import LossUnit, Scored, _received, evaluate, is_probed
from xmodal.engine.step import _check_gradient
from xmodal.errors import TrainingError
from xmodal.workbench import open_plan, plan, registry

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


def test_a_split_in_batches_is_scored_as_in_one_piece() -> None:
    settings = ["evaluation_batch=3", "task.validation=7"]
    made = plan(["methods/nft", "tasks/darcy"], registry(), Store(), settings, "smoke")
    session: Any = open_plan(made).session
    data = session.data
    x, y = loader.first(data.validation, 7)
    seen: list[torch.Tensor] = []
    update = session.metric.update
    session.metric.update = lambda p, t: [seen.append(p), update(p, t)]  # type: ignore[func-returns-value]
    score = evaluate(session, data.validation, keep=True)
    with torch.no_grad():
        whole = session.model.eval().predict(x)
        loss = session.model.loss(whole, y).double().mean()
    torch.testing.assert_close(score.predictions, data.in_unit(whole), rtol=1e-5, atol=1e-6)
    assert [len(part) for part in seen] == [3, 3, 1]
    assert score.objective == pytest.approx(float(loss), rel=1e-6)
    session.metric.reset()
    update(data.in_unit(whole), data.in_unit(y))
    assert score.metric == pytest.approx(session.metric.compute(), rel=1e-6)


def test_a_batch_is_worked_on_while_the_next_one_is_computed() -> None:
    happened: list[str] = []

    def batches() -> Iterator[Scored]:
        for number in range(3):
            happened.append(f"computed {number}")
            yield (torch.tensor([float(number)]),) * 3  # type: ignore[misc]

    for prediction, _, _ in _received(batches()):
        happened.append(f"scored {int(prediction)}")
    assert happened == [
        "computed 0", "computed 1", "scored 0", "computed 2", "scored 1", "scored 2",
    ]  # fmt: skip
    assert list(_received(iter(()))) == []


@pytest.mark.parametrize(
    ("epochs", "probed"),
    [(1, [0]), (3, [0, 1, 2]), (12, list(range(12))), (30, [*range(0, 30, 3), 29])],
)
def test_a_few_epochs_are_probed_the_first_and_the_last(epochs: int, probed: list[int]) -> None:
    assert [epoch for epoch in range(epochs) if is_probed(epoch, epochs)] == probed
