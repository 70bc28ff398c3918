"""What the model looks at, on a model whose answer is known, and parts by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from xmodal.engine.occlusion import occlusion, parts_of, wrongness
from xmodal.facts import BackboneFacts, Facts, Target, TaskFacts
from xmodal.interfaces import TaskData


def facts(shape: tuple[int, ...], target: Target, grid: tuple[int, ...] = ()) -> Facts:
    levels = (0, 0, 3) if shape == (3,) else ()
    task = TaskFacts("toy", shape, target, {}, levels)
    return Facts(task, BackboneFacts("none", "any", 1, 1), grid=grid)


def test_parts_follow_tokens_and_are_not_too_many() -> None:
    number = Target("regression", 1)
    assert parts_of(facts((5,), number, (9,))).place_P.tolist() == [0, 1, 2, 3, 4]
    assert parts_of(facts((1, 8), number, (4,))).place_P.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert parts_of(facts((2, 4, 4), number, (2, 2))).place_P.tolist() == [
        [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3],
    ]  # fmt: skip
    assert parts_of(facts((1, 1000), number, (500,))).count == 64
    assert parts_of(facts((3, 224, 224), number, (14, 14))).count == 64
    assert parts_of(facts((500,), number)).count == 64


class Model(nn.Module):
    """2 a + code, where columns are a, b, code; drop-out must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(2 * x[:, :1] + x[:, 2:])


def test_hiding_a_column_makes_the_error_that_the_column_explains() -> None:
    x = torch.tensor([[1.0, 5.0, 2.0], [-1.0, 7.0, 1.0], [3.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    y = (2 * x[:, 0] + x[:, 2])[:, None]
    data = TensorDataset(x, y)
    session: Any = SimpleNamespace(
        facts=facts((3,), Target("regression", 1)),
        data=TaskData(data, data, data, ""),
        model=Model().train(),
        evaluation_batch=3,
        device=torch.device("cpu"),
        accelerator=SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False)),
        readable=lambda prediction: prediction,
        random_state=lambda: (torch.get_rng_state(),),
        set_random_state=torch.set_rng_state,
    )
    kept = occlusion(session, encoded=10)
    # The mean of a is 1; the most frequent code is 1.
    expected = torch.stack([2 * (x[:, 0] - 1).abs(), torch.zeros(4), (x[:, 2] - 1).abs()], dim=1)
    assert kept["index"].tolist() == [0, 1, 2, 3]
    assert torch.allclose(kept["effect"], expected.double())
    assert session.model.training


@pytest.mark.parametrize(
    ("target", "prediction", "y", "expected"),
    [
        (Target("classification", 2), [[0.0, 0.0]], [1], 0.5),
        (Target("multi-label", 2), [[0.0, 100.0]], [[1.0, float("nan")]], 0.5),
        (Target("regression", 2), [[1.0, 5.0]], [[2.0, 2.0]], 2.0),
        (Target("dense", 1, (2,)), [[[3.0, 5.0]]], [[[3.0, 4.0]]], 0.2),
    ],
)
def test_wrongness_by_hand(target: Target, prediction: Any, y: Any, expected: float) -> None:
    found = wrongness(torch.tensor(prediction), torch.tensor(y), target)
    assert found.tolist() == pytest.approx([expected])
