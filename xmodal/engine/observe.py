"""Who watches a run: the interface of a live display, and the log that every run keeps."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Protocol, Self, TextIO

from xmodal.engine.loop import EpochRecord
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.errors import file_errors
from xmodal.runs import Run
from xmodal.text import duration, number, visible

LOG = "log.txt"


class Observer(Protocol):
    """Who watches a run: a live display, a test, nobody."""

    def note(self, line: str) -> None:
        """One line for the user."""

    def started(self, run: Run, session: RunSession, resumed: bool) -> None:
        """Everything is loaded; training is about to begin."""

    def record(self, record: StepRecord | EpochRecord) -> None:
        """A step or an epoch is done."""


class Silent:
    """An observer that ignores everything."""

    def note(self, line: str) -> None:
        """Ignore."""

    def started(self, run: Run, session: RunSession, resumed: bool) -> None:
        """Ignore."""

    def record(self, record: StepRecord | EpochRecord) -> None:
        """Ignore."""


class RunLog:
    """Writes ``log.txt`` and passes everything on to another observer. Use as a context manager.

    Of several processes only the one that owns the run directory ``writes``.
    """

    def __init__(self, observer: Observer, writes: bool) -> None:
        self._observer = observer
        self._writes = writes
        self._file: TextIO | None = None
        self._run: Run | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def note(self, line: str) -> None:
        """Log a note; those that come before the run has a directory are logged when it starts."""
        self._write(f"note: {line}")
        if self._run is not None:
            self._run.append_note(line)
        self._observer.note(line)

    def started(self, run: Run, session: RunSession, resumed: bool) -> None:
        """Open the log, and catch up with the notes so far: those of earlier processes too."""
        if self._writes:
            with file_errors(run.path / LOG):
                self._file = (run.path / LOG).open("a", encoding="utf-8", buffering=1)
            self._run = run
            session.notes[:] = dict.fromkeys([*run.notes(), *session.notes])
            run.write_notes(session.notes)  # anew: a crash may have cut off the last line
        for line in session.notes:
            self._write(f"note: {line}")
        self._write(start_line(run, session, resumed))
        self._observer.started(run, session, resumed)

    def record(self, record: StepRecord | EpochRecord) -> None:
        """Log an epoch."""
        if isinstance(record, EpochRecord):
            self._write(epoch_line(record))
        self._observer.record(record)

    def _write(self, line: str) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk must not end the run here
                now = datetime.now().isoformat(" ", "milliseconds")
                self._file.write(f"{now} {visible(line, line_breaks=False)}\n")


def start_line(run: Run, session: RunSession, resumed: bool) -> str:
    """Which run starts, and where."""
    return f"{'resuming' if resumed else 'running'} {run.path} on {session.device}"


def epoch_line(record: EpochRecord) -> str:
    """What an epoch brought, in one line."""
    at = record.progress
    parts = [f"epoch {at.epoch + 1}/{at.epochs}"]
    if "loss" in record.train:
        parts.append(f"train loss {number(record.train['loss'])}")
    if record.scored:
        loss = record.metric is None
        value = f"loss {number(record.loss)}" if loss else number(record.metric)
        parts.append(f"validation {value}{' (best)' if record.best else ''}")
    if "k" in record.train:
        parts.append(f"k {record.train['k']:.0f}")
    parts.append(duration(record.seconds))
    if record.speed.samples_per_second is not None:
        parts.append(f"{number(record.speed.samples_per_second, 3)} samples/s")
    if record.speed.share_of_peak is not None:
        parts.append(f"{record.speed.share_of_peak:.1%} of the GPU's peak")
    return "  ".join(parts)
