"""How long work goes on, for a user who waits: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from xmodal import text

Meter = Callable[[int], None]
"""Counts what was finished since the last call, for the user. Threads may share one."""

_SECONDS, _SHARE, _RARELY = 10.0, 0.05, 1.0
"""Without a terminal: a line every _SECONDS or _SHARE of the total, at most one in _RARELY."""


@contextmanager
def meter(
    title: str, total: int | None, *, unit: str = "", start: int = 0, quiet: bool = False
) -> Iterator[Meter]:
    """A progress bar on standard error; where that is no terminal, a line now and then.

    ``unit`` is what is counted ("samples"); "bytes" are shown as MB and GB. ``start``: so many were
    there already. ``total``: None if nobody knows.
    """
    if quiet:
        yield lambda finished: None
        return
    console = Console(stderr=True, markup=False, highlight=False)
    if console.is_terminal:
        counted: ProgressColumn = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), counted, TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(text.visible(title, False), total=total, completed=start)
            yield lambda finished: progress.advance(task, finished)
        return
    lines = _Lines(console, title, total, unit, start)
    yield lines.advance
    lines.ended()


class _Lines:
    """Progress in lines of text."""

    def __init__(
        self, console: Console, title: str, total: int | None, unit: str, start: int
    ) -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done = self.said = start
        self.when = time.monotonic()

    def advance(self, finished: int) -> None:
        self.done += finished
        passed = time.monotonic() - self.when
        more = self.total is not None and self.done - self.said >= _SHARE * self.total
        if self.done == self.total or passed >= _SECONDS or (more and passed >= _RARELY):
            self.say()

    def ended(self) -> None:
        """What was counted in all, unless the last line said it."""
        if self.total is None and self.done > self.said:
            self.say()

    def say(self) -> None:
        self.said, self.when = self.done, time.monotonic()
        line = f"{self.title}: {self._amount(self.done)}"
        if self.total:
            whole = self._amount(self.total)
            line = f"{self.title}: {self._amount(self.done, bare=True)} of {whole}"
            line += f" ({self.done / self.total:.0%})"
        self.console.print(text.visible(line, False), soft_wrap=True)

    def _amount(self, count: int, bare: bool = False) -> str:
        if self.unit == "bytes":
            return text.size(count) if count else "0 B"
        return f"{count} {'' if bare else self.unit}".rstrip()
