"""Contract check of launchers: real, short processes in a folder that is removed again.

The nodes of a cluster must see that folder: TMPDIR says where it is made.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from xmodal.interfaces import Job, Launcher
from xmodal.testing.support import Given, build, check_config, expect

PATIENCE = 60.0
# Ends softly, but takes its time for it, as a run that saves itself does.
_LONG = """
import signal, sys, time
def save(*_):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("started", flush=True)
time.sleep(600)
"""


def check_launcher(component: type[Launcher], given: Given = None) -> None:
    """A launcher runs all jobs, each once, keeps their output, survives one that fails, takes none
    back that has begun, and stops the rest softly.
    """
    expect(issubclass(component, Launcher), f"{component.__name__} must derive from Launcher")
    check_config(component, given)
    name = component.__name__
    with tempfile.TemporaryDirectory() as folder:
        launcher = build(component, given)
        expect(launcher.slots >= 1, f"{name}.slots must be at least 1")
        _check_ends(launcher, name, Path(folder))
        _check_stop(launcher, name, Path(folder))


def _check_ends(launcher: Launcher, name: str, folder: Path) -> None:
    jobs = [_job(folder, f"job{i}", f"print('number {i}')") for i in range(3)]
    jobs.append(_job(folder, "failing", "raise SystemExit(3)"))
    jobs[0].log.write_text("before\n", encoding="utf-8")
    launcher.submit(jobs[:2])
    launcher.submit(jobs[2:])
    words = set(launcher.unfinished().values())
    expect(words <= {"queued", "running"}, f"{name}.unfinished says {words}")
    _wait(lambda: not launcher.unfinished(), f"{name}: jobs that end stay unfinished")
    for number, job in enumerate(jobs[:-1]):
        text = job.log.read_text(encoding="utf-8")
        expect(f"number {number}" in text, f"{name}: the output of a job is not in its log")
    kept = jobs[0].log.read_text(encoding="utf-8").startswith("before\n")
    expect(kept, f"{name}: a job's output must be added to its log")


def _check_stop(launcher: Launcher, name: str, folder: Path) -> None:
    long = _job(folder, "long", _LONG)
    launcher.submit([long])
    expect(set(launcher.unfinished()) == {"long"}, f"{name}: a job that runs is not listed")
    launcher.submit([long])
    _wait(lambda: long.log.exists() and "started" in long.log.read_text(), f"{name}: no start")
    _wait(lambda: launcher.unfinished() == {"long": "running"}, f"{name}: a job does not run")
    launcher.withdraw(["long", "unknown"])
    expect(launcher.unfinished() == {"long": "running"}, f"{name}.withdraw ends a job that runs")
    launcher.stop()
    expect(not launcher.unfinished(), f"{name}: a job goes on after stop()")
    text = long.log.read_text(encoding="utf-8")
    expect("saved" in text, f"{name}.stop() must let a job save itself, and wait for it")
    expect(text.count("started") == 1, f"{name}: a job that is listed must not start again")


def _job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.txt")


def _wait(done: object, message: str) -> None:
    assert callable(done)
    begun = time.monotonic()
    while not done():
        expect(time.monotonic() - begun < PATIENCE, message)
        time.sleep(0.05)
