"""Stops a run before harm: non-finite numbers, and signals that ask it to end."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from torch import Tensor, nn

from xmodal.batch import Progress
from xmodal.errors import TrainingError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remembers that a signal arrived; the loop asks between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


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


def check_loss(loss: float, log: Mapping[str, float], progress: Progress) -> None:
    """Raise TrainingError, before anything is updated, if the loss is not finite."""
    if math.isfinite(loss):
        return
    parts = ", ".join(f"{k} {v:.4g}" for k, v in log.items())
    raise TrainingError(f"the loss is {loss} at {_place(progress)} ({parts})\n{_ADVICE}")


def check_gradient(norm: float, named: list[tuple[str, nn.Parameter]], progress: Progress) -> None:
    """Raise TrainingError, before the update, if the gradient norm is not finite."""
    if math.isfinite(norm):
        return
    bad = [n for n, p in named if p.grad is not None and not bool(_finite(p.grad))]
    shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    raise TrainingError(
        f"the gradient is not finite at {_place(progress)}, first in: {shown}\n{_ADVICE}"
    )


_ADVICE = (
    "nothing was updated; the last checkpoint is good. "
    "Try a lower stages.N.optimizer.lr, a stages.N.clip, or precision=fp32"
)


def _finite(gradient: Tensor) -> Tensor:
    return gradient.isfinite().all()


def _place(progress: Progress) -> str:
    return f"stage {progress.stage}, epoch {progress.epoch + 1}, step {progress.step + 1}"
