"""Which epoch counts as the best."""

from __future__ import annotations

import math

import pytest

from xmodal.engine.loop import _better


@pytest.mark.parametrize(
    ("score", "best", "lower", "expected"),
    [
        (1.0, None, True, True),
        (math.nan, None, True, True),
        (1.0, math.nan, True, True),
        (math.nan, math.nan, True, False),
        (math.nan, 1.0, True, False),
        (math.nan, 1.0, False, False),
        (0.5, 1.0, True, True),
        (0.5, 1.0, False, False),
        (1.0, 1.0, True, False),
    ],
)
def test_better(score: float, best: float | None, lower: bool, expected: bool) -> None:
    assert _better(score, best, lower) is expected
