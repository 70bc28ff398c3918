"""What a run gets from the process that it runs in: requests to stop, and a clock."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGINT)
T = TypeVar("T")


class StopRequest:
    """Remembers that a signal arrived; the run asks between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def watch_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request; a second SIGINT interrupts at once."""
    request = StopRequest()
    previous = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    try:
        for number in SIGNALS:
            previous[number] = signal.signal(number, handle)
    except ValueError:
        # Not the main thread (a notebook, a test runner): signals stay the caller's business.
        previous = {}
    try:
        yield request
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@dataclass(frozen=True)
class Process:
    """What a run gets from its process.

    ``watch`` opens the block in which signals become requests to stop. ``clock`` counts the seconds
    that the run is at work. ``shared``: other runs take turns with this one.
    """

    watch: Callable[[], AbstractContextManager[StopRequest]] = watch_signals
    clock: Callable[[], float] = time.perf_counter
    shared: bool = False


ALONE = Process()
"""A process that has one run, and all its time for it."""


def finished(steps: Generator[None, None, T]) -> T:
    """Go through all steps, and return what the generator returns."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()
