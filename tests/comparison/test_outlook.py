"""What a comparison can say at best, known before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xmodal.comparison.error_table import ErrorTable
from xmodal.comparison.grid import Cell
from xmodal.comparison.outlook import asked_pairs, banners, outlook
from xmodal.comparison.verdicts import judge

from .test_verdicts import cells


def cell(method: str, task: str, seed: int = 0, role: str = "method", **more: Any) -> Cell:
    folder = None if more.pop("skipped", False) else Path(task) / method / f"seed{seed}"
    resolved = {"role": role, **more}
    return Cell(method, task, seed, (), (), resolved=resolved, directory=folder)


def grid(tasks: int, seeds: int, methods: tuple[str, ...] = ("a", "b")) -> list[Cell]:
    return [cell(m, f"t{t}", s) for m in methods for t in range(tasks) for s in range(seeds)]


def test_six_tasks_with_three_seeds_can_give_a_verdict() -> None:
    assert outlook(grid(6, 3)) == ""


@pytest.mark.parametrize(
    ("tasks", "seeds", "said"),
    [
        (2, 3, "it has 2 tasks, and 6 are needed; it will"),
        (6, 1, "it has 1 seed, and 3 are needed (--seeds 3); it will"),
        (1, 2, "it has 1 task, and 6 are needed; 2 seeds, and 3 are needed (--seeds 3); it will"),
    ],
)
def test_what_is_lacking_is_said_in_one_sentence(tasks: int, seeds: int, said: str) -> None:
    line = outlook(grid(tasks, seeds))
    assert said in line
    assert "\n" not in line


def test_cells_that_cannot_run_do_not_count() -> None:
    """Seven tasks, but one of the two methods has the data of five alone."""
    found = grid(7, 3, ("a",)) + grid(5, 3, ("b",))
    found += [cell("b", f"t{t}", s, skipped=True) for t in (5, 6) for s in range(3)]
    assert "it has 5 tasks, and 6 are needed" in outlook(found)


def test_one_pair_that_can_is_enough_and_cheap_answers_are_no_pair() -> None:
    found = grid(6, 3) + grid(1, 3, ("c",))
    assert outlook(found) == ""
    assert outlook([cell("a", "t"), cell("cheap", "t", role="trivial")]) == ""


def test_three_seeds_here_and_three_seeds_there_are_not_enough() -> None:
    found = grid(6, 3, ("a",)) + grid(6, 1, ("b",)) + grid(4, 3, ("b",))
    assert "3 seeds of both methods on 4 tasks, and 6 such tasks" in outlook(found)


def test_it_asks_for_the_pairs_of_the_table() -> None:
    assert asked_pairs(["a", "b"], ["r"], None) == [("a", "b"), ("a", "r"), ("b", "r")]
    assert asked_pairs(["a", "b"], ["r"], "r") == [("a", "r"), ("b", "r")]
    assert asked_pairs([], ["r", "s"], None) == [("r", "s")]


def test_every_warning_once() -> None:
    found = [cell("a", "t", banner="smoke"), cell("b", "t", banner="smoke"), cell("c", "t")]
    assert banners(found) == ("smoke",)


def test_it_agrees_with_the_verdict_that_is_given_in_the_end() -> None:
    """What is foretold as impossible is refused, whatever the scores; what is possible is not."""
    for tasks, seeds in ((5, 3), (6, 2), (6, 3), (7, 4)):
        (result,) = judge(ErrorTable.of(cells({"a": 0.0, "b": 0.1}, tasks, seeds)))
        assert (result.verdict.word == "refused") is bool(outlook(grid(tasks, seeds)))
