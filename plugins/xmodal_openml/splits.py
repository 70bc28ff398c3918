"""How OpenML-CC18 tables are split: TabPFN's protocol, ORCA's protocol, and the validation part.

All are pure functions of labels and small integers; none touches a global random state.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal.errors import DataError
from xmodal_openml.tables import Labels

Indices = NDArray[np.int64]
_WINDOW = 2000
_SEEDS = range(13, 21)


def tabpfn_order(count: int) -> Indices:
    """The row order of TabPFN's file: ``order[i]`` is the raw row at place i (numpy, seed 13)."""
    order = np.arange(count)
    np.random.RandomState(13).shuffle(order)
    return order


def tabpfn_split(y_N: Labels, number: int) -> tuple[Indices, Indices]:
    """Train and test rows of split ``number`` >= 1 of rows already in ``tabpfn_order``.

    Split 1 keeps the order; split k > 1 permutes the rows with torch's seed k. Of up to 8 random
    windows of at most 2,000 rows, the result is the first whose two halves both hold every class.
    Raises DataError if no window does. Source: ``generate_valid_split`` and ``evaluate`` of
    automl/TabPFN.
    """
    count = len(y_N)
    order = np.arange(count)
    if number > 1:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(number)).numpy()
    half = min(count, _WINDOW) // 2
    for seed in _SEEDS:
        spare = count - 2 * half
        start = random.Random(seed).randint(0, spare) if spare > 0 else 0
        train, test = order[start : start + half], order[start + half : start + 2 * half]
        classes = np.unique(y_N)
        if all(np.array_equal(np.unique(y_N[part]), classes) for part in (train, test)):
            return train, test
    raise DataError(
        f"split {number}: no window of {2 * half} rows has all {len(np.unique(y_N))} classes in "
        "both halves (TabPFN's protocol tries 8); choose another split or protocol_split: orca"
    )


def orca_split(y_N: Labels, number: int) -> tuple[Indices, Indices]:
    """A stratified 90/10 split, seeded with ``number``. Raises DataError for a class of one row.

    ORCA draws its split without a seed and caches it, so its own split cannot be reproduced.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    splitter = StratifiedShuffleSplit(n_splits=1, test_size=0.1, random_state=number)
    try:
        train, test = next(splitter.split(np.zeros(len(y_N)), y_N))
    except ValueError as error:
        raise DataError(f"protocol_split orca: {error}") from error
    return train.astype(np.int64), test.astype(np.int64)


def sizes(count: int, protocol: str) -> tuple[int, int, int]:
    """How many of ``count`` rows train, validate and test where no class has a single row."""
    if protocol == "tabpfn":
        whole = test = min(count, _WINDOW) // 2
    else:
        test = -(-count // 10)
        whole = count - test
    validation = len(range(2, whole, 5))
    return whole - validation, validation, test


def hold_out(rows: Indices, y_N: Labels, seed: int) -> tuple[Indices, Indices]:
    """Split ``rows`` into training and validation rows: 20 %, stratified, order kept.

    Takes every fifth of the rows sorted by class (shuffled within a class). Each class thus gives
    about a fifth of its rows, and the number of rows depends only on ``len(rows)``. A class of one
    row stays in training.
    """
    order = np.random.RandomState(seed).permutation(len(rows))
    order = order[np.argsort(y_N[rows][order], kind="stable")]
    chosen = order[2::5]
    labels, counts = np.unique(y_N[rows], return_counts=True)
    chosen = chosen[~np.isin(y_N[rows][chosen], labels[counts == 1])]
    mask = np.zeros(len(rows), dtype=bool)
    mask[chosen] = True
    return rows[~mask], rows[mask]
