"""Launchers of clusters without a cluster: refusals, Slurm's answers, processes on nodes."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from xmodal.data.store import Store
from xmodal.errors import PluginError, UsageError
from xmodal.interfaces import Context, Job
from xmodal.plugins import registry
from xmodal.recipe.choice import chosen
from xmodal.testing.contract import check_config
from xmodal_launch import process, ray_task
from xmodal_launch import slurm as slurm_launcher
from xmodal_launch.controller import Found, is_transient, read
from xmodal_launch.process import Order
from xmodal_launch.slurm import Slurm

ALL = ("slurm", "ray")


def build(name: str, **settings: Any) -> Any:
    use = chosen("launcher", name, registry(), "here", settings)
    return use.build(Context.outside(Store()))


@pytest.mark.parametrize("name", ALL)
def test_settings(name: str) -> None:
    check_config(registry().load("launcher", name))


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PluginError, match=rf"needs the package {package}: pip install 'xmodal\["):
        build(name)


def test_slurm_needs_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs sbatch, squeue, scancel, srun on the PATH"):
        build("slurm")


# --- Slurm's answers ---


def test_the_queue_is_read() -> None:
    text = (
        "12_0|xmodal-ab|RUNNING\n12_10|xmodal-ab|PENDING\n13|xmodal-cd|COMPLETING\n"
        "14|some|one's|RUNNING\n15|xmodal-ef|REQUEUED\n"
    )
    assert read(text) == [
        Found("ab", 0, "12_0", "running"),
        Found("ab", 10, "12_10", "queued"),
        Found("cd", 0, "13", "running"),
        Found("ef", 0, "15", "queued"),
    ]


def test_what_is_worth_another_try() -> None:
    assert is_transient("sbatch: error: Batch job submission failed: Socket timed out on send/recv")
    assert is_transient("Unable to contact slurm controller (connect failure)")
    assert not is_transient("sbatch: error: invalid partition specified: gpu")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of a Slurm that says what the files beside them hold, and notes its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = (
        '#!/bin/sh\nhere=$(dirname "$0")\necho "$(basename "$0") $*" >> "$here/calls"\n'
        'cat "$here/$(basename "$0").says"\n'
        'if [ -f "$here/down" ]; then echo "Unable to contact slurm controller" >&2; exit 1; fi\n'
    )
    for name in ("sbatch", "squeue", "scancel", "srun"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
        (folder / f"{name}.says").write_text("")
    (folder / "sbatch.says").write_text("Submitted batch job 5\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def calls(fake: Path, name: str) -> int:
    return sum(line.startswith(name) for line in (fake / "calls").read_text().splitlines())


def jobs(folder: Path, number: int) -> list[Job]:
    return [Job(f"/cells/{i}", ("true",), folder / str(i) / "output.txt") for i in range(number)]


def slurm(tmp_path: Path, **settings: Any) -> Slurm:
    return Slurm(Slurm.Config(folder=tmp_path / "slurm", **settings), Context.outside(Store()))


def test_a_controller_that_does_not_answer_ends_no_job(tmp_path: Path, fake: Path) -> None:
    launcher = slurm(tmp_path, poll=0)
    key = submitted(launcher, jobs(tmp_path, 2), fake)
    running = f"5_0|xmodal-{key}|RUNNING\n"
    (fake / "squeue.says").write_text(running + f"5_1|xmodal-{key}|PENDING\n")
    expected = {"/cells/0": "running", "/cells/1": "queued"}
    assert launcher.unfinished() == expected
    (fake / "down").touch()
    (fake / "squeue.says").write_text("")
    assert launcher.unfinished() == expected
    with pytest.raises(UsageError, match="does not answer: Unable to contact"):
        slurm(tmp_path)  # who knows nothing yet cannot say what is in the queue already
    (fake / "down").unlink()
    (fake / "squeue.says").write_text(running)
    assert launcher.unfinished() == {"/cells/0": "running"}
    said = (tmp_path / "1" / "output.txt").read_text()
    assert "Slurm job 5_1 left the queue early" in said
    assert "does not see" in said


def submitted(launcher: Slurm, given: list[Job], fake: Path) -> str:
    """Submit, and return the key that the array is named by."""
    # Slurm lists what it has taken at once; here the answer has to be made up first.
    (fake / "down").touch()
    (fake / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 5\n")
    launcher.submit(given)
    (fake / "down").unlink()
    (key,) = {found.key for found in launcher._found.values()}
    return key


def test_slurm_is_asked_seldom_and_for_all_at_once(tmp_path: Path, fake: Path) -> None:
    launcher = slurm(tmp_path, poll=1000)
    submitted(launcher, jobs(tmp_path, 50), fake)
    before = calls(fake, "squeue")
    assert before <= 3
    for _ in range(20):
        assert len(launcher.unfinished()) == 50
    assert calls(fake, "squeue") == before


def test_a_job_that_says_it_has_ended_is_believed(tmp_path: Path, fake: Path) -> None:
    launcher = slurm(tmp_path, poll=1000)
    key = submitted(launcher, jobs(tmp_path, 2), fake)
    (tmp_path / "slurm" / key / "1.ended").write_text("0")
    assert set(launcher.unfinished()) == {"/cells/0"}
    (tmp_path / "slurm" / key / "0.ended").write_text("5")
    assert launcher.unfinished() == {}
    assert not (tmp_path / "0" / "output.txt").exists()
    slurm(tmp_path)  # the next comparison clears up
    assert not list((tmp_path / "slurm").iterdir())


def test_the_array_asks_for_what_the_settings_say(tmp_path: Path, fake: Path) -> None:
    launcher = slurm(
        tmp_path, partition="gpu", account="lab", qos="low", minutes=90, cpus=6, gpus=1, memory=1.5,
        jobs=2, setup=("module load cuda",), options={"constraint": "a100"}, grace=60,
    )  # fmt: skip
    key = submitted(launcher, jobs(tmp_path, 3), fake)
    script = tmp_path / "slurm" / key / "5_submission.sh"
    text = script.read_text()
    for line in (
        "--partition=gpu", "--account=lab", "--qos=low", "--time=90", "--cpus-per-task=6",
        "--gpus-per-node=1", "--mem=1536M", "--array=0-2%2", "--constraint=a100", "--requeue",
        "--signal=USR2@60", f"--job-name=xmodal-{key}",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "\nmodule load cuda\n" in text
    assert "srun --unbuffered" in text
    assert "--wckey" not in text


def test_a_refusal_is_told(tmp_path: Path, fake: Path) -> None:
    launcher = slurm(tmp_path)
    (fake / "sbatch").write_text("#!/bin/sh\necho invalid partition specified: gpu >&2; exit 1\n")
    with pytest.raises(UsageError, match="refuses the jobs: invalid partition specified"):
        launcher.submit(jobs(tmp_path, 2))
    assert launcher.unfinished() == {}
    assert not list((tmp_path / "slurm").iterdir())


def test_a_cell_that_is_tried_again_is_not_taken_for_its_first_try(
    tmp_path: Path, fake: Path
) -> None:
    """Its old array still runs other cells, and says that this one has ended."""
    first = slurm(tmp_path, poll=0)
    old = submitted(first, jobs(tmp_path, 2), fake)
    running = f"5_1|xmodal-{old}|RUNNING\n"
    (fake / "squeue.says").write_text(running)
    (tmp_path / "slurm" / old / "0.ended").write_text("1")
    assert first.unfinished() == {"/cells/1": "running"}
    second = slurm(tmp_path, poll=0)
    (fake / "down").touch()
    second.submit(jobs(tmp_path, 2))
    (fake / "down").unlink()
    new = second._found["/cells/0"].key
    assert new != old
    over = f"5_0|xmodal-{old}|COMPLETING\n"  # Slurm may be long about it
    (fake / "squeue.says").write_text(f"6|xmodal-{new}|RUNNING\n{running}{over}")
    for _ in range(2):
        assert second.unfinished() == {"/cells/0": "running", "/cells/1": "running"}
    assert second._ids() == ["6", "5_1"]
    assert not (tmp_path / "0" / "output.txt").exists()
    (tmp_path / "slurm" / new / "0.ended").write_text("0")
    assert second.unfinished() == {"/cells/1": "running"}


REFUSES = (
    "#!/bin/sh\necho sbatch >> $(dirname $0)/calls; echo QOSMaxSubmitJobPerUserLimit >&2; exit 1\n"
)
TAKES = "#!/bin/sh\necho Submitted batch job 6\n"


def test_jobs_that_slurm_does_not_take_now_wait_while_others_run(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_launcher, "AGAIN", 0.0)
    given = jobs(tmp_path, 3)
    launcher = slurm(tmp_path, poll=0)
    key = submitted(launcher, given[:2], fake)
    (fake / "squeue.says").write_text(f"5_0|xmodal-{key}|RUNNING\n5_1|xmodal-{key}|RUNNING\n")
    (fake / "sbatch").write_text(REFUSES)
    with pytest.warns(UserWarning, match=r"no more jobs for now \(1 waiting\): .*QOSMaxS"):
        launcher.submit(given[2:])
    before = calls(fake, "sbatch")
    expected = {"/cells/0": "running", "/cells/1": "running", "/cells/2": "queued"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told once
        assert launcher.unfinished() == expected
    assert calls(fake, "sbatch") == before + 1
    assert [file.name for file in (tmp_path / "slurm").iterdir()] == [key]
    # Jobs that have ended may still count for Slurm.
    for index in range(2):
        (tmp_path / "slurm" / key / f"{index}.ended").write_text("0")
    assert launcher.unfinished() == {"/cells/2": "queued"}
    (fake / "sbatch").write_text(TAKES)
    (fake / "down").touch()
    assert launcher.unfinished() == {"/cells/2": "queued"}
    assert launcher._found["/cells/2"].key != key
    (fake / "down").unlink()
    (fake / "squeue.says").write_text("")
    assert launcher.unfinished() == {}


def test_a_refusal_ends_the_waiting_when_nothing_runs_any_more(tmp_path: Path, fake: Path) -> None:
    given = jobs(tmp_path, 3)
    launcher = slurm(tmp_path, poll=0)
    key = submitted(launcher, given[:2], fake)
    (fake / "squeue.says").write_text(f"5_0|xmodal-{key}|RUNNING\n")
    (fake / "sbatch").write_text(REFUSES)
    with pytest.warns(UserWarning, match="no more jobs"):
        launcher.submit(given[2:])
    before = calls(fake, "sbatch")
    assert launcher.unfinished()["/cells/2"] == "queued"
    assert calls(fake, "sbatch") == before  # not all the time
    (fake / "squeue.says").write_text("")
    with pytest.raises(UsageError, match=r"refuses the jobs: .*QOSMaxSubmitJobPerUserLimit"):
        launcher.unfinished()


def test_a_list_that_cannot_be_read(tmp_path: Path, fake: Path) -> None:
    """One of an array that is over is left alone; what is in the queue is not queued again."""
    lost = tmp_path / "slurm" / "ab"
    lost.mkdir(parents=True)
    (lost / "jobs.json").write_text("")
    launcher = slurm(tmp_path, poll=0)
    assert launcher.unfinished() == {}
    (fake / "squeue.says").write_text("5_0|xmodal-ab|PENDING\n")
    with pytest.raises(UsageError, match=r"array xmodal-ab, .* cannot be read: .* with scancel"):
        launcher.submit(jobs(tmp_path, 1))
    assert [file.name for file in (tmp_path / "slurm").iterdir()] == ["ab"]
    (lost / "jobs.json").write_text('["/cells/0"]')  # the file system is well again
    launcher.submit(jobs(tmp_path, 1))
    assert launcher.unfinished() == {"/cells/0": "queued"}
    assert launcher._ids() == ["5_0"]


def test_jobs_that_wait_are_withdrawn(tmp_path: Path, fake: Path) -> None:
    launcher = slurm(tmp_path, poll=0)
    given = jobs(tmp_path, 3)
    key = submitted(launcher, given[:2], fake)
    running = f"5_0|xmodal-{key}|RUNNING\n"
    (fake / "squeue.says").write_text(f"{running}5_1|xmodal-{key}|PENDING\n")
    (fake / "sbatch").write_text(REFUSES)
    with pytest.warns(UserWarning, match="no more jobs"):
        launcher.submit(given[2:])
    (fake / "scancel").write_text(
        f'#!/bin/sh\necho "scancel $*" >> {fake}/calls\n'
        f'echo "{running.strip()}" > {fake}/squeue.says\n'
    )
    launcher.withdraw([job.name for job in given])
    assert launcher.unfinished() == {"/cells/0": "running"}
    told = [line for line in (fake / "calls").read_text().splitlines() if "scancel" in line]
    assert told == ["scancel --quiet --state=PENDING 5_1"]
    assert not any((tmp_path / str(i) / "output.txt").exists() for i in range(3))


def test_a_warning_that_would_come_at_once_is_refused() -> None:
    for minutes in (1, 2):
        with pytest.raises(ValidationError, match=r"grace \(120 s, .*\) must be shorter than"):
            Slurm.Config(minutes=minutes)
    assert Slurm.Config(minutes=3).grace == 120
    assert Slurm.Config(minutes=1, grace=59).minutes == 1


# --- processes on nodes ---


def order(folder: Path, code: str) -> Order:
    log = folder / "log.txt"
    return Order((sys.executable, "-c", code), str(log), str(folder), "slurm 1")


def test_a_node_that_does_not_see_the_cells_says_so(tmp_path: Path) -> None:
    lost = Order(("true",), str(tmp_path / "not" / "log.txt"), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="must be on a file system that all nodes share"):
        process.start(lost, 1)


def test_threads_and_job_reach_the_process(tmp_path: Path) -> None:
    code = "import os; print(*(os.environ[n] for n in ('OMP_NUM_THREADS', 'XMODAL_JOB')))"
    assert process.wait(process.start(order(tmp_path, code), 3)) == 0
    assert (tmp_path / "log.txt").read_text().splitlines()[1] == "3 slurm 1"


def test_settings_of_the_comparison_win_over_those_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts tasks in the environment of its nodes, which knows nothing of ours."""
    monkeypatch.setenv("XMODAL_CACHE", "/shared/cache")
    monkeypatch.setenv("XMODAL_FETCH", "never")
    monkeypatch.setenv("XMODAL_JOB", "an outer one")
    carried = process.settings()
    monkeypatch.setenv("XMODAL_CACHE", "/of/the/node")
    monkeypatch.delenv("XMODAL_FETCH")
    names = ("XMODAL_CACHE", "XMODAL_FETCH", "XMODAL_JOB")
    code = f"import os; print(*(os.environ[n] for n in {names}))"
    asked = replace(order(tmp_path, code), job="ray 1", environment=carried)
    assert ray_task.run(asked, 1, 60.0) == 0
    assert (tmp_path / "log.txt").read_text().splitlines()[1] == "/shared/cache never ray 1"


SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(0.5); print('saved', flush=True); sys.exit(143)
signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(60)
"""


def ready(log: Path, word: str = "ready") -> None:
    until = time.monotonic() + 30
    while not (log.exists() and word in log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_warning_of_slurm_does_not_kill_the_run(tmp_path: Path) -> None:
    child = process.start(order(tmp_path, SAVES), 1)
    ready(tmp_path / "log.txt")
    child.send_signal(signal.SIGUSR2)
    time.sleep(0.3)
    assert child.poll() is None
    process.end(child, 30)
    assert process.wait(child) == 143
    assert "saved" in (tmp_path / "log.txt").read_text()


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True)\n"
    child = process.start(order(tmp_path, deaf + "time.sleep(60)"), 1)
    ready(tmp_path / "log.txt")
    process.end(child, 0.3)
    assert process.wait(child) == -signal.SIGKILL
    process.end(child, 0.3)  # a process that is over is no trouble


def test_a_task_cancelled_twice_waits_for_a_job_that_saves_itself(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    def cancel() -> None:  # as Ray does
        ready(log)
        _thread.interrupt_main()
        time.sleep(0.3)
        _thread.interrupt_main()

    outer = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for what runs in the background
    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        ray_task.run(Order((sys.executable, "-c", SAVES), str(log), str(tmp_path)), 1, 60.0)
    assert "saved" in log.read_text()
    assert signal.signal(signal.SIGINT, outer) is signal.SIG_IGN


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux only")
def test_a_run_does_not_outlive_its_job(tmp_path: Path) -> None:
    """The cluster would start it again elsewhere, and then there were two."""
    parent = (
        "import sys; from xmodal_launch.process import Order, start, wait\n"
        f"wait(start(Order((sys.executable, '-c', {SAVES!r}), {str(tmp_path / 'log.txt')!r},"
        f" {str(tmp_path)!r}), 1))"
    )
    holder = subprocess.Popen([sys.executable, "-c", parent])
    ready(tmp_path / "log.txt")
    holder.kill()
    holder.wait()
    ready(tmp_path / "log.txt", "saved")
