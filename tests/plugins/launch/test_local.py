"""Jobs on this machine: forks of a server that has imported everything, and new processes."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from xmodal import api
from xmodal.comparison.grid import grid, requested
from xmodal.comparison.queue import Queue
from xmodal.data.store import Store
from xmodal.interfaces import Context, Job
from xmodal.plugins import registry
from xmodal.runs import Run
from xmodal_launch import local as local_module
from xmodal_launch.forks import Forked, ForkServer
from xmodal_launch.local import MEMORY_A_JOB, Local

from ...conftest import TINY

PATIENCE = 240.0


def build(**settings: Any) -> Local:
    return Local(Local.Config(**settings), Context.outside(Store()))


def xmodal(folder: Path, name: str, *arguments: object) -> Job:
    command = (sys.executable, "-m", "xmodal", *map(str, arguments))
    return Job(name, command, folder / name / "output.txt")


def python(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / name / "output.txt")


def until(done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def ended(launcher: Local) -> bool:
    return not launcher.unfinished()


def fork_of(launcher: Local, name: str) -> Forked:
    until(lambda: launcher.unfinished()[name] == "running", "no start")
    process = launcher._started[name].process
    assert isinstance(process, Forked)
    return process


# --- slots and threads ---


@pytest.mark.parametrize(
    ("cores", "jobs_of_memory", "settings", "slots"),
    [
        (1, 100, {}, 1),
        (8, 100, {}, 8),
        (8, 3, {}, 3),
        (8, 0, {}, 1),
        (8, 100, {"threads": 4}, 2),
        (8, 100, {"threads": 16}, 1),
        (8, 0, {"jobs": 5}, 5),
    ],
)
def test_slots_follow_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch, cores: int, jobs_of_memory: int, settings: Any, slots: int
) -> None:
    free = SimpleNamespace(available=jobs_of_memory * MEMORY_A_JOB + 1)
    monkeypatch.setattr(local_module, "cores", lambda: cores)
    monkeypatch.setattr(local_module, "_gpus", lambda: [])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    launcher = build(**settings)
    assert launcher.slots == 2 * slots  # as many wait
    assert build(**settings, pack=3).slots == slots
    assert launcher._environment(0)["OMP_NUM_THREADS"] == str(settings.get("threads", 1))


def test_threads_do_not_follow_from_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last digits of a result can depend on them."""
    for gpus, threads in (([], "1"), (["0"], "4"), (["0", "1", "2", "3"], "2")):
        monkeypatch.setattr(local_module, "cores", lambda: 8)
        monkeypatch.setattr(local_module, "_gpus", lambda gpus=gpus: gpus)
        for jobs in (None, 1, 2, 16):
            environment = build(jobs=jobs)._environment(1)
            assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == threads


# --- new processes ---


def test_a_job_says_what_killed_it(tmp_path: Path) -> None:
    launcher = build(jobs=2)
    kill = "import os, signal; print('begun', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    launcher.submit([python(tmp_path, "bad", kill), python(tmp_path, "good", "print('fine')")])
    until(lambda: ended(launcher), "jobs do not end")
    assert (tmp_path / "good" / "output.txt").read_text() == "fine\n"
    expected = "begun\nthe process was ended by signal 11 (Segmentation fault)\n"
    assert (tmp_path / "bad" / "output.txt").read_text() == expected


def test_waiting_ends_with_a_job(tmp_path: Path) -> None:
    launcher = build(jobs=2)
    short = python(tmp_path, "short", "pass")
    long = python(tmp_path, "long", "import time; time.sleep(600)")
    launcher.submit([short, long])
    begun = time.monotonic()
    launcher.wait(PATIENCE)
    assert time.monotonic() - begun < PATIENCE
    assert launcher.unfinished() == {"long": "running"}
    launcher.stop()


def test_without_a_server_jobs_start_as_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here xmodal cannot be imported: the server says so once, and each job for itself."""
    broken = tmp_path / "broken" / "xmodal"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half installed')")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{broken.parent}{os.pathsep}{before}")
    launcher = build(jobs=2)
    launcher.submit([xmodal(tmp_path, name, "--version") for name in ("one", "two")])
    with pytest.warns(UserWarning, match=r"fork server is lost: .*half installed"):
        until(lambda: ended(launcher), "jobs do not end")
    for name in ("one", "two"):
        said = (tmp_path / name / "output.txt").read_text()
        assert said.count("ImportError: half installed") == 1


HOLDS_A_GPU = """
import os, sys
import xmodal
from xmodal_launch import forkserver
held = os.open(sys.argv[2], os.O_RDONLY)
forkserver.GPUS, xmodal.preload = (sys.argv[2],), lambda: None
forkserver.main()
"""


def test_a_server_that_holds_a_gpu_does_not_fork(tmp_path: Path) -> None:
    """A file stands for the device: CUDA does not work in forks of a process that has used it."""
    device = tmp_path / "nvidiactl"
    device.write_text("")
    command = [sys.executable, "-c", HOLDS_A_GPU, "0", str(device)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has opened a GPU" in done.stderr


# --- forks ---


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """One server for the tests that do not hurt it."""
    folder = tmp_path_factory.mktemp("forking")
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    launcher = build(jobs=2)
    launcher.submit([xmodal(folder, "first", "--version")])
    until(lambda: ended(launcher), "the server is not ready")
    assert launcher._server is not None
    yield launcher
    launcher.stop()
    patch.undo()


STATE = """
import gc, json, os, random, resource, signal, sys, threading, warnings
import numpy as np
import torch
print(json.dumps({
    "arguments": sys.argv[1:],
    "program": os.path.basename(sys.argv[0]),
    "main": sys.modules["__main__"].__spec__.name,
    "path": sys.path,
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "signals": [str(signal.getsignal(n)) for n in (2, 15, 17, 13, 10, 12, 1)],
    "wakeup": signal.set_wakeup_fd(-1),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "own session": os.getsid(0) == os.getpid() == os.getpgid(0),
    "streams": [[s.encoding, s.errors, s.line_buffering, s.isatty()] for s in
                (sys.__stdin__, sys.__stdout__, sys.__stderr__)],
    "input": os.readlink("/proc/self/fd/0"),
    "output": [os.readlink(f"/proc/self/fd/{n}") for n in (1, 2)],
    "descriptors": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                          if os.path.exists(f"/proc/self/fd/{n}")),
    "umask": os.umask(0o22),
    "limits": [resource.getrlimit(n) for n in range(8)],
    "threads": threading.active_count(),
    "torch threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
    "deterministic": torch.are_deterministic_algorithms_enabled(),
    "cuda": torch.cuda.is_initialized(),
    "gc": [gc.isenabled(), gc.get_threshold()],
    "filters": len(warnings.filters),
    "draws": [random.random(), np.random.rand(), torch.rand(1).item()],
}), flush=True)
"""
FREE = ("draws", "filters")
"""What differs between two processes anyway, or with what they have imported."""


@pytest.mark.long
def test_a_fork_is_a_new_process(
    forking: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "look.py"
    plugin.write_text(STATE)
    monkeypatch.setenv("OF_THIS_JOB", "yes")
    monkeypatch.chdir(tmp_path)
    look = ("recipes", "validate", "methods/nft", "tasks/darcy", "--plugin", plugin)
    names = ("one", "two")
    forking.submit([xmodal(tmp_path, name, *look) for name in names])
    until(lambda: ended(forking), "jobs do not end")
    one, two = (seen(tmp_path / name / "output.txt") for name in names)
    assert all(a != b for a, b in zip(one["draws"], two["draws"], strict=True))
    alone = tmp_path / "alone.txt"
    with alone.open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "xmodal", *map(str, look)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | forking._environment(0),
            start_new_session=True,
            check=False,
        )
    new = seen(alone)
    assert one["output"] == [str(tmp_path / "one" / "output.txt")] * 2
    for fork in (one, two):
        fork["output"] = new["output"]
        fork["descriptors"] = [
            new["output"][0] if file.endswith("output.txt") else file
            for file in fork["descriptors"]
        ]
        assert fork["environment"]["OF_THIS_JOB"] == "yes"
        for name in new.keys() - set(FREE):
            assert fork[name] == new[name], name


def seen(log: Path) -> dict[str, Any]:
    (line,) = [text for text in log.read_text().splitlines() if text.startswith("{")]
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.slow
def test_a_fork_gives_the_same_bits(forking: Local, tmp_path: Path) -> None:
    recipe = ("methods/pare", "tasks/darcy")
    command = ("run", *recipe, "--scale", "smoke", *TINY, "--directory", tmp_path / "fork")
    forking.submit([xmodal(tmp_path, "job", *command)])
    api.run(*recipe, scale="smoke", overrides=TINY, directory=tmp_path / "here", report=False)
    until(lambda: ended(forking), "the job does not end")
    assert Run(tmp_path / "fork").state == "done", (tmp_path / "job" / "output.txt").read_text()
    for file in ("predictions.safetensors", "final/tensors.safetensors"):
        assert (tmp_path / "fork" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_fork_can_use_a_gpu(forking: Local, tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    command = ("run", "methods/nft", "tasks/darcy", "--scale", "smoke", "device=cuda")
    forking.submit([xmodal(tmp_path, "job", *command, "--directory", cell)])
    until(lambda: ended(forking), "the job does not end")
    assert Run(cell).state == "done", (tmp_path / "job" / "output.txt").read_text()
    assert Run(cell).read("result.json")["device"].startswith("cuda")


@pytest.mark.long
def test_exit_codes_and_a_crash(forking: Local, tmp_path: Path) -> None:
    """A crash costs the job alone, not its server and not the other jobs."""
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    bad = ("run", "methods/nft", "tasks/darcy", "--plugin", crash)
    command = ("run", "methods/nft", "tasks/darcy", "--scale", "smoke")
    good = (*command, "--directory", tmp_path / "cell")
    forking.submit([xmodal(tmp_path, "good", *good), xmodal(tmp_path, "bad", *bad)])
    fork = fork_of(forking, "bad")
    until(lambda: ended(forking), "jobs do not end")
    assert fork.poll() == -signal.SIGSEGV
    said = (tmp_path / "bad" / "output.txt").read_text()
    assert said.endswith("the process was ended by signal 11 (Segmentation fault)\n")
    assert Run(tmp_path / "cell").state == "done"
    assert forking._server is not None
    assert not forking._server.gone
    for arguments, code in ((("--version",), 0), (("run", "methods/ntf"), 2)):
        forking.submit([xmodal(tmp_path, f"exit {code}", *arguments)])
        fork = fork_of(forking, f"exit {code}")
        assert fork.wait(PATIENCE) == code
    assert "did you mean 'methods/nft'" in (tmp_path / "exit 2" / "output.txt").read_text()


CRASH = """
import os, signal
from xmodal import hookimpl
from xmodal.interfaces import Mixer

class Crash(Mixer):
    def forward(self, target, source, progress):
        os.kill(os.getpid(), signal.SIGSEGV)

@hookimpl
def xmodal_mixers():
    return {"crash": f"{__name__}:Crash"}
"""


@pytest.mark.long
def test_a_cell_that_crashes_costs_itself_alone(forking: Local, tmp_path: Path) -> None:
    plugin = tmp_path / "crashing.py"
    plugin.write_text(CRASH)
    known = registry((str(plugin),))
    request = requested(
        known, ["nft"], ["darcy"], seeds=2, settings=["mixer=none,crash"], scale="smoke",
        trivial=False,
    )  # fmt: skip
    made = grid(request, known, Store(), tmp_path / "cells")
    queue = Queue(made, forking, plugin_files=(str(plugin),))
    queue.work(lambda states: None)
    words = {
        (cell.method, cell.seed): state for cell, state in zip(made, queue.states(), strict=True)
    }
    for seed in (0, 1):
        assert words["nft [mixer=none]", seed].word == "done"
        assert words["nft [mixer=crash]", seed].word == "failed"
        assert "ended by signal 11" in words["nft [mixer=crash]", seed].detail


LONG = ("training.epochs=2000", "training.max_steps=null", "task.train=10")


def begun(directory: Path) -> bool:
    return (directory / "metrics.jsonl").exists() and bool(Run(directory).metrics())


@pytest.mark.slow
def test_a_stopped_fork_saves_itself(forking: Local, tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    command = ("run", "methods/nft", "tasks/darcy", "--scale", "smoke", "--directory", cell)
    forking.submit([xmodal(tmp_path, "job", *command, *LONG)])
    fork = fork_of(forking, "job")
    until(lambda: begun(cell), "no epoch")
    forking.stop()
    assert fork.poll() == 128 + signal.SIGTERM
    assert not psutil.pid_exists(fork.pid)
    assert Run(cell).state == "interrupted"
    assert "state saved" in (tmp_path / "job" / "output.txt").read_text()


@pytest.mark.long
def test_a_killed_server_and_changed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = tmp_path / "early" / "sitecustomize.py"
    imported.parent.mkdir()
    imported.write_text("")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{imported.parent}{os.pathsep}{before}")
    launcher = build(jobs=1)
    launcher.submit([xmodal(tmp_path, "first", "--version")])
    until(lambda: ended(launcher), "the job does not end")
    assert launcher._server is not None
    first = launcher._server.pid
    # What was imported is not what a run would record as its code: a new server imports it again.
    imported.write_text("import sys\nsys.edited = True\n")
    cell = tmp_path / "cell"
    command = ("run", "methods/nft", "tasks/darcy", "--scale", "smoke", "--directory", cell)
    launcher.submit([xmodal(tmp_path, "job", *command, *LONG)])
    fork = fork_of(launcher, "job")
    assert not psutil.pid_exists(first)
    assert launcher._server.pid != first
    # Its death costs no job.
    until(lambda: begun(cell), "no epoch")
    os.kill(launcher._server.pid, signal.SIGKILL)
    launcher.submit([xmodal(tmp_path, "other", "--version")])
    assert launcher.unfinished() == {"job": "running", "other": "queued"}
    os.kill(fork.pid, signal.SIGTERM)
    with pytest.warns(UserWarning, match=r"fork server is lost: it was ended by signal 9"):
        until(lambda: ended(launcher), "jobs do not end")
    assert Run(cell).state == "interrupted"
    assert "xmodal" in (tmp_path / "other" / "output.txt").read_text()


def test_the_number_of_a_process_may_come_again() -> None:
    server = ForkServer.__new__(ForkServer)
    server._pipe, other = Pipe()
    server._codes, server._answer, server.gone = {}, None, False
    server._running = set()
    other.send(("started", 7))
    other.send(("ended", (7, 3)))
    assert server.code(7) == 3
    other.send(("started", 7))
    assert server.code(7) is None
    other.send(("ended", (7, 0)))
    assert server.code(7) == 0


@pytest.mark.long
def test_forks_outlive_their_client_and_the_server_outlives_them(tmp_path: Path) -> None:
    """As new processes do when a comparison is killed; and nothing stays behind."""
    launcher = build(jobs=1)
    cell = tmp_path / "cell"
    command = ("run", "methods/nft", "tasks/darcy", "--scale", "smoke", "--directory", cell)
    launcher.submit([xmodal(tmp_path, "job", *command, *LONG)])
    fork = psutil.Process(fork_of(launcher, "job").pid)
    assert launcher._server is not None
    server = psutil.Process(launcher._server.pid)
    until(lambda: begun(cell), "no epoch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a process is left running
        launcher._started.clear()
        del launcher
        gc.collect()
    assert server.is_running()
    assert fork.is_running()
    steps = len(Run(cell).metrics())
    until(lambda: len(Run(cell).metrics()) > steps, "the fork does not go on")
    fork.terminate()
    gone, _ = psutil.wait_procs([fork, server], PATIENCE)
    assert set(gone) == {fork, server}
    assert Run(cell).state == "interrupted"


@pytest.mark.long
def test_the_next_launcher_takes_over_an_idle_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its imports are done; where the environment is another one, they are done again."""

    def served(name: str) -> int:
        launcher = build(jobs=1)
        launcher.submit([xmodal(tmp_path, name, "--version")])
        until(lambda: ended(launcher), "the job does not end")
        assert (tmp_path / name / "output.txt").read_text().startswith("xmodal")
        assert launcher._server is not None
        return launcher._server.pid

    first = served("first")
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))  # not read by imports
    assert served("second") == first
    monkeypatch.setenv("ANOTHER", "1")
    assert served("third") != first
    until(lambda: not psutil.pid_exists(first), "the first server has not ended")
