"""The standard streams while a command runs: what goes wrong with them is said in words.

Results that cannot be written are an error. Messages that cannot be shown are none: a full log or a
closed terminal ends no training.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import typer

from xmodal.errors import MachineError, XModalError


def failed(error: XModalError) -> int:
    """Say what went wrong; returns the exit code."""
    typer.secho(f"error: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
    return error.exit_code


class ReaderGoneError(Exception):
    """Whoever read the results has closed the pipe (``head``, ``less``), which is no error.

    It is no OSError, because the libraries that parse and print would end the process on their own.
    """


class _Stream:
    """A text stream whose failures go to ``_failed``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # An ASCII terminal gets escapes for the letters that it does not have.
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._drop()
            self._failed(error)

    def _drop(self) -> None:
        """Forget what could not be written; Python would try again at its end, and complain."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def _failed(self, error: OSError) -> None:
        raise NotImplementedError


class _Results(_Stream):
    def _failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError from None
        raise MachineError.of(error, "standard output") from error


class _Messages(_Stream):
    def _failed(self, error: OSError) -> None:
        pass


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A block with guarded streams; results are flushed at its end. Raises ReaderGoneError."""
    _open_closed()
    before = sys.stdout, sys.stderr
    results = _Results(before[0])
    sys.stdout, sys.stderr = results, _Messages(before[1])
    try:
        yield
        results.flush()
    finally:
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Occupy standard streams that are closed, or the first files to be opened would be theirs.

    Writing results to a closed standard output fails, as it should.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Opening takes the lowest free number, which is this one.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
