"""Classes of the target samples, for methods that work class by class.

Labels that are not classes get pseudo-classes by k-means. They are read once, batch by batch, and
take at most 256 MB in memory. Wider labels are projected at random to fewer numbers, which nearly
keeps their distances (Johnson and Lindenstrauss 1984; the sparse projection of Li, Hastie and
Church 2006).

Shapes: N samples, B of one batch, E numbers in a label, R of them kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import loader
from xmodal.facts import TaskFacts

Array = npt.NDArray[np.float32]

MEMORY = 256 * 2**20
"""Bytes that all labels may take, projected or not."""
PROJECTED = 1024
"""Numbers that a projected label has, if they fit into the memory."""
MANY = 10_000
"""Above so many samples k-means works on batches of this size, as ORCA does."""
BATCH_BYTES = 64 * 2**20
"""Bytes of samples that are read at a time."""
LARGEST_BATCH = 1024
NONE = -1
"""The class of a sample that is in no class."""


def target_classes(
    dataset: Dataset[Any], task: TaskFacts, clusters: int, seed: int, workers: int = 0
) -> Tensor:
    """The class of every sample, int64 ``[N]`` on the CPU; NONE if its label is unknown.

    If labels are not classes, there are at most ``clusters`` pseudo-classes, drawn by ``seed``.
    """
    labels = label_batches(dataset, task, workers)
    if task.target.kind == "classification":
        return torch.cat(list(labels)).long().cpu()
    return pseudo_classes(labels, loader.count(dataset), clusters, seed)


def members(classes_N: Tensor) -> list[Tensor]:
    """The ascending indices of the samples of each class that occurs; negative is no class."""
    order_N = torch.argsort(classes_N, stable=True)
    found, counts = torch.unique_consecutive(classes_N[order_N], return_counts=True)
    parts = torch.split(order_N, counts.tolist())
    return [part for label, part in zip(found.tolist(), parts, strict=True) if label >= 0]


def label_batches(dataset: Dataset[Any], task: TaskFacts, workers: int = 0) -> Iterator[Tensor]:
    """Every label once, in order, at most 64 MB of samples at a time (one sample if larger)."""
    numbers = prod(task.target.shape) * task.target.size
    if isinstance(dataset, TensorDataset):
        yield from torch.split(dataset.tensors[1], _batch(numbers))
        return
    if loader.knows_labels(dataset):
        for index_N in torch.split(torch.arange(loader.count(dataset)), _batch(numbers)):
            yield loader.labels_of(dataset, index_N)
        return
    # Other data sets give a label only together with its sample.
    for _, y in loader.in_order(dataset, _batch(numbers + prod(task.shape)), workers):
        yield y


def _batch(numbers: int) -> int:
    return min(LARGEST_BATCH, max(1, BATCH_BYTES // (4 * numbers)))


def pseudo_classes(
    labels: Iterable[Tensor], count: int, clusters: int, seed: int, memory: int = MEMORY
) -> Tensor:
    """The k-means cluster of each of ``count`` labels, int64 ``[N]``; NONE for unknown ones.

    There are at most half as many clusters as labels. An unknown (NaN) entry counts as the mean of
    that entry over the first batch.
    """
    rows_NR, known_N = _rows(labels, count, seed, memory)
    classes_N = np.full(count, NONE, dtype=np.int64)
    if known_N.any():
        used_NR = rows_NR if known_N.all() else rows_NR[known_N]
        classes_N[known_N] = _cluster(used_NR, clusters, seed)
    return torch.from_numpy(classes_N)


def _cluster(rows_NR: Array, clusters: int, seed: int) -> npt.NDArray[np.int64]:
    """The k-means cluster of each row, in batches if there are many. May overwrite the rows."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    clusters = min(clusters, max(1, len(rows_NR) // 2))
    settings: dict[str, Any] = {"n_clusters": clusters, "random_state": seed % 2**32}
    if len(rows_NR) <= MANY:
        model = KMeans(n_init=10, copy_x=False, **settings)
    else:
        model = MiniBatchKMeans(n_init=3, batch_size=MANY, **settings)
    # Threads add up in any order: the last digits, and with them ties, would vary.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # If there are fewer different labels than clusters, there are fewer classes.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(model.fit_predict(rows_NR), dtype=np.int64)


def _rows(
    labels: Iterable[Tensor], count: int, seed: int, memory: int
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """All labels as rows, in at most ``memory`` bytes, and which of them are known at all."""
    rows_NR: Array = np.empty((0, 0), np.float32)
    known_N = np.zeros(count, dtype=np.bool_)
    start = 0
    for y in labels:
        y_BE = y.detach().flatten(1).float().cpu().numpy()
        end = start + len(y_BE)
        unknown_BE = np.isnan(y_BE)
        known_N[start:end] = ~unknown_BE.all(axis=1)
        if start == 0:
            reduce, width = _reduction(y_BE.shape[1], count, seed, memory)
            rows_NR = np.empty((count, width), np.float32)
            usual_E = _means(y_BE, unknown_BE)
        rows_NR[start:end] = reduce(np.where(unknown_BE, usual_E, y_BE))
        start = end
    return rows_NR, known_N


def _means(y_BE: Array, unknown_BE: npt.NDArray[np.bool_]) -> Array:
    """The mean of the known values of every entry; 0 if none is known."""
    number_E = np.maximum(1, (~unknown_BE).sum(axis=0))
    total_E = np.where(unknown_BE, 0.0, y_BE).sum(axis=0, dtype=np.float64)
    return np.asarray(total_E / number_E, dtype=np.float32)


def kept_width(width: int, count: int, memory: int = MEMORY) -> int:
    """R: all E numbers of a label if N labels fit into ``memory``, else at most 1024."""
    fitting = max(1, memory // (4 * count))
    return width if width <= fitting else min(PROJECTED, fitting)


def _reduction(
    width: int, count: int, seed: int, memory: int
) -> tuple[Callable[[Array], Array], int]:
    from sklearn.random_projection import SparseRandomProjection

    kept = kept_width(width, count, memory)
    if kept == width:
        return (lambda y_BE: y_BE), width
    projection = SparseRandomProjection(kept, dense_output=True, random_state=seed % 2**32)
    projection.fit(np.zeros((1, width), np.float32))
    return projection.transform, kept
