"""Shows the progress of a long measurement: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


class Watch:
    """A context manager; wrap a long loop in ``steps`` to show its progress."""

    def __init__(self, console: Console | None, quiet: bool = False) -> None:
        self.console = None if quiet else console
        self.bars: Progress | None = None

    def __enter__(self) -> Watch:
        if self.console is not None and self.console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def say(self, line: str) -> None:
        """Show one line to the user."""
        if self.console is not None:
            self.console.print(line, soft_wrap=True)

    def steps(self, what: str, items: Iterable[T], total: int) -> Iterator[T]:
        """Yield ``items``; on a terminal, show how many have passed."""
        if self.bars is None:
            yield from items
            return
        bar = self.bars.add_task(what, total=total)
        for item in items:
            yield item
            self.bars.advance(bar)
        self.bars.remove_task(bar)


SILENT = Watch(None, quiet=True)
"""Shows nothing."""
