"""The queue of a comparison before a cluster that outlives it, and runs held on other machines."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from xmodal import runs
from xmodal.comparison.grid import Cell
from xmodal.comparison.queue import DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, STARTS, Queue, State
from xmodal.errors import UsageError
from xmodal.files import claim
from xmodal.interfaces import Job, Launcher
from xmodal.runs import Run

from .. import forms

READ_TEXT = Path.read_text


class Cluster(Launcher):
    """A cluster that holds jobs of earlier comparisons and ends those it is told to."""

    slots = 2

    def __init__(self, held: Mapping[str, str]) -> None:
        self.held = dict(held)
        self.submitted: list[str] = []
        self.started: list[str] = []

    def submit(self, jobs: Sequence[Job]) -> None:
        self.submitted += [job.name for job in jobs]
        for job in jobs:
            if job.name not in self.held:
                self.started.append(job.name)
                self.held[job.name] = QUEUED

    def unfinished(self) -> Mapping[str, str]:
        return dict(self.held)

    def stop(self) -> None:
        self.held.clear()

    def end(self, name: str, state: str = "done") -> None:
        """A job ends, as another machine sees it: with what it left in its directory."""
        del self.held[name]
        if state == "done":
            Run(Path(name)).write("result.json", forms.result())
        Run(Path(name)).set_state(state)


def cells(folder: Path, number: int) -> list[Cell]:
    found = [Cell("m", "t", seed, (), (), directory=folder / str(seed)) for seed in range(number)]
    for cell in found:
        assert cell.directory is not None
        claim(cell.directory, runs.KIND)
    return found


def test_jobs_that_a_killed_comparison_left_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = cells(Path("cells"), 3)
    names = [str(tmp_path / "cells" / str(seed)) for seed in range(3)]
    Run(Path(names[0])).set_state("running")  # on a node whose lock is not seen here
    launcher = Cluster({names[0]: RUNNING, names[2]: QUEUED, "/other/cell": RUNNING})
    queue = Queue(mine, launcher)
    assert queue._step(launcher)
    # Both are ours now, and leave no room; nothing has been started.
    assert launcher.submitted == [names[0], names[2]]
    assert launcher.started == []
    assert [state.word for state in queue.states()] == [RUNNING, QUEUED, QUEUED]
    launcher.end(names[0])
    assert queue._step(launcher)
    assert launcher.started == [names[1]]
    launcher.end(names[1], "failed")
    launcher.end(names[2])
    assert not queue._step(launcher)  # the other comparison's cell is not waited for
    assert [state.word for state in queue.states()] == [DONE, FAILED, DONE]
    assert launcher.submitted == [names[0], names[2], names[1]]


def test_a_spent_budget_still_takes_over(tmp_path: Path) -> None:
    mine = cells(tmp_path, 2)
    launcher = Cluster({str(mine[1].directory): QUEUED})
    queue = Queue(mine, launcher, budget=0)
    assert queue._step(launcher)
    assert launcher.submitted == [str(mine[1].directory)]
    launcher.end(str(mine[1].directory))
    assert not queue._step(launcher)


def test_a_spent_budget_does_not_hide_what_failed(tmp_path: Path) -> None:
    """Verdicts would otherwise be given on the seeds that survived."""
    mine = cells(tmp_path, 2)
    mine[0].run.set_state(FAILED)
    seen: list[list[State]] = []
    Queue(mine, Cluster({}), budget=0).work(seen.append)
    assert [state.word for state in seen[-1]] == [FAILED, QUEUED]


def test_a_cell_on_another_machine_is_waited_for(tmp_path: Path) -> None:
    mine = cells(tmp_path, 1)
    elsewhere(mine[0].run, seconds_ago=5)
    launcher = Cluster({})
    queue = Queue(mine, launcher)
    assert queue._step(launcher)
    assert launcher.submitted == []
    assert queue.states()[0].word == RUNNING
    elsewhere(mine[0].run, seconds_ago=runs.SILENCE + 60)  # the machine has died
    assert queue._step(launcher)
    assert launcher.started == [str(mine[0].directory)]


def test_a_cell_that_another_comparison_is_faster_to_begin_is_waited_for(tmp_path: Path) -> None:
    """Both start it, for a run is locked only when its process has loaded its data."""
    mine = cells(tmp_path, 2)
    names = [str(cell.directory) for cell in mine]
    launcher = Cluster({})
    queue = Queue(mine, launcher)
    assert queue._step(launcher)
    assert launcher.started == names
    launcher.end(names[1])
    with mine[0].run.lock():
        launcher.end(names[0], "running")  # our process: "... is being run by process ..."
        for _ in range(2):
            assert queue._step(launcher)
            assert [state.word for state in queue.states()] == [RUNNING, DONE]
        mine[0].run.set_state("interrupted")
        assert queue._step(launcher)
    assert queue._step(launcher)  # the other one was stopped: ours goes on
    assert launcher.started == [*names, names[0]]
    launcher.end(names[0])
    assert not queue._step(launcher)
    assert [state.word for state in queue.states()] == [DONE, DONE]


def test_a_cell_that_is_lost_again_and_again_is_given_up(tmp_path: Path) -> None:
    """A process that its node killed leaves a run that looks alive for a while."""
    (cell,) = cells(tmp_path, 1)
    launcher = Cluster({})
    queue = Queue([cell], launcher)
    for start in range(STARTS):
        assert queue._step(launcher)
        assert len(launcher.started) == start + 1
        launcher.held.clear()
        elsewhere(cell.run, seconds_ago=5)
        assert queue._step(launcher)
        assert queue.states()[0].word == RUNNING
        elsewhere(cell.run, seconds_ago=runs.SILENCE + 60)
    assert not queue._step(launcher)
    assert queue.states()[0].word == FAILED
    assert len(launcher.started) == STARTS


class Withdrawing(Cluster):
    """A cluster that takes back what waits, as real ones do."""

    slots = 10

    def withdraw(self, names: Sequence[str]) -> None:
        for name in names:
            if self.held[name] == QUEUED:
                del self.held[name]


def test_a_spent_budget_takes_back_what_waits(tmp_path: Path) -> None:
    mine = cells(tmp_path, 4)
    names = [str(cell.directory) for cell in mine]
    launcher = Withdrawing({})
    queue = Queue(mine, launcher, budget=1000)
    assert queue._step(launcher)
    assert launcher.started == names
    launcher.held[names[0]] = launcher.held[names[1]] = RUNNING
    Run(Path(names[2])).set_state("interrupted")  # it began, and waits for its second time
    assert queue._step(launcher)
    queue.budget = 0
    assert queue._step(launcher)
    assert set(launcher.held) == set(names[:2])
    launcher.end(names[0])
    launcher.held[names[1]] = QUEUED  # its time limit: it would go on in a further job
    Run(Path(names[1])).set_state("interrupted")
    assert not queue._step(launcher)
    assert launcher.held == {}
    assert launcher.started == names
    words = [state.word for state in queue.states()]
    assert words == [DONE, INTERRUPTED, INTERRUPTED, QUEUED]


def test_a_file_system_that_does_not_answer_ends_no_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = cells(tmp_path, 2)
    launcher = Cluster({})
    queue = Queue(mine, launcher)
    assert queue._step(launcher)
    mine[0].run.append_metrics({"seconds": 1.0})
    launcher.end(str(mine[0].directory))
    assert queue._step(launcher)
    before = queue.states()
    launcher.held[str(mine[1].directory)] = RUNNING
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails(errno.EIO))
        patch.setattr(Run, "locked", fails(errno.EIO))
        assert queue._step(launcher)
        assert [state.word for state in queue.states()] == [DONE, RUNNING]
        assert queue.states()[0] == before[0]
        other = Cluster({})  # one that begins now tries; a run that is done says so
        assert Queue(mine, other)._step(other)
    launcher.end(str(mine[1].directory))
    assert not queue._step(launcher)
    assert [state.word for state in queue.states()] == [DONE, DONE]


def fails(number: int, times: float = float("inf")) -> Callable[..., str]:
    """Something that reads files, and so often fails."""
    left = [times]

    def read(path: Path, **options: str) -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return READ_TEXT(path, **options)

    return read


def test_a_file_that_was_just_replaced_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.write("result.json", forms.result())
    run.set_state("done")
    run.append_metrics(forms.epoch())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails(errno.ESTALE, times=1))
        assert run.state == "done"
        patch.setattr(Path, "read_text", fails(errno.ESTALE, times=1))
        assert run.metrics() == [forms.epoch()]
    for number, times in ((errno.EIO, 1), (errno.ESTALE, 100)):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", fails(number, times))
            with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                run.metrics()


def elsewhere(run: Run, seconds_ago: float, job: str = "slurm 7") -> None:
    """Let a run look as if another machine, last heard from some time ago, were at it."""
    owner = {"state": "running", "pid": 1, "host": "node7.example", "heartbeat": "12:00"}
    run.write("status.json", {**owner, "job": job})
    (run.path / runs.BEATS).touch()
    then = time.time() - seconds_ago
    os.utime(run.path / runs.BEATS, (then, then))


@pytest.mark.parametrize(
    ("seconds_ago", "job", "held"),
    [(5, "", True), (5, "slurm 8", True), (5, "slurm 7", False), (runs.SILENCE + 60, "", False)],
)
def test_who_may_take_a_run_from_another_machine(
    seconds_ago: float, job: str, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody while it lives; the same job of a cluster, started again, at once."""
    monkeypatch.setenv(runs.JOB, job)
    run = Run(tmp_path)
    elsewhere(run, seconds_ago)
    assert run.locked() == held
    assert run.state == ("running" if held else "dead")
    if held:
        with pytest.raises(UsageError, match=r"by process 1 on node7.example.*after 3 minutes"):
            take(run)
    else:
        take(run)
    # The refusal has not kept the lock itself.
    elsewhere(run, runs.SILENCE + 60)
    take(run)


def take(run: Run) -> None:
    with run.lock():
        assert run.locked()


def test_other_machines_see_a_run_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "BEAT", 0.02)
    monkeypatch.setenv(runs.JOB, "ray 1")
    run = Run(tmp_path)
    with run.lock():
        run.set_state("running")
        beat = tmp_path / runs.BEATS
        os.utime(beat, (0, 0))
        until = time.monotonic() + 20
        while beat.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - beat.stat().st_mtime < 30
    assert run.read("status.json")["job"] == "ray 1"
    os.utime(beat, (0, 0))
    time.sleep(0.2)
    assert beat.stat().st_mtime == 0  # nobody beats for a run that has ended


def test_looking_at_a_lock_does_not_keep_a_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison asks twice a second whether a cell is held, and holds it for that moment."""
    import threading

    from filelock import FileLock

    other = FileLock(tmp_path / ".lock", thread_local=False)
    other.acquire()
    threading.Timer(0.2, other.release).start()
    take_and_leave = Run(tmp_path)
    with take_and_leave.lock():
        pass


def test_every_cell_reads_its_data_again_if_that_is_wanted(tmp_path: Path) -> None:
    (one,) = cells(tmp_path, 1)
    name = str(one.directory)
    for wanted, more in (
        (True, ["--plugin", os.path.abspath("p.py"), "--verify-data"]),
        (False, ["--plugin", os.path.abspath("p.py")]),
    ):
        queue = Queue([one], Cluster({}), plugin_files=("p.py",), verify_data=wanted)
        command = list(queue._job(name).command)
        assert command[command.index("--directory") :] == ["--directory", name, *more]


def test_the_folder_of_a_cell_is_taken_from_nobody(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "thesis.txt").write_text("words")
    one = Cell("m", "t", 0, (), (), directory=tmp_path / "0")
    with pytest.raises(UsageError, match=r"is not empty .* it has thesis\.txt"):
        Queue([one], Cluster({}))._job(str(tmp_path / "0"))
    assert os.listdir(tmp_path / "0") == ["thesis.txt"]


class Packing(Cluster):
    """A launcher whose jobs hold up to three cells."""

    packs = 3

    def __init__(self) -> None:
        super().__init__({})
        self.commands: dict[str, list[str]] = {}

    def submit(self, jobs: Sequence[Job]) -> None:
        super().submit(jobs)
        self.commands |= {job.name: list(job.command[3:]) for job in jobs}


def test_cells_share_jobs_evenly(tmp_path: Path) -> None:
    mine = [replace(cell, epochs=4) for cell in cells(tmp_path, 9)]
    names = [str(cell.directory) for cell in mine]
    mine[4].run.set_state("done")
    mine[4].run.write("result.json", forms.result())
    left = names[:4] + names[5:]
    launcher = Packing()
    queue = Queue(mine, launcher, plugin_files=("p.py",))
    assert queue._step(launcher)
    # Two slots: six of eight cells. The name of a job is that of its first cell.
    assert launcher.commands == {
        left[0]: ["cells", *left[:3], "--plugin", os.path.abspath("p.py")],
        left[3]: ["cells", *left[3:6], "--plugin", os.path.abspath("p.py")],
    }
    assert [Path(name, "cell.yaml").exists() for name in left] == [True] * 6 + [False] * 2
    launcher.held = dict.fromkeys(launcher.held, RUNNING)
    assert queue._step(launcher)
    words = [state.word for state in queue.states()]
    assert words == [RUNNING] * 4 + [DONE] + [RUNNING] * 2 + [QUEUED] * 2
    mine[0].run.append_metrics(forms.epoch(seconds=2.0))
    assert queue.states()[0].remaining == 3 * 2.0 * 3  # three cells in turns, three epochs
    done(left[1])
    queue.states()  # half a second later it counts
    assert queue.states()[0].remaining == 2 * 2.0 * 3
    for name in left[:3]:
        done(name)
    words = [state.word for state in queue.states()]
    assert words == [DONE] * 3 + [RUNNING, DONE] + [RUNNING] * 2 + [QUEUED] * 2
    launcher.held.pop(left[0])
    assert queue._step(launcher)
    assert launcher.commands[left[6]] == ["cells", *left[6:], "--plugin", os.path.abspath("p.py")]
    for name in left[3:]:
        done(name)
    launcher.held.clear()
    assert not queue._step(launcher)
    assert {state.word for state in queue.states()} == {DONE}
    few = Packing()
    other = Queue(cells(tmp_path / "few", 4), few)
    assert other._step(few)  # two slots, so two and two, not three and one
    assert [len(command) for command in few.commands.values()] == [3, 3]


def done(name: str) -> None:
    Run(Path(name)).write("result.json", forms.result())
    Run(Path(name)).set_state("done")


def test_cells_that_lose_a_shared_job_go_on_alone(tmp_path: Path) -> None:
    """What a cell has found out about itself stands; the others have lost a start, not used it."""
    mine = cells(tmp_path, 6)
    names = [str(cell.directory) for cell in mine]
    for name in names[2:4]:
        Run(Path(name)).set_state("interrupted")  # by an earlier comparison
    launcher = Packing()
    queue = Queue(mine, launcher)
    assert queue._step(launcher)
    assert list(launcher.commands) == [names[0], names[3]]
    done(names[0])
    Run(Path(names[1])).set_state("failed")
    launcher.held.clear()  # killed before the third cell of both jobs began
    for name in names[4:]:
        Run(Path(name)).set_state("running")  # with no process: dead
    launcher.commands.clear()
    assert queue._step(launcher)
    words = [state.word for state in queue.states()]
    assert words == [DONE, FAILED] + [QUEUED] * 4
    assert queue._step(launcher)
    alone = names[2:]
    assert list(launcher.commands) == alone[:2]
    for name in alone[:2]:
        assert launcher.commands[name] == ["run", f"{name}/cell.yaml", "--directory", name]
    done(alone[0])
    Run(Path(alone[1])).set_state("running")
    launcher.held.clear()
    assert queue._step(launcher)
    assert list(launcher.commands) == alone
    words = [state.word for state in queue.states()]
    # The fourth has crashed alone: that is its own end.
    assert words == [DONE, FAILED, DONE, FAILED, QUEUED, QUEUED]
    for name in alone[2:]:
        done(name)
    launcher.held.clear()
    assert not queue._step(launcher)
    assert [queue._starts[name] for name in names] == [1] * 6


def test_a_lost_job_uses_up_no_start(tmp_path: Path) -> None:
    mine = cells(tmp_path, 2)
    names = [str(cell.directory) for cell in mine]
    launcher = Packing()
    launcher.slots = 1
    queue = Queue(mine, launcher)
    assert queue._step(launcher)
    assert list(launcher.commands) == names[:1]
    done(names[1])
    launcher.held.clear()
    assert queue._step(launcher)
    for _ in range(STARTS):
        assert queue._step(launcher)
        launcher.held.clear()
        elsewhere(mine[0].run, seconds_ago=5)
        assert queue._step(launcher)
        elsewhere(mine[0].run, seconds_ago=runs.SILENCE + 60)
    assert not queue._step(launcher)
    assert launcher.started == [names[0]] * (1 + STARTS)
    assert [state.word for state in queue.states()] == [FAILED, DONE]
