"""The launcher `slurm` against a real Slurm: arrays, time limits, preemption, being killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xmodal.errors import UsageError
from xmodal.interfaces import Job
from xmodal.testing.surroundings import check_launcher
from xmodal.testing.tiny import tiny_context
from xmodal_launch import slurm as slurm_launcher
from xmodal_launch.controller import read
from xmodal_launch.slurm import Slurm

from .conftest import numbers, two_cells, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("slurm")]

# A run in small: saves when it is told to, and goes on from there.
SAVES = """
import pathlib, signal, sys, time
said = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(0.3)
    said.open('a').write('saved\\n')
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
again = said.exists()
said.open('a').write('again\\n' if again else 'started\\n')
while not (again or said.with_suffix('.go').exists()):
    time.sleep(0.1)
said.open('a').write('done\\n')
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Callable[..., Slurm]:
    """Makes launchers that share a folder, as comparisons of one user do."""

    def make(**settings: Any) -> Slurm:
        given = {"cpus": 1, "poll": 0.3, "grace": 20, "folder": tmp_path / "slurm", **settings}
        return Slurm(Slurm.Config(**given), tiny_context())

    return make


def job(folder: Path, name: str) -> Job:
    said = folder / f"{name}.said"
    return Job(name, (sys.executable, "-c", SAVES, str(said)), folder / f"{name}.log")


def said(folder: Path, name: str) -> list[str]:
    file = folder / f"{name}.said"
    return file.read_text().split() if file.exists() else []


def queue() -> dict[str, str]:
    """Slurm's own view: the number of each of our jobs, and whether it runs."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    return {found.id: found.word for found in read(shown.stdout)}


def test_contract(tmp_path: Path) -> None:
    check_launcher(Slurm, {"cpus": 1, "poll": 0.3, "grace": 20, "folder": tmp_path / "slurm"})


def test_two_cells_measure_what_they_do_here(
    tmp_path: Path, launcher: Callable[..., Slurm], expected: list[Any]
) -> None:
    """One of them is warned of its time limit on the way: it saves, waits again, and goes on."""
    work = two_cells(tmp_path / "cells", launcher())
    warned: list[str] = []

    def look(states: Any) -> None:
        if not warned and work.cells[0].run.metrics():
            assert set(queue()) == {f"{array}_{i}" for array in array_of() for i in range(2)}
            (number,) = [found for found in queue() if found.endswith("_0")]
            subprocess.run(["scancel", "--signal=USR2", number], check=True)
            warned.append(number)

    def array_of() -> set[str]:
        return {number.partition("_")[0] for number in queue()}

    work.work(look)
    assert warned, "the first cell was done before it could be warned"
    logs = [Path(cell.run.path / "output.txt").read_text() for cell in work.cells]
    assert [state.word for state in work.states()] == ["done", "done"], logs
    assert [log.count("interrupted; state saved") for log in logs] == [1, 0]
    assert numbers(work) == expected


def test_a_preempted_job_is_queued_again(tmp_path: Path, launcher: Callable[..., Slurm]) -> None:
    """Slurm would drop a job that ends itself when it is told that its node is wanted."""
    slurm = launcher(cpus=2)
    slurm.submit([job(tmp_path, "a")])
    wait_for(lambda: said(tmp_path, "a"), "start")
    (number,) = queue()
    urgent = ["sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=true"]
    subprocess.run(urgent, check=True, capture_output=True)
    wait_for(lambda: said(tmp_path, "a") == ["started", "saved"], "soft preemption")
    wait_for(lambda: queue() == {number: "queued"}, "requeue")
    assert slurm.unfinished() == {"a": "queued"}
    wait_for(lambda: not slurm.unfinished(), "end")
    assert said(tmp_path, "a") == ["started", "saved", "again", "done"]


def test_a_cancelled_job_saves_itself_and_stays_cancelled(
    tmp_path: Path, launcher: Callable[..., Slurm]
) -> None:
    slurm = launcher()
    wait_for(lambda: not queue(), "end of the test before")
    slurm.submit([job(tmp_path, "a")])
    wait_for(lambda: said(tmp_path, "a"), "start")
    subprocess.run(["scancel", *queue()], check=True)
    wait_for(lambda: not queue() and not slurm.unfinished(), "end")
    assert said(tmp_path, "a") == ["started", "saved"]


def test_a_killed_comparison_leaves_jobs_that_the_next_takes_over(
    tmp_path: Path, launcher: Callable[..., Slurm]
) -> None:
    wait_for(lambda: not queue(), "end of the test before")
    jobs = [job(tmp_path, name) for name in ("a", "b", "waits")]
    child = os.fork()
    if child == 0:  # a comparison that dies without a word, right after its array was taken
        launcher(jobs=2).submit(jobs)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    before = queue()
    assert len(before) == 3
    # The next one is interrupted, and told to leave the jobs alone.
    keeper = launcher(keep=True)
    assert set(keeper.unfinished()) == {"a", "b", "waits"}
    keeper.submit(jobs)
    with pytest.warns(UserWarning, match="3 jobs stay in Slurm's queue"):
        keeper.stop()
    # The third takes them over, too.
    slurm = launcher()
    slurm.submit(jobs)
    wait_for(lambda: list(slurm.unfinished().values()).count("running") == 2, "start")
    assert queue().keys() == before.keys()
    slurm.withdraw([job.name for job in jobs])
    assert slurm.unfinished() == {"a": "running", "b": "running"}
    assert len(queue()) == 2
    (tmp_path / "a.go").touch()
    wait_for(lambda: "a" not in slurm.unfinished(), "end of a")
    slurm.stop()
    assert queue() == {}
    assert said(tmp_path, "a") == ["started", "done"]
    assert said(tmp_path, "b") == ["started", "saved"]
    assert said(tmp_path, "waits") == []
    assert not (tmp_path / "waits.log").exists()
    assert slurm.unfinished() == {}


def test_jobs_that_slurm_does_not_take_now_wait(
    tmp_path: Path, launcher: Callable[..., Slurm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_launcher, "AGAIN", 1.0)
    wait_for(lambda: not queue(), "end of the test before")
    slurm = launcher()
    slurm.submit([job(tmp_path, "a")])
    wait_for(lambda: said(tmp_path, "a"), "start")
    partition = ["scontrol", "update", "PartitionName=usual"]
    subprocess.run([*partition, "State=INACTIVE"], check=True)
    try:
        with pytest.warns(UserWarning, match=r"no more jobs for now \(1 waiting\): .*partition"):
            slurm.submit([job(tmp_path, "late")])
        assert slurm.unfinished() == {"a": "running", "late": "queued"}
        assert len(queue()) == 1
    finally:
        subprocess.run([*partition, "State=UP"], check=True)
    wait_for(lambda: slurm.unfinished() and said(tmp_path, "late"), "start of the other")
    assert slurm.unfinished() == {"a": "running", "late": "running"}
    for name in ("a", "late"):
        (tmp_path / f"{name}.go").touch()
    wait_for(lambda: not slurm.unfinished(), "end")
    assert said(tmp_path, "late") == ["started", "done"]


def test_what_goes_wrong_before_the_job_is_told(
    tmp_path: Path, launcher: Callable[..., Slurm]
) -> None:
    lost = Job("lost", ("true",), tmp_path / "gone" / "log.txt")
    slurm = launcher()
    slurm.submit([lost])
    (tmp_path / "gone").rmdir()  # as if the node did not see it
    wait_for(lambda: not queue(), "end")
    (tmp_path / "gone").mkdir()
    wait_for(lambda: not slurm.unfinished(), "end")
    assert "must be on a file system that all nodes share" in lost.log.read_text()
    with pytest.raises(UsageError, match="invalid partition"):
        launcher(partition="nonsense").submit([job(tmp_path, "never")])
    assert queue() == {}
