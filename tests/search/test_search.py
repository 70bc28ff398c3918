"""Successive halving on a machine that scores runs by their learning rate, without training them.

Recipes are planned as in every search. The machine leaves what a run leaves: its result.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from xmodal import plugins
from xmodal.data.store import Store
from xmodal.interfaces import Job, Launcher
from xmodal.recipe.yaml import read
from xmodal.runs import Run
from xmodal.search.clock import Clock
from xmodal.search.search import TOO_LATE, Search
from xmodal.search.space import Answer, Rung
from xmodal.search.trials import RECIPE, Maker

from .. import forms

LADDER = (Rung(1, 1, 8), Rung(3, 1, 8), Rung(9, 1, 8))
CHEAP = Answer("cheap", ("methods/baseline",), cheap=True)
RATES = (0.9, 0.8, 0.25, 0.7, 0.6, 0.31, 0.5, 0.05, 0.4)


def tuned(rate: float) -> Answer:
    return Answer(f"rate {rate}", ("methods/nft",), {"training.optimizer.lr": rate})


class Machine(Launcher):
    """Ends every job when it is next asked, with the score of its learning rate.

    ``now``: a clock's hands, which a step of a run moves on.
    """

    slots = 1

    def __init__(self, clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.clock, self.seconds = clock, seconds
        self.started: list[tuple[float, int, int]] = []
        self.broken: set[float] = set()
        self.stopped = False
        self._held: list[Path] = []

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            folder = Path(job.name)
            recipe: Mapping[str, Any] = read(folder / RECIPE).data
            stage = recipe["stages"][0]
            rate = stage.get("optimizer", {}).get("lr", 0.0)
            steps = stage.get("epochs", 0)
            self.started.append((rate, steps, recipe["task"].get("fold", 0)))
            if rate in self.broken:
                job.log.write_text("MemoryError: too large\n")
                Run(folder).set_state("failed")
            else:
                score = round(abs(rate - 0.3) + 0.1 / (1 + steps), 9)
                took = {"training": 0.0, "this_process": max(1, steps) * self.seconds}
                Run(folder).write("result.json", forms.result(score, seconds=took))
                Run(folder).set_state("done")
            if self.clock is not None:
                self.clock.begun -= max(1, steps) * self.seconds
            self._held.append(folder)

    def unfinished(self) -> Mapping[str, str]:
        self._held.clear()
        return {}

    def wait(self, seconds: float) -> None:
        pass

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "y"])
        rows.writerows([i, i % 7, "yes" if i % 3 else "no"] for i in range(60))
    return Maker(
        plugins.registry(),
        Store(),
        tmp_path / "trials",
        "arrays/row",
        (f"task.path={tmp_path / 'mine.csv'}",),
        ("backbone=tiny",),
        None,
    )


def search(maker: Maker, machine: Machine, clock: Clock | None = None, **more: Any) -> Search:
    lines: list[str] = []
    more = {"folds": [range(1)] * 3, "say": lines.append, **more}
    return Search(maker, machine, 1, clock or Clock(None), "lower", **more)


def in_time(maker: Maker, seconds: float, **more: Any) -> tuple[Search, Machine, Clock]:
    """A search whose steps take 400 s, beside which the seconds that planning takes are none."""
    clock = Clock(seconds)
    machine = Machine(clock, seconds=400.0)
    return search(maker, machine, clock, **more), machine, clock


def test_a_third_climbs_from_rung_to_rung(maker: Maker) -> None:
    machine = Machine()
    made = search(maker, machine)
    made.run([CHEAP], iter(map(tuned, RATES)), LADDER, 9)
    by_rung = [[rate for rate, steps, _ in machine.started if steps == s] for s in (1, 3, 9)]
    assert by_rung[0] == list(RATES)  # in their order, after the cheap answer
    assert machine.started[0] == (0.0, 0, 0)
    assert by_rung[1:] == [[0.31, 0.25, 0.4], [0.31]]
    assert made.eligible()[0].name == "rate 0.31, 9 steps"
    assert [trial.rung for trial in made.trials] == [None, *[0] * 9, *[1] * 3, 2]


def test_brackets_follow_until_enough_trials_were_made(maker: Maker) -> None:
    machine = Machine()
    made = search(maker, machine, most=17)
    made.run([CHEAP], (tuned(0.001 * n) for n in count(1)), LADDER, 9)
    assert len(made.trials) == len(machine.started) == 17
    again = Machine()
    repeated = search(maker, again, most=17)
    repeated.run([CHEAP], (tuned(0.001 * n) for n in count(1)), LADDER, 9)
    assert [trial.name for trial in repeated.trials] == [trial.name for trial in made.trials]
    assert again.started == []  # what is done is not done again


def test_a_cheap_answer_that_is_as_good_is_preferred(maker: Maker) -> None:
    for rate, chosen in ((0.65, CHEAP), (0.64, tuned(0.64))):
        made = search(maker, Machine())
        made.run([CHEAP], iter([tuned(rate)]), (Rung(1, 1, 8),), 9)
        assert [trial.score() for trial in made.trials] == [0.4, round(rate - 0.25, 9)]
        assert made.eligible()[0].answer == chosen


def test_what_fails_is_left_out_with_its_reason(maker: Maker) -> None:
    machine = Machine()
    machine.broken = {0.31}
    made = search(maker, machine)
    wrong = Answer("wrong", ("methods/nft",), {"embedder": "patch"})
    made.run([CHEAP, wrong], iter(map(tuned, (0.31, 0.5))), LADDER, 9)
    assert "MemoryError: too large" in made.left_out["rate 0.31, 1 steps"]
    assert "patch" in made.left_out["wrong"]
    assert [t.name for t in made.eligible()] == [
        "rate 0.5, 9 steps", "rate 0.5, 3 steps", "rate 0.5, 1 steps", "cheap",
    ]  # fmt: skip


def test_the_clock_decides_only_what_starts(maker: Maker) -> None:
    made, machine, clock = in_time(maker, 15_000.0)
    made.run([CHEAP], iter(map(tuned, RATES)), LADDER, 9)
    assert clock.left() > 0
    assert 1 < len(machine.started) < 13
    free = Machine()
    unlimited = search(maker, free)
    unlimited.run([CHEAP], iter(map(tuned, RATES)), LADDER, 9)
    started = [trial.name for trial in made.trials]
    assert started[:3] == [trial.name for trial in unlimited.trials][:3]
    late = [name for name, why in made.left_out.items() if why == TOO_LATE]
    assert late
    assert not set(late) & set(started)


def test_time_for_two_rungs_is_spent_on_two_rungs(maker: Maker) -> None:
    """Where the top is too far, ways to fine-tune start all the same, and the best ones climb."""
    made, machine, clock = in_time(maker, 10_000.0)
    made.run([CHEAP], iter(map(tuned, RATES)), LADDER, 9)
    assert [rate for rate, steps, _ in machine.started if steps == 1] == list(RATES)
    climbed = [rate for rate, steps, _ in machine.started if steps == 3]
    assert climbed == [0.31, 0.25, 0.4][: len(climbed)]
    assert climbed
    assert not any(steps == 9 for _, steps, _ in machine.started)
    assert made.eligible()[0].name == "rate 0.31, 3 steps"
    assert 0 < clock.left() < 5_000


def test_however_short_the_time_is_there_is_an_answer(maker: Maker) -> None:
    clock = Clock(1e-9)
    machine = Machine(clock, seconds=4.0)
    made = search(maker, machine, clock)
    made.run([CHEAP], iter(map(tuned, (0.3, 0.4))), LADDER, 9)
    assert [trial.name for trial in made.eligible()] == ["cheap"]
    assert len(machine.started) == 1


def test_only_trials_on_all_folds_can_be_chosen(maker: Maker) -> None:
    folded = Maker(**{**vars(maker), "folds": 3})
    machine = Machine()
    made = search(folded, machine, folds=[range(1), range(2), range(3)])
    made.run([CHEAP], iter(map(tuned, (0.31, 0.9, 0.8, 0.7))), LADDER, 9)
    assert [fold for rate, _, fold in machine.started if rate == 0.0] == [0, 1, 2]
    assert sorted((s, fold) for rate, s, fold in machine.started if rate == 0.31) == [
        (1, 0), (3, 0), (3, 1), (9, 0), (9, 1), (9, 2),
    ]  # fmt: skip
    assert {trial.name for trial in made.eligible()} == {"cheap", "rate 0.31, 9 steps"}


def test_what_cannot_climb_in_time_is_judged_where_it_can(maker: Maker) -> None:
    """On all folds, with the most steps there is time for, so that it can be chosen after all."""
    folded = Maker(**{**vars(maker), "folds": 3})
    made, machine, clock = in_time(folded, 10_000.0, folds=[range(1), range(2), range(3)])
    made.run([CHEAP], iter(map(tuned, (0.31, 0.9))), LADDER, 9)
    assert [(s, fold) for rate, s, fold in machine.started if rate == 0.31] == [
        (1, 0), (3, 0), (3, 1), (3, 2),
    ]  # fmt: skip
    assert {trial.name for trial in made.eligible()} == {"cheap", "rate 0.31, 3 steps"}
    assert made.left_out["rate 0.31, 9 steps"] == TOO_LATE
    assert clock.left() > 0
