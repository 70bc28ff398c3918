"""Runs the cells of a comparison through a launcher, and says at any time how each one stands.

What a cell has done stands in its run directory and not here alone: killing the comparison loses
nothing, and the same command goes on. Cells that another process runs are waited for; those that an
earlier comparison left in a cluster's queue are taken over.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from xmodal import plugins
from xmodal.comparison.grid import Cell
from xmodal.errors import DataError
from xmodal.files import claim, write_atomically
from xmodal.runs import KIND

if TYPE_CHECKING:
    from xmodal.interfaces import Job, Launcher

QUEUED, RUNNING, DONE, FAILED, SKIPPED = "queued", "running", "done", "failed", "skipped"
INTERRUPTED, STOPPED = "interrupted", "stopped"
LOG = "output.txt"
LAST_LINES = 8
PAUSE = 0.5
STARTS = 3
"""How often a comparison starts a cell: its job can be lost, or another comparison be faster."""


@dataclass(frozen=True)
class State:
    """How a cell stands. ``epoch`` of ``epochs`` are finished.

    ``detail``: why a cell is skipped, or the last lines of one that failed.
    """

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
        verify_data: bool = False,
    ) -> None:
        # Two settings that make no difference give one run.
        unique = {_name(cell.directory): cell for cell in cells if cell.directory is not None}
        self.cells = tuple(cells)
        self.launcher = launcher
        self.budget = budget
        self.options = plugins.as_options(plugin_files)
        self.options += ["--verify-data"] if verify_data else []
        self.begun = time.monotonic()
        self._jobs = unique
        self._starts: Counter[str] = Counter()
        self._launched: set[str] = set()
        self._words: dict[str, str] = {}
        self._damage: dict[str, str] = {}
        self._progress: dict[str, tuple[int, float | None]] = {}
        self._pending = [name for name in unique if self._word(name) != DONE]
        self._unfinished: Mapping[str, str] = {}
        self._held = 0
        self._members: dict[str, list[str]] = {}  # the cells of a job, which is named by the first
        self._before: dict[str, Mapping[str, Any]] = {}  # of cells that share a job: their status
        self._alone: set[str] = set()

    def work(self, look: Callable[[list[State]], None]) -> None:
        """Run until every cell has ended; ``look`` is shown all states about twice a second.

        KeyboardInterrupt stops the jobs, which save themselves, and is raised again.
        """
        assert self.launcher is not None
        try:
            while self._step(self.launcher):
                look(self.states())
                self.launcher.wait(PAUSE)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                plugins.log.warning("stopping: the runs at work save their state ...")
            self.launcher.stop()
            self._unfinished = {}
            raise
        self._pending = []  # a failed run that there was no time to repeat has failed
        look(self.states())

    def _step(self, launcher: Launcher) -> bool:
        """Start what there is room for; returns whether there is anything left to wait for."""
        before = self._ask(launcher)
        spent = time.monotonic() - self.begun
        may_start = self.budget is None or spent < self.budget
        # A launcher does not start a job that it lists already: submitting it makes it ours.
        left = [name for name in self._pending if name in self._unfinished]
        room = max(0, launcher.slots - self._held) if may_start else 0
        others = (name for name in self._pending if name not in left and self._may_start(name))
        jobs = [[name] for name in left] + self._shared_out(others, room, launcher.packs)
        batch = [name for job in jobs for name in job]
        if batch:
            self._members |= {names[0]: names for names in jobs}
            self._before |= {n: self._status(n) for names in jobs if names[1:] for n in names}
            launcher.submit([self._job(*names) for names in jobs])
            self._launched |= set(batch)
            self._starts.update(batch)
            self._pending = [name for name in self._pending if name not in batch]
            before |= set(batch) | self._ask(launcher)
        if not may_start:
            self._withdraw(launcher)
        gone = before - self._unfinished.keys()
        for name in [name for name in self._jobs if name in gone]:
            _look_again(Path(name))
            # Another process was faster, or its machine is lost, or the job that it shared.
            if self._lost(name) or self._word(name) == RUNNING:
                self._pending.append(name)
        # A pending cell that is locked belongs to another comparison: it may be done by now.
        self._pending = [name for name in self._pending if not self._over(name)]
        return bool(self._unfinished) or (may_start and bool(self._pending))

    def _withdraw(self, launcher: Launcher) -> None:
        """Take back the jobs that a cluster has not started: nothing may begin any more."""
        queued = [name for name, word in self._unfinished.items() if word == QUEUED]
        if queued:
            launcher.withdraw(queued)
            self._launched -= set(queued)
            self._ask(launcher)

    def _over(self, name: str) -> bool:
        """Whether a cell needs neither a start nor waiting any more."""
        word = self._word(name)
        return word == DONE or (self._starts[name] >= STARTS and word != RUNNING)

    def _word(self, name: str) -> str:
        """The state of a run; the last known one if the file system fails to answer.

        A run whose files are damaged has failed: it must not cost the other cells their table.
        """
        # A run that is done stays done, and asking about a large grid on a network drive is slow.
        if self._words.get(name) != DONE:
            run = self._jobs[name].run
            with suppress(OSError):
                try:
                    word = run.state
                    self._damage.pop(name, None)  # a repeat has written the files anew
                except DataError as error:
                    word, self._damage[name] = FAILED, str(error)
                self._words[name] = word
        return self._words.get(name, "empty")

    def _may_start(self, name: str) -> bool:
        """Whether no other process runs a cell. If that is unknown, its own process finds out."""
        if self._starts[name] >= STARTS:
            return False
        with suppress(OSError):
            return not self._jobs[name].run.locked()
        return True

    def _ask(self, launcher: Launcher) -> set[str]:
        """Ask which of our jobs have not ended; a cluster may hold those of other comparisons too.

        Returns the names of our jobs that had not ended when it was asked the last time.
        """
        before = set(self._unfinished)
        found = {name: w for name, w in launcher.unfinished().items() if name in self._jobs}
        self._held = len(found)
        self._members = {job: names for job, names in self._members.items() if job in found}
        self._unfinished = {
            name: w for job, w in found.items() for name in self._members.get(job, (job,))
        }
        self._launched |= {name for name, word in self._unfinished.items() if word == RUNNING}
        return before

    def _job(self, *names: str) -> Job:
        """The job of a cell, or of several that take turns; it works by hand too."""
        from xmodal.interfaces import Job

        folders = [Path(name) for name in names]
        for name, folder in zip(names, folders, strict=True):
            claim(folder, KIND)
            recipe = folder / "cell.yaml"
            text = StringIO()
            YAML().dump(dict(self._jobs[name].resolved), text)
            write_atomically(recipe, text.getvalue())  # a job that is taken over may just read it
        return Job(names[0], (*command(*folders), *self.options), folders[0] / LOG)

    def _shared_out(self, names: Iterator[str], room: int, most: int) -> list[list[str]]:
        """At most ``room`` jobs of at most ``most`` cells each, about as many in each.

        A cell that has lost its job to others is alone in its next one.
        """
        chosen = list(islice(names, room * most))
        alone = [[name] for name in chosen if name in self._alone][:room]
        others = [name for name in chosen if name not in self._alone]
        size = min(most, -(-len(others) // max(1, room - len(alone))))
        jobs = alone + [others[i : i + size] for i in range(0, len(others), max(1, size))]
        return jobs[:room]

    def _lost(self, name: str) -> bool:
        """Whether a cell has lost the job that it shared, without an end of its own.

        It is started again, alone, and that start does not count.
        """
        before = self._before.pop(name, None)
        word = self._word(name)
        own = word in (FAILED, STOPPED, INTERRUPTED) and self._status(name) != before
        if before is None or word in (DONE, RUNNING) or own:
            return False
        self._alone.add(name)
        self._starts[name] -= 1
        return True

    def _in_turns(self, name: str) -> int:
        """How many cells take turns in the job of a cell; its epochs count its own turns."""
        names = next((names for names in self._members.values() if name in names), [name])
        return max(1, sum(self._words.get(other) != DONE for other in names))

    def _status(self, name: str) -> Mapping[str, Any]:
        """What the process that last ran a cell has said about it."""
        with suppress(OSError, DataError):
            return self._jobs[name].run.read("status.json")
        return {}

    def states(self) -> list[State]:
        """How every cell stands, in order."""
        return [self._state(cell) for cell in self.cells]

    def _state(self, cell: Cell) -> State:
        if cell.directory is None:
            return State(SKIPPED, detail=cell.skipped)
        name, epochs = _name(cell.directory), cell.epochs
        word = self._word(name)
        if word == DONE:
            return State(DONE, epochs, epochs)
        with suppress(OSError, DataError):
            metrics = cell.run.metrics()
            left = _remaining(metrics, epochs)
            self._progress[name] = len(metrics), left and left * self._in_turns(name)
        epoch, remaining = self._progress.get(name, (0, None))
        if self._unfinished.get(name) == RUNNING or word == RUNNING:
            return State(RUNNING, epoch, epochs, remaining)
        waits = self.launcher is not None and name in self._pending
        if name in self._unfinished or waits:
            return State(QUEUED, epoch, epochs)
        if word == INTERRUPTED:
            return State(INTERRUPTED, epoch, epochs)
        if name in self._launched or word in (FAILED, STOPPED):
            detail = self._damage.get(name) or last_lines(cell.directory / LOG)
            return State(FAILED, epoch, epochs, detail=detail)
        return State(QUEUED, epoch, epochs)


def _name(directory: Path) -> str:
    """What a cell's job is called: the same in every comparison, wherever that is started."""
    return str(directory.absolute())


def _look_again(folder: Path) -> None:
    """Make a network file system notice what another machine has just written here."""
    with suppress(OSError):
        os.listdir(folder)


def command(folder: Path, *more: Path) -> list[str]:
    """The command that runs the cell of a directory, or continues it; without options.

    Of several directories, it runs the cells in turns.
    """
    if more:
        return [sys.executable, "-m", "xmodal", "cells", *map(str, (folder, *more))]
    recipe = str(folder / "cell.yaml")
    return [sys.executable, "-m", "xmodal", "run", recipe, "--directory", str(folder)]


def last_lines(log: Path, number: int = LAST_LINES) -> str:
    """The end of a log file; empty if there is none."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-number:])


def _remaining(metrics: Sequence[Mapping[str, Any]], epochs: int) -> float | None:
    """Seconds that the remaining epochs will take, if they take as long as the last one."""
    if not metrics or epochs <= len(metrics):
        return None
    return float(metrics[-1]["seconds"]) * (epochs - len(metrics))
