"""Runs the cells of a comparison through a launcher, and says at any time how each one stands.

What a cell has done is read from its run directory, never remembered: killing the comparison loses
nothing, and the same command goes on. A cell that another process is running is waited for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from xmodal.compare.cells import Cell
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
        unique = {cell.directory: cell for cell in cells if cell.directory is not None}
        self.cells = tuple(cells)
        self.launcher = launcher
        self.budget = budget
        self.plugin_files = tuple(plugin_files)
        self.begun = time.monotonic()
        self._jobs = {str(directory): cell for directory, cell in unique.items()}
        self._pending = [name for name, cell in self._jobs.items() if cell.run.state != "done"]
        self._launched: set[str] = set()
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
        self._unfinished = launcher.unfinished()
        spent = time.monotonic() - self.begun
        may_start = self.budget is None or spent < self.budget
        room = launcher.slots - len(self._unfinished)
        if may_start and room > 0 and self._pending:
            free = [name for name in self._pending if not self._jobs[name].run.locked()][:room]
            launcher.submit([self._job(name) for name in free])
            self._launched |= set(free)
            self._pending = [name for name in self._pending if name not in free]
            self._unfinished = launcher.unfinished()
        # A pending cell that is locked belongs to another comparison: it may be done by now.
        self._pending = [name for name in self._pending if self._jobs[name].run.state != "done"]
        return bool(self._unfinished) or (may_start and bool(self._pending))

    def _job(self, name: str) -> Job:
        """``python -m xmodal run <resolved.yaml> --directory <dir>``, which works by hand too."""
        cell = self._jobs[name]
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "cell.yaml"
        with recipe.open("w", encoding="utf-8") as stream:
            YAML().dump(dict(cell.resolved), stream)
        return Job(name, tuple(command(folder, self.plugin_files)), folder / LOG)

    def states(self) -> list[State]:
        """How every cell stands, in order."""
        return [self._state(cell) for cell in self.cells]

    def _state(self, cell: Cell) -> State:
        if cell.directory is None:
            return State(SKIPPED, detail=cell.skipped)
        name, word = str(cell.directory), cell.run.state
        epochs = _epochs(cell.resolved)
        if word == "done":
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
