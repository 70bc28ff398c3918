"""Durations, and what the clock lets begin."""

from __future__ import annotations

import time

import pytest

from xmodal.errors import UsageError
from xmodal.search.clock import MARGIN, Clock
from xmodal.search.clock import seconds as parsed


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 H ", 7200), ("1d", 86400)],
)
def test_durations(text: str, expected: float) -> None:
    assert parsed(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0m", "-5m", "10 minutes", "m", "1e3"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        parsed(text)


def test_a_run_starts_only_if_it_ends_in_time() -> None:
    clock = Clock(100.0, begun=time.monotonic())
    assert clock.allows("a", 50.0, 0.0)  # nothing is known yet
    clock.learn("a", 10.0, 5.0)  # half a second for a unit
    assert clock.expected("b", 50.0) == 25.0
    assert clock.allows("b", 50.0, 60.0)
    assert not clock.allows("b", 50.0, 70.0)
    assert not clock.allows("b", 100.0 / (0.5 * MARGIN) + 1, 0.0)


def test_an_answer_goes_by_its_own_runs() -> None:
    clock = Clock(100.0, begun=time.monotonic())
    for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 9.0)):
        clock.learn(name, 1.0, seconds)
    assert [clock.expected(name, 2.0) for name in "abcd"] == [2.0, 4.0, 18.0, 4.0]


def test_a_cheap_answer_is_expected_to_take_as_long_as_the_slowest() -> None:
    clock = Clock(100.0, begun=time.monotonic())
    assert clock.allows("c", 0.0, 0.0)
    clock.learn("a", 0.0, 2.0)
    clock.learn("b", 0.0, 30.0)
    assert clock.expected("c", 0.0) == 30.0
    assert not clock.allows("c", 0.0, 65.0)


def test_after_the_limit_nothing_starts_and_without_one_everything() -> None:
    over = Clock(10.0, begun=time.monotonic() - 11)
    assert over.left() < 0
    assert not over.allows("a", 0.0, 0.0)
    endless = Clock(None)
    endless.learn("a", 1.0, 1e6)
    assert endless.allows("a", 1e6, 1e6)
