"""Runs the cells of a comparison through a launcher, and says at any time how each one stands.

What a cell has done is read from its run directory, never kept here alone: killing the comparison
loses nothing, and the same command goes on. A cell that another process is running is waited for;
one that an earlier comparison left in a cluster's queue is taken over.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from xmodal.compare.cells import Cell
from xmodal.engine.checkpoint import write_atomically
from xmodal.interfaces import Job, Launcher

QUEUED, RUNNING, DONE, FAILED, SKIPPED = "queued", "running", "done", "failed", "skipped"
INTERRUPTED = "interrupted"
LOG = "output.txt"
LAST_LINES = 8
PAUSE = 0.5


@dataclass(frozen=True)
class State:
    """How a cell stands. ``epoch`` of ``epochs`` are finished; ``detail`` says why, or what."""

    word: str
    epoch: int = 0
    epochs: int = 0
    remaining: float | None = None
    detail: str = ""


class Queue:
    """The cells of one comparison and the launcher that runs them."""

    def __init__(
        self,
        cells: Sequence[Cell],
        launcher: Launcher | None,
        budget: float | None = None,
        plugin_files: Sequence[str] = (),
    ) -> None:
        # Two settings that make no difference give one run.
        unique = {_name(cell.directory): cell for cell in cells if cell.directory is not None}
        self.cells = tuple(cells)
        self.launcher = launcher
        self.budget = budget
        self.plugin_files = tuple(plugin_files)
        self.begun = time.monotonic()
        self._jobs = unique
        self._pending = [name for name, cell in unique.items() if cell.run.state != "done"]
        self._launched: set[str] = set()
        self._done: set[str] = set()
        self._unfinished: Mapping[str, str] = {}

    def work(self, look: Callable[[list[State]], None]) -> None:
        """Run until every cell has ended; ``look`` is shown all states about twice a second.

        KeyboardInterrupt stops the jobs, which save themselves, and is raised again.
        """
        assert self.launcher is not None
        try:
            while self._step(self.launcher):
                look(self.states())
                time.sleep(PAUSE)
        except BaseException:
            self.launcher.stop()
            self._unfinished = {}
            raise
        look(self.states())

    def _step(self, launcher: Launcher) -> bool:
        """Start what there is room for; whether anything is still to be waited for."""
        before = self._ask(launcher)
        spent = time.monotonic() - self.begun
        may_start = self.budget is None or spent < self.budget
        # A launcher does not start what it lists already: submitting that makes it ours.
        left = [name for name in self._pending if name in self._unfinished]
        room = max(0, launcher.slots - len(self._unfinished)) if may_start else 0
        others = [name for name in self._pending if name not in left] if room else []
        batch = left + [name for name in others if not self._jobs[name].run.locked()][:room]
        if batch:
            launcher.submit([self._job(name) for name in batch])
            self._launched |= set(batch)
            self._pending = [name for name in self._pending if name not in batch]
            before |= self._ask(launcher)
        for name in before - self._unfinished.keys():
            _look_again(Path(name))
        # A pending cell that is locked belongs to another comparison: it may be done by now.
        self._pending = [name for name in self._pending if self._jobs[name].run.state != "done"]
        return bool(self._unfinished) or (may_start and bool(self._pending))

    def _ask(self, launcher: Launcher) -> set[str]:
        """Learn which of our jobs have not ended; a cluster may hold other comparisons' too.

        Returns the names of those that had not ended before.
        """
        before = set(self._unfinished)
        found = launcher.unfinished()
        self._unfinished = {name: word for name, word in found.items() if name in self._jobs}
        return before

    def _job(self, name: str) -> Job:
        """``python -m xmodal run <resolved.yaml> --directory <dir>``, which works by hand too."""
        cell = self._jobs[name]
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "cell.yaml"
        text = StringIO()
        YAML().dump(dict(cell.resolved), text)
        write_atomically(recipe, text.getvalue())  # a job that is taken over may just read it
        return Job(name, tuple(command(folder, self.plugin_files)), folder / LOG)

    def states(self) -> list[State]:
        """How every cell stands, in order."""
        return [self._state(cell) for cell in self.cells]

    def _state(self, cell: Cell) -> State:
        if cell.directory is None:
            return State(SKIPPED, detail=cell.skipped)
        name, epochs = _name(cell.directory), _epochs(cell.resolved)
        # Done is for ever, and a large grid on a network file system is slow to ask.
        word = DONE if name in self._done else cell.run.state
        if word == DONE:
            self._done.add(name)
            return State(DONE, epochs, epochs)
        metrics = cell.run.metrics()
        if self._unfinished.get(name) == RUNNING or word == "running":
            return State(RUNNING, len(metrics), epochs, _remaining(metrics, epochs))
        waits = self.launcher is not None and name in self._pending
        if name in self._unfinished or waits:
            return State(QUEUED, len(metrics), epochs)
        if word == INTERRUPTED:
            return State(INTERRUPTED, len(metrics), epochs)
        if name in self._launched or word in (FAILED, "stopped"):
            return State(FAILED, len(metrics), epochs, detail=last_lines(cell.directory / LOG))
        return State(QUEUED, len(metrics), epochs)


def _name(directory: Path) -> str:
    """What a cell's job is called: the same in every comparison, whatever folder it begins in."""
    return str(directory.absolute())


def _look_again(folder: Path) -> None:
    """Make a network file system look for what another machine has just written here."""
    with suppress(OSError):
        os.listdir(folder)


def command(folder: Path, plugin_files: Sequence[str] = ()) -> list[str]:
    """The command that runs the cell of a directory, or continues it."""
    extra = [part for file in plugin_files for part in ("--plugin", file)]
    recipe = str(folder / "cell.yaml")
    return [sys.executable, "-m", "xmodal", "run", recipe, "--directory", str(folder), *extra]


def last_lines(log: Path, number: int = LAST_LINES) -> str:
    """The end of a log file; empty if there is none."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-number:])


def _epochs(resolved: Mapping[str, Any]) -> int:
    """How many epochs all stages of a resolved recipe have, as far as their settings say so."""
    total = 0.0
    for stage in resolved.get("stages", ()):
        total += float(stage.get("epochs", 1)) * float(stage.get("stretch", 1))
    return round(total)


def _remaining(metrics: Sequence[Mapping[str, Any]], epochs: int) -> float | None:
    """Seconds that the remaining epochs will take, if they take as long as the last one."""
    if not metrics or epochs <= len(metrics):
        return None
    return float(metrics[-1]["seconds"]) * (epochs - len(metrics))
