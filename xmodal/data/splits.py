"""Splits samples into training, validation and test: stratified by class, or by whole groups.

Pure functions of counts, labels and a seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xmodal.data.arrays import Array, Indices
from xmodal.errors import DataError


def split(
    count: int,
    shares: Sequence[float],
    seed: int,
    strata_N: Array | None = None,
    groups_N: Array | None = None,
) -> list[Indices]:
    """Cut ``range(count)`` into one ascending index array per share; the first share is training.

    ``strata_N`` cuts every stratum in the same proportions, give or take one sample, and puts at
    least one sample of it into training. ``groups_N`` keeps each group whole. Without groups, sizes
    do not depend on ``seed``. Raises DataError if a part would be empty.
    """
    if groups_N is not None:
        part_N = _by_group(groups_N, shares, seed)
    else:
        part_N = _by_stratum(np.zeros(count) if strata_N is None else strata_N, shares, seed)
    parts = [np.flatnonzero(part_N == index) for index in range(len(shares))]
    if any(len(part) == 0 for part in parts):
        units = "samples" if groups_N is None else f"samples in {len(np.unique(groups_N))} groups"
        raise DataError(
            f"{count} {units} cannot be cut into parts of {', '.join(f'{s:.3g}' for s in shares)} "
            "without leaving one empty; choose other shares or add samples"
        )
    return parts


def _by_stratum(strata_N: Array, shares: Sequence[float], seed: int) -> Indices:
    rng = np.random.RandomState(seed)
    share_P = np.asarray(shares, dtype=np.float64) / sum(shares)
    part_N = np.zeros(len(strata_N), dtype=np.int64)
    # Carry rounding errors to the next stratum, so that the totals are right too.
    carry_P = np.full(len(shares), 0.5)
    for stratum in np.unique(strata_N):
        rows = rng.permutation(np.flatnonzero(strata_N == stratum))
        want_P = len(rows) * share_P + carry_P
        take_P = np.maximum(np.floor(want_P), 0).astype(np.int64)
        take_P[0] = 0
        while take_P.sum() > len(rows) - 1:
            take_P[take_P.argmax()] -= 1
        take_P[0] = len(rows) - take_P.sum()
        carry_P = want_P - take_P
        part_N[rows] = np.repeat(np.arange(len(shares)), take_P)
    return part_N


def _by_group(groups_N: Array, shares: Sequence[float], seed: int) -> Indices:
    rng = np.random.RandomState(seed)
    names, group_N, sizes = np.unique(groups_N, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    missing_P = len(groups_N) * np.asarray(shares, dtype=np.float64) / sum(shares)
    part_G = np.zeros(len(names), dtype=np.int64)
    for group in order:
        # Largest groups first; each goes to the part that lacks the most samples.
        part_G[group] = missing_P.argmax()
        missing_P[part_G[group]] -= sizes[group]
    return part_G[group_N]
