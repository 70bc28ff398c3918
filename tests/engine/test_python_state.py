"""Whatever components keep in Python is seen when it changes, and can be put back."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xmodal.engine.python_state import PythonState


class Wants(OrderedDict[str, int]):
    """Cannot be made without arguments."""

    def __init__(self, first: str, number: int) -> None:
        super().__init__()
        self[first] = number


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value
        self.me = self  # a circle


def frozen() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(2)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Holder], object]]] = {
    "number": (lambda: 1, lambda it: setattr(it, "value", 2)),
    "new": (lambda: 1, lambda it: setattr(it, "other", None)),
    "list": (lambda: [1, [2]], lambda it: it.value[1].append(3)),
    "same length": (lambda: [1, 2], lambda it: it.value.reverse()),
    "dict": (dict, lambda it: it.value.update(a=1)),
    "subclass": (lambda: Wants("a", 1), lambda it: it.value.update(b=1)),
    "counter": (lambda: Counter("ab"), lambda it: it.value.update("a")),
    "deque": (lambda: deque([1, 2], 2), lambda it: it.value.append(3)),
    "set": (lambda: {1}, lambda it: it.value.add(2)),
    "tensor": (lambda: torch.ones(2), lambda it: it.value.mul_(2)),
    "replaced": (lambda: torch.ones(2), lambda it: setattr(it, "value", torch.ones(2))),
    "array": (lambda: np.ones(2), lambda it: it.value.__imul__(2)),
    "numpy": (lambda: np.random.default_rng(0), lambda it: it.value.random()),
    "old numpy": (lambda: np.random.RandomState(0), lambda it: it.value.rand()),
    "python": (lambda: random.Random(0), lambda it: it.value.random()),
    "torch": (torch.Generator, lambda it: torch.rand(1, generator=it.value)),
    "module": (lambda: nn.Linear(1, 1), lambda it: it.value.weight.add_(1)),
    "object": (lambda: Holder([1]), lambda it: it.value.value.append(2)),
}


def state(holder: Holder) -> PythonState:
    return PythonState({"part": holder}, [])


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_seen_and_undone(case: str) -> None:
    make, change = CASES[case]
    holder = Holder(make())
    with torch.no_grad():
        before = state(holder)
        assert before.changed(state(holder)) is None
        content = repr(vars(holder))
        change(holder)
        where = before.changed(state(holder))
        assert where is not None
        assert "part." in where
        before.restore()
        assert repr(vars(holder)) == content
    if case not in ("tensor", "module"):  # which were written into once more
        assert before.changed(state(holder)) is None


def test_tensors_that_are_watched_elsewhere_are_left_alone() -> None:
    layer = nn.Linear(1, 1)
    before = PythonState({"part": layer}, layer.parameters())
    with torch.no_grad():
        layer.weight.add_(1)
    assert before.changed(PythonState({"part": layer}, layer.parameters())) is None


def test_tensors_without_a_count_of_writes_are_looked_at() -> None:
    holder = Holder(frozen())
    assert state(holder).changed(state(holder)) is None
