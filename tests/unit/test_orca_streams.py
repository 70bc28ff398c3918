"""Label streams read each sample once; draws cover classes, respect the cap and need no state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal.interfaces import Target, TaskFacts
from xmodal_orca import streams

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
    monkeypatch.setattr(streams, "BATCH_BYTES", 4 * numbers * 6)
    data = Counting(40)
    stream = streams.label_batches(data, MAPS)
    first = next(stream)
    assert first.shape == (6, 1, 8, 8)
    assert sum(data.reads) == 6  # nothing is read ahead
    rest = list(stream)
    assert torch.cat([first, *rest])[:, 0, 0, 0].tolist() == list(range(40))
    assert data.reads == [1] * 40


def test_samples_larger_than_the_bound_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BATCH_BYTES", 100)
    assert [len(y) for y in streams.label_batches(Counting(3), MAPS)] == [1, 1, 1]


def test_tensor_data_sets_give_labels_without_samples() -> None:
    y = torch.randn(3000, 2)
    facts = TaskFacts("numbers", (9,), Target("regression", 2), {"train": 3000})
    found = list(streams.label_batches(TensorDataset(torch.empty(3000, 0), y), facts))
    assert torch.equal(torch.cat(found), y)
    assert max(len(part) for part in found) <= streams.LARGEST_BATCH
    assert found[0].data_ptr() == y.data_ptr()


def test_members_partition_the_samples() -> None:
    classes = torch.tensor([2, 0, -1, 2, 5, 0, 2, -1])
    found = [index.tolist() for index in streams.members(classes)]
    assert found == [[1, 5], [0, 3, 6], [4]]
    assert streams.members(torch.full((3,), -1)) == []
    assert streams.members(torch.empty(0, dtype=torch.int64)) == []


def test_draws_respect_the_cap_and_come_from_the_class() -> None:
    index = torch.arange(100, 300)
    drawn = streams.draw(index, 128, 0, "align", 0, 0, 3)
    assert len(drawn) == len(set(drawn.tolist())) == 128
    assert set(drawn.tolist()) <= set(index.tolist())
    assert torch.equal(streams.draw(index, 200, 0, "any"), index)


def test_draws_depend_on_their_name_alone() -> None:
    index = torch.arange(200)
    torch.manual_seed(1)
    one = streams.draw(index, 50, 7, "align", 0, 4, 2)
    torch.manual_seed(2)
    streams.draw(index, 50, 7, "align", 0, 3, 2)
    assert torch.equal(one, streams.draw(index, 50, 7, "align", 0, 4, 2))
    for other in ((8, "align", 0, 4, 2), (7, "align", 1, 4, 2), (7, "align", 0, 5, 2)):
        assert not torch.equal(one, streams.draw(index, 50, *other))


def test_all_samples_of_a_large_class_come_up() -> None:
    index = torch.arange(300)
    seen = {
        i for epoch in range(20) for i in streams.draw(index, 60, 0, "align", 0, epoch, 0).tolist()
    }
    assert len(seen) > 290
