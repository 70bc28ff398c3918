"""Batches by index: which data sets are tensors, and that every way of reading gives the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from xmodal.data import loader

X = torch.arange(60.0).reshape(10, 2, 3)
Y = torch.arange(10.0, dtype=torch.float64) / 3
INDICES = [torch.tensor([3, 0, 3]), torch.tensor([9]), torch.tensor([1, 2])]


class Read(Dataset[Any]):
    """Samples that are made when they are asked for."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        return X[item], Y[item]


class Doubled(TensorDataset):
    """Tensors that are not the samples themselves."""

    def __getitem__(self, item: int) -> tuple[Tensor, ...]:
        return tuple(2 * tensor for tensor in super().__getitem__(item))


class DoubledPart(Subset[Any]):
    """A part whose samples are not those of the whole."""

    def __getitem__(self, item: Any) -> Any:
        return tuple(2 * tensor for tensor in super().__getitem__(item))

    def __getitems__(self, items: list[int]) -> Any:
        return [self[item] for item in items]


def whole() -> TensorDataset:
    return TensorDataset(X, Y)


def turned() -> Dataset[Any]:
    """The same samples, joined out of parts of parts."""
    back = Subset(whole(), list(range(9, -1, -1)))
    return ConcatDataset([Subset(back, [9, 8, 7]), Subset(back, range(6, -1, -1))])


FORMS = {"tensors": whole, "parts of parts": turned, "read": Read}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exact", [True, False])
def test_batches_are_the_rows_of_their_indices(form: str, exact: bool) -> None:
    found = list(loader.batches(FORMS[form](), iter(INDICES), exact=exact))
    assert len(found) == len(INDICES)
    for (x, y), index in zip(found, INDICES, strict=True):
        assert torch.equal(x, torch.stack([X[i] for i in index.tolist()]))
        assert y.dtype == (torch.float64 if exact else torch.float32)
        assert torch.equal(y, torch.stack([Y[i] for i in index.tolist()]).to(y.dtype))


@pytest.mark.parametrize("form", FORMS)
def test_the_first_and_all_in_order(form: str) -> None:
    dataset = FORMS[form]()
    assert torch.equal(loader.first(dataset, 3)[0], X[:3])
    assert torch.equal(loader.first(dataset, 99)[0], X)
    assert torch.equal(torch.cat([x for x, _ in loader.in_order(dataset, 4)]), X)
    assert torch.equal(loader.labels(dataset), Y)


def test_rows_come_out_alike_however_the_tensor_is_laid_out() -> None:
    x = X.movedim(2, 0).contiguous().movedim(0, 2)
    assert not x.is_contiguous()
    found, _ = loader.first(TensorDataset(x, Y), 4)
    assert found.is_contiguous()
    assert torch.equal(found, X[:4])


@pytest.mark.parametrize("doubled", [Doubled(X, Y), DoubledPart(whole(), range(10))])
def test_a_data_set_that_changes_its_tensors_is_read_sample_by_sample(
    doubled: Dataset[Any],
) -> None:
    """Indexing its tensors would pass over what it does to them."""
    assert loader.tensors(doubled) is None
    assert torch.equal(loader.first(doubled, 3)[0], 2 * X[:3])
    assert torch.equal(loader.first(ConcatDataset([whole(), doubled]), 11)[0][10], 2 * X[0])


def test_joined_data_are_joined_once_and_freed_with_their_parts() -> None:
    dataset = turned()
    before = len(loader._FLAT)
    flat = loader.flattened(dataset)
    assert isinstance(flat, TensorDataset)
    assert loader.flattened(dataset) is flat
    assert loader.tensors(dataset) is flat.tensors
    assert loader.flattened(flat) is flat
    assert len(loader._FLAT) > before
    del dataset
    assert len(loader._FLAT) == before


def test_an_index_beyond_the_data_is_an_error() -> None:
    with pytest.raises(IndexError):
        list(loader.batches(whole(), [torch.tensor([10])]))
