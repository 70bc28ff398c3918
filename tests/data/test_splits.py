"""Shares of samples: nested, stratified, whole groups; against a plain loop."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from xmodal.data.splits import in_folds, shares, split, split_in_time
from xmodal.errors import DataError


def order(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).permutation(count)


def test_without_strata_and_groups_a_share_is_the_beginning_of_the_order() -> None:
    found = shares(order(50), (5, 20, 50))
    for share, size in zip(found, (5, 20, 50), strict=True):
        np.testing.assert_array_equal(share, np.sort(order(50)[:size]))


@pytest.mark.parametrize("counts", [(50, 50), (90, 9, 1), (400, 37, 20, 3)])
def test_shares_are_nested_and_stratified(counts: tuple[int, ...]) -> None:
    strata = np.repeat(np.arange(len(counts)) * 7 + 3, counts)
    strata = strata[order(len(strata), 1)]
    sizes = [len(counts), *(round(len(strata) * f) for f in (0.1, 0.3, 0.5, 1.0))]
    found = shares(order(len(strata)), sorted(sizes), strata)
    for smaller, larger in itertools.pairwise(found):
        assert set(smaller) <= set(larger)
    for share, size in zip(found, sorted(sizes), strict=True):
        assert len(share) == len(set(share)) == size
        taken = [np.sum(strata[share] == value) for value in np.unique(strata)]
        # At least one of each, and otherwise the proportions of the whole.
        assert min(taken) >= 1
        exact = np.array(counts) * size / len(strata)
        assert (np.abs(taken - exact) <= max(1, len(counts) - 1)).all()


def test_the_order_decides_who_is_taken_in_a_class() -> None:
    strata = np.array([0, 1] * 20)
    (share,) = shares(order(40), (10,), strata)
    for value in (0, 1):
        first = [i for i in order(40) if strata[i] == value][:5]
        assert sorted(first) == [i for i in share if strata[i] == value]


def test_groups_stay_whole_and_shares_end_where_they_are_closest() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(rng.permutation(60) + 100, rng.integers(1, 9, 60))
    groups = groups[rng.permutation(len(groups))]
    sizes = [1, 30, 60, 120, len(groups)]
    found = shares(order(len(groups)), sizes, groups_N=groups)
    # A plain loop over the groups in the order in which they come up.
    turn = list(dict.fromkeys(groups[order(len(groups))].tolist()))
    for share, size in zip(found, sizes, strict=True):
        best: list[int] = []
        for count in range(1, len(turn) + 1):
            these = [i for i, group in enumerate(groups) if group in set(turn[:count])]
            if not best or abs(len(these) - size) < abs(len(best) - size):
                best = these
        assert share.tolist() == best
    assert all(set(a) <= set(b) for a, b in itertools.pairwise(found))


def test_groups_of_one_class_each_are_stratified_by_class() -> None:
    # 40 records of class 0 and 10 of class 1, four windows each.
    groups = np.repeat(np.arange(50), 4)
    strata = (groups >= 40).astype(int)
    (share,) = shares(order(200), (40,), strata, groups)
    records = np.unique(groups[share])
    assert len(share) == 40
    assert np.sum(records >= 40) == 2


def test_a_group_counts_to_the_class_of_most_of_its_samples() -> None:
    groups = np.repeat(np.arange(20), 5)
    strata = np.where(np.arange(100) % 5 < 3, groups % 2, 1 - groups % 2)
    (share,) = shares(order(100), (50,), strata, groups)
    assert np.bincount(np.unique(groups[share]) % 2).tolist() == [5, 5]


@pytest.mark.parametrize("seed", range(4))
def test_a_part_smaller_than_every_group_gets_the_smallest(seed: int) -> None:
    groups = np.repeat([7, 8, 9], [3, 5, 4])
    parts = split(12, (0.9, 0.1), seed, groups_N=groups)
    assert [sorted(set(groups[part].tolist())) for part in parts] == [[8, 9], [7]]
    with pytest.raises(DataError, match="2 samples in 1 groups"):
        split(2, (0.9, 0.1), seed, groups_N=np.array([1, 1]))


def test_the_past_trains_and_the_future_tests() -> None:
    time = order(100)  # every time once, shuffled
    parts = split_in_time(time, [0.7, 0.15, 0.15])
    assert [len(part) for part in parts] == [70, 15, 15]
    assert [(time[p].min(), time[p].max()) for p in parts] == [(0, 69), (70, 84), (85, 99)]
    assert all((np.diff(part) > 0).all() for part in parts)


def test_samples_of_one_time_stay_together() -> None:
    days = np.repeat([3, 1, 2, 0], [4, 44, 6, 46])
    parts = split_in_time(days, [0.7, 0.15, 0.15])
    assert [sorted(set(days[part])) for part in parts] == [[0, 1], [2], [3]]


def test_a_group_stays_whole_at_the_time_of_its_latest_sample() -> None:
    time = np.array([0.0, 9.0, 1.0, 2.0, 3.0, 4.0])
    group = np.array(["a", "a", "b", "b", "c", "c"])  # a began first, and went on longest
    first, second = split_in_time(time, [0.6, 0.4], group)
    assert first.tolist() == [2, 3, 4, 5]
    assert second.tolist() == [0, 1]


def test_too_few_times_are_refused() -> None:
    with pytest.raises(DataError, match="2 different times"):
        split_in_time(np.array([1, 1, 2]), [0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("classes", "each", "folds"), [(2, 1, 2), (24, 2, 5), (3, 2, 5), (3, 40, 7)]
)
def test_folds_spread_every_class(classes: int, each: int, folds: int) -> None:
    strata = np.repeat(np.arange(classes), each)[order(classes * each, 1)]
    found = in_folds(len(strata), folds, 0, strata)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(len(strata)))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    for value in range(classes):
        counts = [np.sum(strata[fold] == value) for fold in found]
        assert max(counts) - min(counts) <= 1


def test_folds_keep_groups_and_need_enough_samples() -> None:
    groups = np.arange(30) // 3
    for fold in in_folds(30, 5, 0, np.arange(30) % 2, groups):
        assert len(fold) == 6
        assert len(set(groups[fold])) == 2
    with pytest.raises(DataError, match="without leaving one empty"):
        in_folds(3, 5, 0, np.arange(3) % 2)
