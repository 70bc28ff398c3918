"""Contract check of launchers: real, short processes in a folder that is removed again."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from xmodal.interfaces import Job, Launcher
from xmodal.testing.support import Given, check_config, expect, settings

PATIENCE = 60.0
_LONG = "import time; print('started', flush=True); time.sleep(600)"


def check_launcher(component: type[Launcher], given: Given = None) -> None:
    """A launcher runs all jobs, keeps their output, survives one that fails, and stops the rest."""
    expect(issubclass(component, Launcher), f"{component.__name__} must derive from Launcher")
    check_config(component, given)
    name = component.__name__
    with tempfile.TemporaryDirectory() as folder:
        launcher = component(settings(component, given))
        expect(launcher.slots >= 1, f"{name}.slots must be at least 1")
        jobs = [_job(Path(folder), f"job{i}", f"print('number {i}')") for i in range(3)]
        jobs.append(_job(Path(folder), "failing", "raise SystemExit(3)"))
        for job in jobs:
            launcher.submit([job])
        _wait(lambda: not launcher.unfinished(), f"{name}: jobs that end stay unfinished")
        for number, job in enumerate(jobs[:-1]):
            text = job.log.read_text(encoding="utf-8")
            expect(f"number {number}" in text, f"{name}: the output of a job is not in its log")
        long = _job(Path(folder), "long", _LONG)
        launcher.submit([long])
        expect(set(launcher.unfinished()) == {"long"}, f"{name}: a job that runs is not listed")
        _wait(lambda: long.log.exists() and "started" in long.log.read_text(), f"{name}: no start")
        launcher.stop()
        expect(not launcher.unfinished(), f"{name}: a job goes on after stop()")


def _job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.txt")


def _wait(done: object, message: str) -> None:
    assert callable(done)
    begun = time.monotonic()
    while not done():
        expect(time.monotonic() - begun < PATIENCE, message)
        time.sleep(0.05)
