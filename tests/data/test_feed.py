"""A feed gives what the loader gives, whether data stay on the device, are read ahead, or neither.

A budget makes a feed on the CPU take the ways of a GPU, without page-locked memory and streams.
Where there is a GPU, the same is asked of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import loader
from xmodal.data.feed import AHEAD, Feed

CPU = torch.device("cpu")
X = torch.arange(120.0).reshape(20, 2, 3)
Y = torch.arange(20.0, dtype=torch.float64) / 3
INDICES = list(torch.split(torch.randperm(20, generator=torch.Generator().manual_seed(0)), 3))
BYTES = X.nbytes + Y.nbytes


class Read(Dataset[Any]):
    """Samples that are made when they are asked for; counts them, and fails at one of them."""

    def __init__(self, broken: int = -1) -> None:
        self.read: list[int] = []
        self.broken = broken

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        if item == self.broken:
            raise ValueError(f"sample {item} is damaged")
        self.read.append(item)
        return X[item], Y[item]


def tensors() -> TensorDataset:
    return TensorDataset(X.clone(), Y.clone())


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("xmodal-feed")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(request.param)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dataset", [tensors(), Read()], ids=["tensors", "read"])
@pytest.mark.parametrize("budget", [None, 0, BYTES])
def test_every_way_gives_the_same_bits(
    budget: int | None, dataset: Dataset[Any], exact: bool, device: torch.device
) -> None:
    feed = Feed(device, budget)
    for _ in range(2):
        found = list(feed.batches(dataset, iter(INDICES), exact=exact))
        wanted = list(loader.batches(dataset, INDICES, exact=exact))
        assert len(found) == len(wanted) == len(INDICES)
        for pair, other in zip(found, wanted, strict=True):
            for a, b in zip(pair, other, strict=True):
                assert (a.dtype, a.device.type) == (b.dtype, device.type)
                assert torch.equal(a.cpu(), b)
    assert list(feed.batches(dataset, [])) == []


@pytest.mark.slow
def test_workers_change_nothing() -> None:
    found = list(Feed(CPU, 0).batches(Read(), INDICES, workers=2))
    assert torch.equal(torch.cat([x for x, _ in found]), X[torch.cat(INDICES)])


def test_only_what_a_gpu_lacks_is_read_in_a_thread() -> None:
    """On the CPU nothing is copied or threaded; data that fit are not read again."""
    for feed, used in ((Feed(CPU), 0), (Feed(CPU, BYTES), 0), (Feed(CPU, BYTES - 1), 1)):
        stream = feed.batches(tensors(), INDICES)
        next(stream)
        assert len(threads()) == used
        del stream
        assert threads() == []


def test_data_sets_share_the_budget_and_give_it_back() -> None:
    feed = Feed(CPU, 2 * BYTES)
    one, two, three = (tensors() for _ in range(3))
    assert [feed._kept(d) is not None for d in (one, two, three, one)] == [True, True, False, True]
    del two
    four = tensors()
    assert feed._kept(four) is not None
    # What did not fit once is not tried again: the way of a data set stays the same.
    del one
    assert feed._kept(three) is None


def test_without_memory_on_the_device_batches_are_read_ahead() -> None:
    class Unmovable(Tensor):
        """What a GPU does that is full."""

        def to(self, *args: Any, **more: Any) -> Tensor:
            raise torch.cuda.OutOfMemoryError("full")

    dataset = TensorDataset(X.as_subclass(Unmovable), Y)
    found = list(Feed(CPU, 10 * BYTES).batches(dataset, INDICES))
    assert torch.equal(torch.cat([x.as_subclass(Tensor) for x, _ in found]), X[torch.cat(INDICES)])


def test_reading_begins_when_asked_and_stays_a_few_batches_ahead() -> None:
    dataset = Read()
    stream = Feed(CPU, 0).batches(dataset, INDICES)
    assert dataset.read == []
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    order = torch.cat(INDICES).tolist()
    assert dataset.read == order[: len(dataset.read)]
    assert 3 <= len(dataset.read) <= 3 * (1 + AHEAD)


def test_an_error_comes_in_place_of_its_batch() -> None:
    order = torch.cat(INDICES).tolist()
    stream = Feed(CPU, 0).batches(Read(broken=order[7]), INDICES)
    for index in INDICES[:2]:
        assert torch.equal(next(stream)[0], X[index])
    with pytest.raises(ValueError, match=f"sample {order[7]} is damaged"):
        next(stream)
    assert threads() == []


def test_random_streams_are_left_alone() -> None:
    before = torch.get_rng_state()
    list(Feed(CPU, 0).batches(Read(), INDICES))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("budget", [None, 0])
def test_a_batch_stays_whole_while_the_gpu_is_behind(budget: int | None) -> None:
    """Memory of a batch that was let go must not be written before the GPU has read it."""
    x = torch.arange(64.0)[:, None].expand(64, 2**16).contiguous()
    dataset = TensorDataset(x, torch.zeros(64))
    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch, _ in Feed(torch.device("cuda"), budget).batches(dataset, torch.arange(64).split(2)):
        for _ in range(4):
            busy = busy @ busy / 4096
        sums.append(batch.double().sum())
        del batch
    found = torch.stack(sums).cpu()
    assert torch.equal(found, x.double().sum(1).reshape(-1, 2).sum(1))
