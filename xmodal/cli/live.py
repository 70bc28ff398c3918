"""Shows a run while it lasts: bars on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from xmodal.engine.loop import EpochRecord, StepRecord
from xmodal.text import duration, number

if TYPE_CHECKING:
    from xmodal.engine.session import RunSession
    from xmodal.runs import Run


class Watcher:
    """The observer of the command line. Use as a context manager."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.bars: Progress | None = None
        self.bar: TaskID | None = None
        self.log: logging.Logger | None = None
        self.begun = time.monotonic()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars is not None:
            self.bars.stop()
        if self.log is not None:
            for handler in self.log.handlers:
                handler.close()
            self.log.handlers.clear()

    def say(self, line: str) -> None:
        """Print one line to stderr and keep it in the run's log."""
        if self.log is not None:
            self.log.info(line)
        if not self.quiet:
            self.console.print(line, markup=False)

    def note(self, line: str) -> None:
        """Show a note."""
        self.say(f"note: {line}")

    def started(self, run: Run, session: RunSession, resumed: bool) -> None:
        """Say where the run lives and, on a terminal, start the bars."""
        self.log = logging.getLogger(f"xmodal.run.{run.path.name}")
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        handler = logging.FileHandler(run.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.log.addHandler(handler)
        for line in session.notes:
            self.log.info("note: %s", line)
        self.say(f"{'resuming' if resumed else 'running'} {run.path} on {session.device}")
        if self.console.is_terminal and not self.quiet:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
                transient=True,
            )
            self.bars.start()

    def record(self, record: StepRecord | EpochRecord) -> None:
        """Advance the bars, or print an epoch's line."""
        if isinstance(record, EpochRecord):
            self.say(_epoch_line(record))
            return
        if self.bars is None:
            return
        at = record.progress
        total = at.epochs * at.steps
        done = at.epoch * at.steps + at.step + 1
        numbers = f"loss {record.loss:.4g}"
        if "k" in record.log:
            numbers += f"  k {record.log['k']:.0f}"
        if self.bar is None or done == 1:
            if self.bar is not None:
                self.bars.remove_task(self.bar)
            self.bar = self.bars.add_task(f"stage {at.stage}", total=total, numbers=numbers)
        self.bars.update(self.bar, completed=done, numbers=numbers)


def _epoch_line(record: EpochRecord) -> str:
    at = record.progress
    parts = [f"epoch {at.epoch + 1}/{at.epochs}"]
    if "loss" in record.train:
        parts.append(f"train loss {number(record.train['loss'])}")
    if record.metric is not None:
        parts.append(f"validation {number(record.metric)}{' (best)' if record.best else ''}")
    if "k" in record.train:
        parts.append(f"k {record.train['k']:.0f}")
    parts.append(duration(record.seconds))
    return "  ".join(parts)
