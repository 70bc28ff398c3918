"""What a run gets from its process: requests to stop, a clock, and torch as it starts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import torch

from xmodal.plugins import log

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPING = "stopping after this step, and saving it (Ctrl-C again ends at once) ..."
"""What is answered to a signal, since the step may take a while."""
T = TypeVar("T")


class Stopped(BaseException):
    """A signal arrived in a block of which nothing could be saved."""


class StopRequest:
    """Remembers that a signal arrived; the run asks between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at_once = 0

    def arrived(self, number: int) -> None:
        """Remember a signal. Raises KeyboardInterrupt or Stopped if it is not to wait."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self._at_once:
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal ends at once: there is nothing in it to save."""
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1


@contextmanager
def watch_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request, and say so; a second SIGINT interrupts at once."""
    request = StopRequest()
    previous = {}

    def handle(number: int, frame: FrameType | None) -> None:
        request.arrived(number)
        with suppress(Exception):  # the stream may be in the middle of another line
            log.warning(STOPPING)

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


@contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """A block in which torch has the defaults of a new process, whatever the caller has set.

    That is float32, gradients, and no autocast.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        torch.set_default_dtype(before)


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
