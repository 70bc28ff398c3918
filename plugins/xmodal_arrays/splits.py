"""Which samples train, validate and test: stratified by class, or whole groups at a time.

Pure functions of counts, labels and a seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xmodal.errors import DataError
from xmodal_arrays.containers import Array, Indices


def split(
    count: int,
    shares: Sequence[float],
    seed: int,
    strata_N: Array | None = None,
    groups_N: Array | None = None,
) -> list[Indices]:
    """Cut ``range(count)`` into one ascending index array a share; the first share is training.

    With ``strata_N`` every stratum is cut alike, give or take one, and always trains. With
    ``groups_N`` no group is cut. Sizes do not depend on ``seed`` unless groups decide. Raises
    DataError where a part would be empty.
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
            "without an empty one; choose other shares or add samples"
        )
    return parts


def _by_stratum(strata_N: Array, shares: Sequence[float], seed: int) -> Indices:
    rng = np.random.RandomState(seed)
    share_P = np.asarray(shares, dtype=np.float64) / sum(shares)
    part_N = np.zeros(len(strata_N), dtype=np.int64)
    # What rounding leaves over is carried to the next stratum, so the totals come out right too.
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
        # The largest groups first, each to the part that lacks most.
        part_G[group] = missing_P.argmax()
        missing_P[part_G[group]] -= sizes[group]
    return part_G[group_N]
