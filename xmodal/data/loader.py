"""Fetches batches by index; the caller decides which, and in what order.

Tensor data sets are indexed directly. Anything else goes through torch's DataLoader. Its number of
workers cannot change the result, because a sample depends on its index alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, cast

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

    Labels in float64 become float32, unless ``exact``.
    """
    for x, y in _batches(dataset, indices, workers):
        yield x, y if exact else single(y)


def single(y: Tensor) -> Tensor:
    """Numbers in float32, as models compute; class numbers as they are."""
    return y.float() if y.is_floating_point() else y


def _batches(dataset: Dataset[Any], indices: Iterable[Tensor], workers: int) -> Iterator[Batch]:
    tensors = _tensors(dataset)
    if tensors is not None:
        for index in indices:
            yield tensors[0][index], tensors[1][index]
        return
    order = [index.tolist() for index in indices]
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        # The default draws a seed from the global generator, which would disturb drop-out.
        generator=torch.Generator().manual_seed(0),
        pin_memory=torch.cuda.is_available(),
    )
    yield from loader


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
    tensors = _tensors(dataset)
    if tensors is not None:
        return tensors[1]
    pieces = torch.split(torch.arange(count(dataset)), 256)
    return torch.cat([y for _, y in batches(dataset, pieces, exact=True)])


def flattened(dataset: Dataset[Any]) -> Dataset[Any]:
    """The data set as one tensor data set if it consists of tensors, else unchanged."""
    tensors = _tensors(dataset)
    return dataset if tensors is None else TensorDataset(*tensors)


def _tensors(dataset: Dataset[Any]) -> Sequence[Tensor] | None:
    """The tensors of a data set that consists of tensors, else None."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors
    if isinstance(dataset, ConcatDataset):
        parts = [_tensors(part) for part in dataset.datasets]
        if any(part is None for part in parts):
            return None
        return tuple(torch.cat(both) for both in zip(*(p for p in parts if p), strict=True))
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, TensorDataset):
        index = torch.as_tensor(dataset.indices)
        return tuple(tensor[index] for tensor in dataset.dataset.tensors)
    return None
