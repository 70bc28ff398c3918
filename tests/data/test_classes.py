"""Classes of samples: their labels, or what scikit-learn finds in them, in bounded memory."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import classes as module
from xmodal.data.classes import (
    NONE,
    kept_width,
    label_batches,
    members,
    pseudo_classes,
    target_classes,
)
from xmodal.interfaces import Target, TaskFacts


def groups(number: int, each: int, *shape: int, spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """Labels around ``number`` centres, shuffled, and which centre each is around."""
    generator = torch.Generator().manual_seed(number)
    centres = 5 * torch.randn(number, *shape, generator=generator)
    which = torch.arange(number).repeat(each)[torch.randperm(number * each, generator=generator)]
    noise = torch.randn(len(which), *shape, generator=generator)
    return centres[which] + spread * noise, which


def batches(y: Tensor, size: int = 7) -> Iterator[Tensor]:
    yield from torch.split(y, size)


def test_a_small_case_is_scikit_learns_k_means() -> None:
    y = torch.randn(90, 3, 4, generator=torch.Generator().manual_seed(0))
    found = pseudo_classes(batches(y), 90, 10, seed=5)
    expected = KMeans(10, n_init=10, random_state=5).fit_predict(y.flatten(1).numpy())
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()


def test_many_samples_go_in_batches_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY", 50)
    y = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    found = pseudo_classes(batches(y), 120, 5, seed=2)
    model = MiniBatchKMeans(5, n_init=3, batch_size=50, random_state=2)
    assert found.tolist() == model.fit_predict(y.numpy()).tolist()


@pytest.mark.parametrize("shape", [(1,), (6,), (1, 5, 5)])
def test_groups_are_found(shape: tuple[int, ...]) -> None:
    y, which = groups(4, 20, *shape, spread=0.01)
    assert adjusted_rand_score(which, pseudo_classes(batches(y), 80, 4, seed=0)) == 1.0


def test_wide_labels_are_projected_and_keep_their_groups() -> None:
    y, which = groups(6, 30, 1, 64, 64, spread=1.0)
    memory = 4 * 180 * 64
    assert kept_width(64 * 64, 180, memory) == 64
    found = pseudo_classes(batches(y, 16), 180, 6, seed=3, memory=memory)
    assert adjusted_rand_score(which, found) == 1.0
    again = pseudo_classes(batches(y, 16), 180, 6, seed=3, memory=memory)
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    ("width", "count"), [(7225, 900), (262144, 3356), (262144, 10**6), (40, 10**9), (1, 10)]
)
def test_the_rows_never_take_more_than_the_bound(width: int, count: int) -> None:
    kept = kept_width(width, count)
    assert 1 <= kept <= width
    assert 4 * kept * count <= max(module.MEMORY, 4 * count)
    assert kept == width or kept <= module.PROJECTED


def test_labels_are_read_once_and_not_kept() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for number in range(30):
            batch = torch.full((4, 2), float(number % 3))
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            # The reader may hold the one it is at, and the one before it.
            assert sum(one() is not None for one in alive) <= 2

    found = pseudo_classes(stream(), 120, 3, seed=0)
    assert len(alive) == 30
    assert len(set(found.tolist())) == 3


def test_unknown_entries_count_as_usual_and_unknown_labels_as_none() -> None:
    y, which = groups(3, 10, 5, spread=0.01)
    y[4, 2] = float("nan")  # four known entries still tell the group
    y[7] = float("nan")
    found = pseudo_classes(batches(y), 30, 3, seed=0)
    assert found[7] == NONE
    rest = [i for i in range(30) if i != 7]
    assert adjusted_rand_score(which[rest], found[rest]) == 1.0
    nothing = pseudo_classes(batches(torch.full((6, 2), float("nan"))), 6, 3, seed=0)
    assert nothing.tolist() == [NONE] * 6


def test_unknown_entries_also_where_labels_are_projected() -> None:
    y, which = groups(3, 10, 400, spread=0.01)
    y[4, 2:9] = float("nan")
    found = pseudo_classes(batches(y), 30, 3, seed=0, memory=4 * 30 * 100)
    assert adjusted_rand_score(which, found) == 1.0


@pytest.mark.parametrize(("count", "clusters", "expected"), [(1, 10, 1), (5, 10, 2), (40, 3, 3)])
def test_no_more_classes_than_could_have_two_samples(
    count: int, clusters: int, expected: int
) -> None:
    y = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    assert len(set(pseudo_classes(batches(y), count, clusters, seed=0).tolist())) == expected


def test_equal_labels_are_one_class_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pseudo_classes(batches(torch.ones(30, 2)), 30, 10, seed=0)
    assert len(set(found.tolist())) == 1


def test_global_streams_and_the_labels_are_left_alone() -> None:
    y = torch.randn(30, 400, generator=torch.Generator().manual_seed(0))
    copy = y.clone()
    before = torch.get_rng_state(), np.random.get_state(legacy=True)[1].copy()
    for memory in (4 * 30 * 10, module.MEMORY):
        pseudo_classes(batches(y, 30), 30, 3, seed=0, memory=memory)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state(legacy=True)[1])
    assert torch.equal(y, copy)


# --- the whole way from a data set to classes ---


def facts(target: Target, count: int) -> TaskFacts:
    return TaskFacts("toy", (1,), target, {"train": count})


def test_classes_are_the_labels() -> None:
    data = TensorDataset(torch.zeros(5, 1), torch.tensor([3, 1, 1, 0, 2], dtype=torch.int32))
    found = target_classes(data, facts(Target("classification", 4), 5), 2, seed=0)
    assert found.dtype == torch.int64
    assert found.tolist() == [3, 1, 1, 0, 2]


@pytest.mark.parametrize("kind", ["regression", "multi-label", "dense"])
def test_other_labels_are_clustered_as_the_seed_says(kind: Any) -> None:
    shape = (4, 4) if kind == "dense" else ()
    y, which = groups(3, 12, 2, *shape, spread=0.01)
    y[5] = float("nan")
    data = TensorDataset(torch.zeros(36, 1), y)
    task = facts(Target(kind, 2, shape), 36)
    found = target_classes(data, task, 3, seed=4)
    assert torch.equal(found, pseudo_classes(batches(y), 36, 3, seed=4))
    assert found[5] == NONE
    rest = [i for i in range(36) if i != 5]
    assert adjusted_rand_score(which[rest], found[rest]) == 1.0


def test_a_data_set_that_makes_its_samples_is_read_once() -> None:
    data = Counting(40)
    found = target_classes(data, MAPS, 2, seed=0)
    assert data.reads == [1] * 40
    assert len(set(found.tolist())) == 2
    assert len(members(found)) == 2


# --- labels as a stream ---


MAPS = TaskFacts("maps", (3, 8, 8), Target("dense", 1, (8, 8)), {"train": 40})


class Counting(Dataset[tuple[Tensor, Tensor]]):
    """Makes a sample when asked, and counts how often each was."""

    def __init__(self, count: int) -> None:
        self.reads = [0] * count

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads[index] += 1
        return torch.zeros(3, 8, 8), torch.full((1, 8, 8), float(index))


def test_every_label_once_in_order_and_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = 4 * 64
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * numbers * 6)
    data = Counting(40)
    stream = label_batches(data, MAPS)
    first = next(stream)
    assert first.shape == (6, 1, 8, 8)
    assert sum(data.reads) == 6  # nothing is read ahead
    rest = list(stream)
    assert torch.cat([first, *rest])[:, 0, 0, 0].tolist() == list(range(40))
    assert data.reads == [1] * 40


def test_samples_larger_than_the_bound_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 100)
    assert [len(y) for y in label_batches(Counting(3), MAPS)] == [1, 1, 1]


def test_tensor_data_sets_give_labels_without_samples() -> None:
    y = torch.randn(3000, 2)
    facts = TaskFacts("numbers", (9,), Target("regression", 2), {"train": 3000})
    found = list(label_batches(TensorDataset(torch.empty(3000, 0), y), facts))
    assert torch.equal(torch.cat(found), y)
    assert max(len(part) for part in found) <= module.LARGEST_BATCH
    assert found[0].data_ptr() == y.data_ptr()


# --- indices of every class ---


def test_members_partition_the_samples() -> None:
    classes = torch.tensor([2, 0, -1, 2, 5, 0, 2, -1])
    found = [index.tolist() for index in members(classes)]
    assert found == [[1, 5], [0, 3, 6], [4]]
    assert members(torch.full((3,), -1)) == []
    assert members(torch.empty(0, dtype=torch.int64)) == []
