"""Classes of the target samples, and their division into chunks of one class.

Labels that are not classes are clustered by k-means, reading them as a stream, so that memory does
not grow with the data.

Shapes: n samples, W numbers of a label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data import loader
from xmodal.engine import randomness

AT_ONCE = 64 * 2**20
"""Bytes of labels that are clustered at once."""
MOST = 8192
"""Labels that are clustered at once, at most."""


def target_classes(dataset: Dataset[Any], kind: str, clusters: int, seed: int) -> Tensor:
    """One class a sample, int64 ``[n]``: its label, or the k-means cluster of its label."""
    if kind == "classification":
        return loader.labels(dataset).long()
    return cluster(dataset, clusters, seed)


def cluster(dataset: Dataset[Any], clusters: int, seed: int) -> Tensor:
    """The k-means cluster of every sample's label, int64 ``[n]``; unknown (NaN) numbers count 0."""
    count = loader.count(dataset)
    width = loader.first(dataset, 1)[1].numel()
    size = min(count, max(clusters, min(MOST, AT_ONCE // (4 * width))))
    order = randomness.permutation(count, seed, "pseudo-labels")
    pieces = torch.split(order, size)
    (_, y), *_ = loader.batches(dataset, pieces[:1])
    first = _rows(y)
    state = randomness.derive(seed, "k-means") % 2**32
    # More clusters than different labels would stay empty.
    k = min(clusters, len(np.unique(first, axis=0)))
    # Threads add up in any order, which the last digits, and so a resumed run, would show.
    with threadpool_limits(limits=1):
        if len(pieces) == 1:
            found = [KMeans(k, n_init=3, random_state=state).fit(first).labels_]
        else:
            means = MiniBatchKMeans(k, n_init=3, random_state=state, batch_size=size)
            for _, y in loader.batches(dataset, pieces):
                means.partial_fit(_rows(y))
            found = [means.predict(_rows(y)) for _, y in loader.batches(dataset, pieces)]
    classes = torch.empty(count, dtype=torch.int64)
    classes[order] = torch.from_numpy(np.concatenate(found).astype(np.int64))
    return classes


def _rows(y: Tensor) -> np.ndarray[Any, Any]:
    return torch.nan_to_num(y.float().flatten(1)).cpu().numpy()


def class_chunks(classes: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of chunks of ``size`` samples of one class each, a class's spread over the list.

    A class's rest is a chunk if it is at least half of one, or if the class has no other: the mean
    of very few predictions says little about the class. How many chunks there are does not depend
    on ``generator``.
    """
    placed: list[tuple[float, Tensor]] = []
    for label in sorted(set(classes.tolist())):
        (members,) = torch.where(classes == label)
        members = members[torch.randperm(len(members), generator=generator)]
        chunks = list(torch.split(members, size))
        if len(chunks) > 1 and 2 * len(chunks[-1]) < size:
            chunks.pop()
        start = float(torch.rand((), generator=generator))
        placed += [((start + i) / len(chunks), chunk) for i, chunk in enumerate(chunks)]
    return [chunk for _, chunk in sorted(placed, key=lambda place: place[0])]
