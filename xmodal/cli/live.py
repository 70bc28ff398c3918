"""Shows the progress of a run: bars on a terminal, otherwise one plain line per epoch."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from xmodal.engine.loop import EpochRecord
    from xmodal.engine.session import RunSession
    from xmodal.engine.step import StepRecord
    from xmodal.runs import Run


class Watcher:
    """The observer for the command line; a context manager."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.bars: Progress | None = None
        self.bar: TaskID | None = None

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def say(self, line: str) -> None:
        """Print one line to stderr."""
        if not self.quiet:
            self.console.print(line)

    def note(self, line: str) -> None:
        """Show a note."""
        self.say(f"note: {line}")

    def started(self, run: Run, session: RunSession, resumed: bool) -> None:
        """Print the run's directory and, on a terminal, start the bars."""
        from xmodal.engine.observe import start_line

        self.say(start_line(run, session, resumed))
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
        """Advance the bars, or print the line of an epoch."""
        from xmodal.engine.loop import EpochRecord  # imports torch, as does the next
        from xmodal.engine.observe import epoch_line

        if isinstance(record, EpochRecord):
            self.say(epoch_line(record))
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
