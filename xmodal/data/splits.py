"""Splits samples into training, validation and test, and takes shares of the training samples.

Both are stratified by class, or keep groups whole; ``split_in_time`` trains on the past. Pure
functions of counts, labels, times and a seed.
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


def in_folds(
    count: int,
    folds: int,
    seed: int,
    strata_N: Array | None = None,
    groups_N: Array | None = None,
) -> list[Indices]:
    """Cut ``range(count)`` into ``folds`` parts of equal size, each an ascending index array.

    ``strata_N`` spreads every stratum over the folds as evenly as can be, however few samples it
    has. ``groups_N`` keeps each group whole. Raises DataError if a fold would be empty.
    """
    if groups_N is not None or strata_N is None or count < folds:
        return split(count, [1 / folds] * folds, seed, None, groups_N)
    order = np.random.RandomState(seed).permutation(count)
    order = order[np.argsort(strata_N[order], kind="stable")]
    return [np.sort(order[fold::folds]) for fold in range(folds)]


def split_in_time(
    time_N: Array, shares: Sequence[float], groups_N: Array | None = None
) -> list[Indices]:
    """Cut samples by time: the earliest share first. One ascending index array per share.

    Samples of the same time stay together. A group (``groups_N``) stays whole, and has the time of
    its latest sample. Raises DataError if a part would be empty.
    """
    whole_N = time_N if groups_N is None else groups_N
    _, unit_N, size_U = np.unique(whole_N, return_inverse=True, return_counts=True)
    order_N = np.argsort(time_N, kind="stable")
    latest_U = np.empty(len(size_U), dtype=np.int64)
    latest_U[unit_N[order_N]] = np.arange(len(order_N))  # of several samples the last one counts
    order_U = np.argsort(latest_U)
    end_U = np.cumsum(size_U[order_U])
    wanted_P = np.cumsum(np.asarray(shares, dtype=np.float64) / sum(shares)) * len(time_N)
    # A part ends after the unit that brings it closest to its size, and each has one at least.
    cuts, units = [0], len(size_U)
    for place, wanted in enumerate(wanted_P[:-1].tolist(), start=1):
        nearest = int(np.abs(end_U - wanted).argmin()) + 1
        cuts.append(max(cuts[-1] + 1, min(nearest, units - (len(shares) - place))))
    if units < len(shares):
        what = "groups" if groups_N is not None else "different times"
        raise DataError(
            f"{len(time_N)} samples of {units} {what} cannot be cut into {len(shares)} parts by "
            "time; choose other shares or leave out time"
        )
    part_U = np.empty(units, dtype=np.int64)
    for part, (low, high) in enumerate(zip(cuts, [*cuts[1:], units], strict=True)):
        part_U[order_U[low:high]] = part
    return [np.flatnonzero(part_U[unit_N] == part) for part in range(len(shares))]


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
    _fill(part_G, sizes, len(shares))
    return part_G[group_N]


def _fill(part_G: Indices, sizes: Indices, parts: int) -> None:
    """Give a part that got no group, being smaller than all, the smallest group of another."""
    for part in range(parts):
        counts = np.bincount(part_G, minlength=parts)
        if counts[part] == 0 and counts.max() > 1:
            able = np.flatnonzero(counts[part_G] > 1)
            part_G[able[np.argmin(sizes[able])]] = part


def shares(
    order_N: Indices,
    sizes: Sequence[int],
    strata_N: Array | None = None,
    groups_N: Array | None = None,
) -> list[Indices]:
    """Ascending indices of about ``sizes`` samples each; a smaller share lies in every larger one.

    ``order_N``: those samples that may be taken, in random order. With ``strata_N`` every share has
    the proportions of the whole, give or take a sample of each stratum, and the first samples are
    one of each. With ``groups_N`` groups stay whole: a share ends after the group that brings it
    closest to its size, and a group counts to the stratum of most of its samples. Every share has a
    sample. Both arrays have an entry for every sample of the data set.
    """
    stratum_N = np.zeros(len(order_N)) if strata_N is None else strata_N[order_N]
    groups_N = order_N if groups_N is None else groups_N[order_N]
    _, first_G, group_N = np.unique(groups_N, return_index=True, return_inverse=True)
    # Groups are numbered as they occur in the order.
    rank_G = np.empty(len(first_G), dtype=np.int64)
    rank_G[np.argsort(first_G)] = np.arange(len(first_G))
    group_N = rank_G[group_N]
    size_G = np.bincount(group_N)
    stratum_G = _commonest(group_N, stratum_N)
    begin_G = np.empty(len(size_G))
    for stratum in np.unique(stratum_G):
        own = np.flatnonzero(stratum_G == stratum)
        # Where the group begins, as a fraction of its stratum.
        begin_G[own] = (np.cumsum(size_G[own]) - size_G[own]) / size_G[own].sum()
    turn_G = np.argsort(begin_G, kind="stable")
    end_G = np.cumsum(size_G[turn_G])
    place_G = np.empty_like(turn_G)
    place_G[turn_G] = np.arange(len(turn_G))
    return [np.sort(order_N[place_G[group_N] <= np.abs(end_G - size).argmin()]) for size in sizes]


def _commonest(group_N: Indices, strata_N: Array) -> Indices:
    """The number of the commonest stratum of each group; of several, the first."""
    _, stratum_N = np.unique(strata_N, return_inverse=True)
    pair, count = np.unique(group_N * (stratum_N.max() + 1) + stratum_N, return_counts=True)
    group_P, stratum_P = np.divmod(pair, stratum_N.max() + 1)
    best_P = np.lexsort((stratum_P, -count, group_P))
    _, at = np.unique(group_P[best_P], return_index=True)
    found: Indices = stratum_P[best_P][at]
    return found
