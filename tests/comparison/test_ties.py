"""A difference inside the region of practical equivalence is a tie; ranks say they ignore it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xmodal.comparison.criteria import Rule
from xmodal.comparison.error_table import ErrorTable
from xmodal.comparison.ranks import overview
from xmodal.comparison.verdicts import judge


def table(*errors: tuple[float, float]) -> ErrorTable:
    """Errors of methods a and b, a task each."""
    found = {}
    for t, pair in enumerate(errors):
        for method, error in zip("ab", pair, strict=True):
            found[method, f"t{t}"] = {0: error}
    return ErrorTable.of(found)


@pytest.mark.parametrize(
    ("a", "b", "counted"),
    [
        (0.556278, 0.556297, (0, 1, 0)),  # 0.003 %
        (1.0, 1.0099, (0, 1, 0)),
        (1.0, 1.01, (0, 1, 0)),  # its edge is inside
        (1.0, 1.0101, (1, 0, 0)),
        (1.0101, 1.0, (0, 0, 1)),
        (1e-9, 1.005e-9, (0, 1, 0)),  # whatever the unit
        (1e-9, 2e-9, (1, 0, 0)),
        (math.inf, 1.0, (0, 0, 1)),  # a failed run is no tie
        (math.inf, math.inf, (0, 1, 0)),
    ],
)
def test_wins_ties_and_losses(a: float, b: float, counted: tuple[int, int, int]) -> None:
    (result,) = judge(table((a, b)))
    assert (result.wins, result.ties, result.losses) == counted


def test_the_rule_says_how_wide_it_is() -> None:
    (result,) = judge(table((1.0, 1.04)), rule=Rule(rope=0.05))
    assert (result.wins, result.ties, result.losses) == (0, 1, 0)


def test_ranks_order_what_is_a_tie_and_say_so() -> None:
    found = overview(table((0.556278, 0.556297), (1.0, 1.0), (1.0, 2.0)))
    assert found is not None
    assert found.ranks == {"a": np.mean([1, 1.5, 1]), "b": np.mean([2, 1.5, 2])}
    assert found.close == {"t0": ("a", "b")}  # equal errors share their rank already


def test_of_three_methods_only_those_that_are_close_are_named() -> None:
    errors = {(m, "t"): {0: e} for m, e in {"a": 1.0, "b": 1.009, "c": 1.5}.items()}
    found = overview(ErrorTable.of(errors))
    assert found is not None
    assert found.close == {"t": ("a", "b")}
