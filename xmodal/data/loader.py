"""Fetches batches by index; the caller decides which, and in what order.

Tensor data sets are indexed directly. Anything else goes through torch's DataLoader. Its number of
workers cannot change the result, because a sample depends on its index alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

Batch = tuple[Tensor, Tensor]


def count(dataset: Dataset[Any]) -> int:
    """The number of samples."""
    return len(cast(Sized, dataset))


def batches(
    dataset: Dataset[Any], indices: Iterable[Tensor], workers: int = 0, exact: bool = False
) -> Iterator[Batch]:
    """Yield the batch of every index tensor, lazily and in order.

    Labels in float64 become float32, unless ``exact``. Workers start at the call, in the thread of
    the caller.
    """
    pairs = _batches(dataset, indices, workers)
    return pairs if exact else ((x, single(y)) for x, y in pairs)


def single(y: Tensor) -> Tensor:
    """Numbers in float32, as models compute; class numbers as they are."""
    return y.float() if y.is_floating_point() else y


def _batches(dataset: Dataset[Any], indices: Iterable[Tensor], workers: int) -> Iterator[Batch]:
    held = tensors(dataset)
    if held is not None:
        x, y = held[:2]
        # Selecting copies whole rows; brackets would copy number by number.
        return ((x.index_select(0, index), y.index_select(0, index)) for index in indices)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=[index.tolist() for index in indices],
        num_workers=workers,
        # The default draws a seed from the global generator, which would disturb drop-out.
        generator=torch.Generator().manual_seed(0),
    )
    return iter(loader)


def in_order(dataset: Dataset[Any], size: int, workers: int = 0) -> Iterator[Batch]:
    """Yield the whole data set in order, ``size`` samples a batch."""
    return batches(dataset, torch.split(torch.arange(count(dataset)), size), workers)


def first(dataset: Dataset[Any], number: int) -> Batch:
    """The first ``number`` samples, or all if there are fewer."""
    index = torch.arange(min(number, count(dataset)))
    return next(batches(dataset, [index]))


def labels(dataset: Dataset[Any]) -> Tensor:
    """Every label, in order, in the precision of the data set.

    For tensor data sets this costs nothing.
    """
    held = tensors(dataset)
    return held[1] if held is not None else labels_of(dataset, torch.arange(count(dataset)))


def knows_labels(dataset: Dataset[Any]) -> bool:
    """Whether labels can be had without samples: the data set has a method ``labels(index_N)``."""
    if _plain(dataset, Subset):
        return knows_labels(cast("Subset[Any]", dataset).dataset)
    if _plain(dataset, ConcatDataset):
        return all(map(knows_labels, cast("ConcatDataset[Any]", dataset).datasets))
    return tensors(dataset) is not None or callable(getattr(dataset, "labels", None))


def labels_of(dataset: Dataset[Any], index_N: Tensor) -> Tensor:
    """The labels of some samples, ascending, in the precision of the data set."""
    held = tensors(dataset)
    if held is not None:
        return held[1][index_N]
    if not knows_labels(dataset):
        pairs = batches(dataset, torch.split(index_N, 256), exact=True)
        return torch.cat([y for _, y in pairs])
    if _plain(dataset, Subset):
        dataset = cast("Subset[Any]", dataset)
        return labels_of(dataset.dataset, torch.as_tensor(dataset.indices)[index_N])
    if _plain(dataset, ConcatDataset):
        found, start = [], 0
        for part in cast("ConcatDataset[Any]", dataset).datasets:
            own_N = index_N[(index_N >= start) & (index_N < start + count(part))]
            if len(own_N):
                found.append(labels_of(part, own_N - start))
            start += count(part)
        return torch.cat(found)
    own: Tensor = cast(Any, dataset).labels(index_N)
    return own


def flattened(dataset: Dataset[Any]) -> Dataset[Any]:
    """The data set as one tensor data set if it consists of tensors, else unchanged.

    The same data set gives the same one each time.
    """
    if _plain(dataset, TensorDataset) or tensors(dataset) is None:
        return dataset
    return _FLAT[dataset]


_FLAT: WeakKeyDictionary[Dataset[Any], TensorDataset] = WeakKeyDictionary()
"""What joined data sets, and parts of them, are as tensors, as long as they are used."""


def tensors(dataset: Dataset[Any]) -> Sequence[Tensor] | None:
    """The tensors of a data set that consists of tensors, else None."""
    if _plain(dataset, TensorDataset):
        return cast(TensorDataset, dataset).tensors
    if not (_plain(dataset, ConcatDataset) or _plain(dataset, Subset)):
        return None
    if dataset not in _FLAT:
        parts = _flat(dataset)
        if parts is None:
            return None
        _FLAT[dataset] = TensorDataset(*parts)
    return _FLAT[dataset].tensors


def _flat(dataset: Dataset[Any]) -> Sequence[Tensor] | None:
    if isinstance(dataset, Subset):
        whole = tensors(dataset.dataset)
        index = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return None if whole is None else [tensor[index] for tensor in whole]
    parts = [tensors(part) for part in cast("ConcatDataset[Any]", dataset).datasets]
    if any(part is None for part in parts):
        return None
    return [torch.cat(both) for both in zip(*(p for p in parts if p), strict=True)]


def _plain(dataset: Dataset[Any], kind: type[Any]) -> bool:
    """Whether a data set is of this kind, and reads its samples as the kind does."""
    return isinstance(dataset, kind) and type(dataset).__getitem__ is kind.__getitem__
