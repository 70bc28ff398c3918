"""Fewer samples to validate and test: for scales that promise minutes of large benchmarks.

The samples are drawn once, whatever the run's seed, so that all methods meet the same ones; a group
(record, clip) is taken whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field
from torch.utils.data import Subset

from xmodal.data import loader
from xmodal.data.arrays import Array, Indices
from xmodal.data.splits import shares
from xmodal.interfaces import TaskData

SPLITS = ("validation", "test")


def scored_field() -> Any:
    """The setting ``scored``, which each of these tasks has."""
    return Field(
        None,
        ge=1,
        description="Validate and test on about so many samples each, groups kept whole; null: on "
        "all, as published. Reports say so.",
    )


def drawn(count: int, scored: int | None, groups_N: Array | None = None) -> Indices | None:
    """Ascending indices of about ``scored`` of ``count`` samples; None where that means all."""
    if scored is None or scored >= count:
        return None
    order_N = np.random.RandomState(0).permutation(count)
    return shares(order_N, (scored,), groups_N=groups_N)[0]


def size(count: int, scored: int | None, groups_N: Array | None = None) -> int:
    """How many samples are drawn."""
    index_N = drawn(count, scored, groups_N)
    return count if index_N is None else len(index_N)


def sizes(samples: Mapping[str, int], scored: int | None) -> dict[str, int]:
    """The samples of each split, where they have no groups."""
    return {k: size(n, scored) if k in SPLITS else n for k, n in samples.items()}


def limited(data: TaskData, scored: int | None, name: str) -> TaskData:
    """The data with fewer samples to validate and test, and a note that says so."""
    groups, kept = dict(data.groups), {split: getattr(data, split) for split in SPLITS}
    told = []
    for split, dataset in kept.items():
        groups_N = groups.get(split)
        count = loader.count(dataset)
        index_N = drawn(count, scored, None if groups_N is None else groups_N.numpy())
        if index_N is None:
            continue
        kept[split] = Subset(dataset, index_N.tolist())
        told.append(f"{len(index_N):,} of {count:,} {split} samples")
        if groups_N is not None:
            groups[split] = groups_N[index_N]
    if not told:
        return data
    notes = (*data.notes, f"{name}: NOT scored on all, but on {' and '.join(told)}")
    return replace(
        data, validation=kept["validation"], test=kept["test"], groups=groups, notes=notes
    )
