"""Runs that share a process: each computes what it computes alone, and ends as it would alone."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal import api, plugins, runs
from xmodal.data.store import Store
from xmodal.engine import together as pack
from xmodal.engine.memory import OutOfMemory
from xmodal.engine.observe import Silent
from xmodal.engine.plan import compose_plan
from xmodal.engine.process import StopRequest
from xmodal.engine.run import SHARED, Interrupted, Outcome, RunOrder
from xmodal.engine.together import Result, Work, _forget, execute_together
from xmodal.engine.turns import OwnClock, OwnState, turns
from xmodal.errors import TrainingError, UsageError
from xmodal.testing.running import RecordingObserver, StopAt, assert_same, weights

from ..conftest import TINY
from ..forms import TIMED
from .test_memory import Limit

CPU = torch.device("cpu")
MIXED = ["training.max_steps=null", "training.epochs=3", "training.batch={size: 4, micro: 2}"]
RUNS: dict[str, tuple[str, list[str]]] = {
    "pare": ("methods/pare", [*TINY, "seed=1"]),
    "mixup": ("methods/mixup", ["task.train=13", *MIXED, "seed=2"]),
    "baseline": ("methods/baseline", ["task.train=10"]),
}
"""Drop-out, a mixer that draws, epochs of other lengths, and one that only fits a closed form."""
MORE: dict[str, tuple[str, list[str]]] = {
    "pare again": ("methods/pare", [*TINY, "seed=2"]),
    "cutmix": ("methods/cutmix", ["task.train=10", *MIXED]),
    "random": ("methods/random", ["task.train=10", *MIXED]),
    "orca": ("methods/orca", ["task.train=10", *MIXED, "stages.0={epochs: 3, samples: 16}"]),
}
ALL = RUNS | MORE


def work(name: str, root: Path, *more: str, observer: Silent | None = None) -> Work:
    recipe, settings = ALL[name]
    store = Store()
    overrides = [*settings, "saving.every_steps=1", *more]
    plan = compose_plan([recipe, "tasks/darcy"], plugins.registry(), store, overrides, "smoke")
    return Work(plan, RunOrder(name, root), observer)


def together(*works: Work) -> list[Result]:
    return execute_together(works, plugins.registry(), Store())


def alone(name: str, root: Path) -> runs.Run:
    recipe, settings = ALL[name]
    overrides = [*settings, "saving.every_steps=1"]
    return api.run(
        *(recipe, "tasks/darcy"),
        scale="smoke",
        overrides=overrides,
        root=root,
        name=name,
        report=False,
    ).run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, runs.Run]:
    """Every run of ``RUNS``, made alone."""
    root = tmp_path_factory.mktemp("alone")
    return {name: alone(name, root) for name in RUNS}


def the_run(result: Result) -> runs.Run:
    assert isinstance(result, Outcome), result
    return result.run


def numbers(run: runs.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in run.metrics()]


def assert_equal(one: runs.Run, other: runs.Run) -> None:
    assert_same(weights(one), weights(other))
    assert numbers(one) == numbers(other)
    assert one.read("result.json")["test"] == other.read("result.json")["test"]
    assert (
        one.read("result.json")["encoded_samples"] == other.read("result.json")["encoded_samples"]
    )


class Heard(RecordingObserver):
    """Writes down whose records came, and does something after a number of them."""

    def __init__(self, name: str, order: list[str], at: int = -1, act: Any = None) -> None:
        super().__init__()
        self.name, self.order, self.at, self.act = name, order, at, act

    def record(self, record: Any) -> None:
        super().record(record)
        self.order.append(self.name)
        if self.order.count(self.name) == self.at:
            self.act()


@pytest.mark.long
def test_every_run_computes_what_it_computes_alone(
    whole: dict[str, runs.Run], tmp_path: Path
) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    order: list[str] = []
    results = together(*(work(name, tmp_path, observer=Heard(name, order)) for name in RUNS))
    for name, result in zip(RUNS, results, strict=True):
        assert_equal(the_run(result), whole[name])
        assert SHARED in the_run(result).notes()
        assert the_run(result).state == "done"
        assert not the_run(result).locked()
    # They did take turns, and the process has its random state back.
    assert order[:7] == ["pare", "pare", "mixup", "pare", "mixup", "baseline", "pare"]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.long
def test_more_methods_compute_what_they_compute_alone(tmp_path: Path) -> None:
    results = together(*(work(name, tmp_path / "together") for name in MORE))
    for name, result in zip(MORE, results, strict=True):
        assert_equal(the_run(result), alone(name, tmp_path / "alone"))


def test_runs_that_need_another_process_follow(whole: dict[str, runs.Run], tmp_path: Path) -> None:
    """Whether kernels are deterministic is a property of a process."""

    class Kernels(Silent):
        def __init__(self) -> None:
            self.seen: list[bool] = []

        def record(self, record: object) -> None:
            self.seen.append(torch.are_deterministic_algorithms_enabled())
            order.append(self)

    order: list[Kernels] = []
    watching = [Kernels() for _ in range(3)]
    before = torch.are_deterministic_algorithms_enabled()
    results = together(
        work("mixup", tmp_path, observer=watching[0]),
        work("baseline", tmp_path, "deterministic=false", observer=watching[1]),
        work("baseline", tmp_path, observer=watching[2]),
    )
    assert_equal(the_run(results[0]), whole["mixup"])
    assert_equal(the_run(results[2]), whole["baseline"])
    assert the_run(results[1]).path.parent == the_run(results[2]).path.parent
    assert [set(one.seen) for one in watching] == [{True}, {False}, {True}]
    assert order[-1] is watching[1]
    assert torch.are_deterministic_algorithms_enabled() is before


def test_what_is_wrong_with_one_run_ends_it_alone(
    whole: dict[str, runs.Run], tmp_path: Path
) -> None:
    said: list[Result] = []
    bad = work("mixup", tmp_path, "training.optimizer.lr=1e30")
    bad = replace(bad, ended=said.append)
    results = together(bad, work("pare", tmp_path))
    assert isinstance(results[0], TrainingError)
    assert said == [results[0]]
    assert results[0].__traceback__ is None  # it would hold on to the model
    (folder,) = (tmp_path / "mixup").glob("*")
    assert runs.Run(folder).state == "stopped"
    assert str(results[0]) == runs.Run(folder).read("status.json")["reason"]
    assert_equal(the_run(results[1]), whole["pare"])


def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    results = together(
        work("mixup", tmp_path, "device=cuda:99"),
        work("pare", tmp_path, "device=cuda:99"),
        work("baseline", tmp_path),
    )
    assert isinstance(results[0], UsageError)
    assert isinstance(results[1], UsageError)
    assert "there is no 'cuda:99' here" in str(results[1])
    assert isinstance(results[2], Outcome)
    assert not list(tmp_path.glob("mixup/*"))


def test_a_run_that_fails_as_if_by_its_neighbours_goes_on_alone(
    whole: dict[str, runs.Run], tmp_path: Path
) -> None:
    """Out of memory, say: whose fault it was cannot be known."""
    results = together(
        work("pare", tmp_path, observer=StopAt(5)),
        work("mixup", tmp_path, observer=RecordingObserver()),
    )
    assert str(results[0]) == "crash"
    assert isinstance(results[0], RuntimeError)
    (folder,) = (tmp_path / "pare").glob("*")
    assert runs.Run(folder).state == "dead"
    assert_equal(the_run(results[1]), whole["mixup"])
    assert_equal(alone("pare", tmp_path), whole["pare"])
    assert runs.Run(folder).state == "done"


def gpu_in_name(
    monkeypatch: pytest.MonkeyPatch, works: Sequence[Work], free: Sequence[int]
) -> list[Result | None]:
    """Carry out works on the CPU as if on a GPU with so many of 100 bytes free, one after another.

    Its kernels are broken once a run has raised SystemExit.
    """
    left = list(free)
    stop = StopRequest()
    members = [pack._Member(work, plugins.registry(), Store(), stop, True) for work in works]

    def synchronize() -> None:
        if any(isinstance(member.result, SystemExit) for member in members):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(pack, "OwnState", lambda device: OwnState(CPU))
    monkeypatch.setattr(pack, "turns", lambda device: turns(CPU))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (left.pop(0), 100))
    gpu = pack._Pack(members, "cpu", stop)
    gpu.device = torch.device("cuda")
    gpu.carry_out()
    assert not left
    return [member.result for member in members]


class Short(RecordingObserver):
    """Lets memory run out after some passes of the encoder."""

    def __init__(self, calls: int, evaluating: bool) -> None:
        super().__init__()
        self.calls, self.evaluating = calls, evaluating

    def started(self, run: runs.Run, session: Any, resumed: bool) -> None:
        Limit(session, 0, self.calls, self.evaluating)


@pytest.mark.long
def test_memory_that_is_short_beside_others_changes_no_run(
    whole: dict[str, runs.Run], tmp_path: Path
) -> None:
    """Alone there may be enough, so samples at once are not halved: each goes on alone."""
    results = together(
        work("pare", tmp_path, observer=Short(7, evaluating=False)),
        work("mixup", tmp_path, observer=Short(2, evaluating=True)),
    )
    for name, result in zip(("pare", "mixup"), results, strict=True):
        assert isinstance(result, OutOfMemory)
        assert str(result) == "out of memory beside other runs in the same process"
        (folder,) = (tmp_path / name).glob("*")
        assert runs.Run(folder).state == "dead"
        assert_equal(alone(name, tmp_path), whole[name])
        log = (folder / "log.txt").read_text()
        assert "resuming" in log
        assert "samples at once" not in log


def test_a_broken_device_ends_all_runs_as_a_crash_would(
    whole: dict[str, runs.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> None:
        raise SystemExit(1)  # a library that gives up

    results = gpu_in_name(
        monkeypatch,
        [
            work("pare", tmp_path, observer=Heard("pare", [], 3, breaks)),
            work("mixup", tmp_path),
            work("baseline", tmp_path),
        ],
        [90, 80, 70],  # at first, for the second and for the third, which makes one turn
    )
    assert isinstance(results[0], SystemExit)
    assert "CUDA error" in str(results[1])
    assert results[1] is results[2]
    for name in ("pare", "mixup"):
        (folder,) = (tmp_path / name).glob("*")
        assert runs.Run(folder).state == "dead"
    assert_equal(alone("mixup", tmp_path), whole["mixup"])


def test_a_run_begins_when_there_is_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half must be free, and twice what a run has taken on average."""
    order: list[str] = []
    names = ("mixup", "baseline", "pare")
    works = [work(name, tmp_path, observer=Heard(name, order)) for name in names]
    # At first; too little; too little, as 31 were taken; enough; too little; enough again.
    results = gpu_in_name(monkeypatch, works, [90, 49, 59, 61, 50, 65])
    assert all(isinstance(result, Outcome) for result in results)
    assert order[:8] == [*["mixup"] * 4, "baseline", "mixup", "mixup", "pare"]


def test_a_signal_lets_all_runs_save_and_none_begin(
    whole: dict[str, runs.Run], tmp_path: Path
) -> None:
    def signalled() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    results = together(
        work("pare", tmp_path, observer=Heard("pare", [], 2, signalled)),
        work("mixup", tmp_path),
        work("baseline", tmp_path),
    )
    assert all(isinstance(result, Interrupted) for result in results)
    assert [getattr(result, "exit_code", 0) for result in results] == [143] * 3
    assert "had not begun" in str(results[2])
    assert not (tmp_path / "baseline").exists()
    for name in ("pare", "mixup"):
        (folder,) = (tmp_path / name).glob("*")
        assert runs.Run(folder).state == "interrupted"
        assert_equal(alone(name, tmp_path), whole[name])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interruption_ends_all_at_once(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(
            work("pare", tmp_path),
            work("mixup", tmp_path, observer=Heard("mixup", [], 1, interrupted)),
        )
    for name in ("pare", "mixup"):
        (folder,) = (tmp_path / name).glob("*")
        assert runs.Run(folder).state == "interrupted"
        assert not runs.Run(folder).locked()


def drawn() -> list[float]:
    """Numbers of every global generator; normal ones of NumPy come in pairs."""
    return [float(torch.rand(())), random.random(), random.gauss(0, 1), np.random.randn()]


def test_random_states_do_not_mix() -> None:
    def seeded(seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    alone = []
    for seed in range(3):
        seeded(seed)
        alone.append([drawn() for _ in range(5)])
    seeded(7)
    last = drawn()
    seeded(7)
    with turns(CPU):
        own = [OwnState(CPU) for _ in range(3)]
        found: list[list[list[float]]] = [[], [], []]
        for turn in range(6):
            for seed in (0, 1, 2):
                own[seed].put()
                if turn == 0:
                    seeded(seed)
                elif not (seed == 1 and turn == 2):  # a turn without a draw, half a pair waiting
                    found[seed].append(drawn())
                own[seed].keep()
    assert found[0] == alone[0]
    assert found[1] == alone[1][:4]
    assert found[2] == alone[2]
    assert drawn() == last


def test_a_clock_counts_the_own_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 200.0, 201.0, 203.0, 300.0, 304.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = OwnClock()  # at 100
    clock.go()  # at 200
    begun = clock()  # at 201
    clock.stop()  # at 203
    clock.go()  # at 300
    assert clock() - begun == 2 + 4


def test_errors_that_cause_each_other_are_forgotten() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__context__ = other, one
    try:
        raise one
    except ValueError:
        _forget(one)
    assert one.__traceback__ is None
