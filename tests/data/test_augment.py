"""Random changes of training samples: functions of the pass and the index alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from xmodal.data import loader
from xmodal.data.augment import Augmented, in_pass

X, Y = torch.arange(40.0).reshape(10, 4), torch.arange(10)


def add(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return x + torch.rand((), generator=generator), y


def plain() -> Dataset[Any]:
    return TensorDataset(X, Y)


def read(dataset: Dataset[Any], order: list[int], workers: int = 0) -> Tensor:
    return torch.cat([x for x, _ in loader.batches(dataset, [torch.tensor(order)], workers)])


def test_only_a_pass_changes_samples() -> None:
    data = Augmented(plain(), add)
    assert read(data, [3, 1]).equal(X[[3, 1]])
    assert loader.labels(data).equal(Y)
    seen = read(in_pass(data, 5), [3, 1])
    shift = seen - X[[3, 1]]
    assert not shift[0].allclose(shift[1])
    assert torch.allclose(shift, shift[:, :1].expand(2, 4), atol=1e-5)


def test_order_and_workers_change_nothing() -> None:
    data = Augmented(plain(), add)
    forward = read(in_pass(data, 5), list(range(10)))
    assert read(in_pass(data, 5), list(range(9, -1, -1)), workers=1).flip(0).equal(forward)
    assert not read(in_pass(data, 6), list(range(10))).isclose(forward).any()


def test_parts_and_joined_splits() -> None:
    data, other = Augmented(plain(), add), Augmented(plain(), add)
    whole = read(in_pass(data, 5), list(range(10)))
    assert read(in_pass(Subset(data, [7, 2]), 5), [0, 1]).equal(whole[[7, 2]])
    both = read(in_pass(ConcatDataset([data, other]), 5), list(range(20)))
    assert not both[:10].isclose(both[10:]).any()  # one draw for each, although indices agree
    half = read(in_pass(ConcatDataset([data, plain()]), 5), list(range(20)))
    assert half[10:].equal(X)
    assert not half[:10].isclose(X).any()


def test_what_never_changes_stays_the_same_object() -> None:
    """Its batches may lie on a device, which would be wasted on a copy."""
    for dataset in (plain(), Subset(plain(), [1]), ConcatDataset([plain(), plain()])):
        assert in_pass(dataset, 1) is dataset


def test_what_is_known_of_each_sample() -> None:
    def add_own(x: Tensor, y: Tensor, generator: torch.Generator, own: float) -> Any:
        return x + own * (1 + torch.rand((), generator=generator)), y

    data = Augmented(plain(), add_own, [0.0] * 9 + [100.0])
    seen = read(in_pass(Subset(data, [9, 1]), 3), [0, 1])
    assert (seen[0] - X[9]).min() >= 100
    assert seen[1].equal(X[1])
