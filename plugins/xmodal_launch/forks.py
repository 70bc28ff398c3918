"""Processes that start at once: forks of a server, and the client's side of that server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import psutil

from xmodal_launch.forkserver import MODULE, Order

PAUSE = 0.05
ANSWER = 60.0
"""Seconds to wait for an answer; a fork takes milliseconds."""
UNKNOWN = 255
"""The exit code of a fork whose server was killed before it ended."""
READ_LATER = {"XMODAL_CACHE", "XMODAL_FETCH", "COLUMNS", "LINES", "PYTEST_CURRENT_TEST"}
"""What no import reads: forks get their own environment, but imports have seen the server's."""
_left: list[tuple[dict[str, str], ForkServer]] = []
"""At most one server that has no owner, and the environment that it was started in."""


class ServerGoneError(Exception):
    """There is no server any more, or it cannot fork; the message says why."""


class OutdatedError(Exception):
    """Files of what the server has imported have changed; a new server would import them again."""


def can_fork(command: Sequence[str]) -> bool:
    """Whether a server can run this command: ``python -m xmodal ...``, where forks are safe."""
    # The system libraries of macOS do not survive a fork, and Windows has none.
    return sys.platform == "linux" and tuple(command[:3]) == (sys.executable, "-m", MODULE)


def ending(code: int) -> str:
    """The signal in a negative exit code, in words."""
    return f"signal {-code} ({signal.strsignal(-code)})"


def server(owner: object, environment: Mapping[str, str]) -> ForkServer:
    """A server for ``owner``, which has it for itself while it lives or until ``drop``.

    It is the one that an earlier owner has left, if the same environment started it: its imports
    take seconds.
    """
    same = {name: value for name, value in environment.items() if name not in READ_LATER}
    found: ForkServer | None = None
    while _left and found is None:
        started_in, left = _left.pop()
        if started_in == same and left.serves():
            found = left
    found = found or ForkServer(environment)
    found.lease = weakref.finalize(owner, _leave, same, found)
    found.lease.atexit = False
    return found


def drop(server: ForkServer) -> None:
    """Let a server end that its owner does not want."""
    if server.lease is not None:
        server.lease.detach()


def _leave(environment: dict[str, str], server: ForkServer) -> None:
    if server.serves() and not server.busy:
        _left[:] = [(environment, server)]


class ForkServer:
    """A server of this process. It ends when this object is gone and its forks have ended."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the server
        self._pipe, theirs = Pipe()
        with theirs:
            # A session of its own: Ctrl-C reaches only the client, which then ends the forks.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "xmodal_launch.forkserver", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        weakref.finalize(self, _close, self._pipe, self._process, self._said)
        self.pid = self._process.pid
        self.gone = False
        self.lease: weakref.finalize[[dict[str, str], ForkServer], Any] | None = None
        self._ready = False
        self._answer: tuple[str, Any] | None = None
        self._codes: dict[int, int] = {}
        self._running: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether forks are running."""
        return bool(self._running)

    def ready(self) -> bool:
        """Whether the server has imported everything. Raises ServerGoneError if it never will."""
        self._listen(0)
        if self.gone:
            raise ServerGoneError(self._last_words())
        return self._ready

    def serves(self) -> bool:
        """Whether there still is a server."""
        self._listen(0)
        return not self.gone

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Forked:
        """Run ``python -m xmodal ...`` in a fork that appends its output to ``log``.

        If it raises ServerGoneError or OutdatedError, the command has not begun.
        """
        order: Order = (tuple(command), str(log.absolute()), os.getcwd(), dict(environment))
        self._answer = None
        with suppress(OSError):  # what is wrong is found out below
            self._pipe.send(order)
        until = time.monotonic() + ANSWER
        while self._answer is None and not self.gone:
            self._listen(PAUSE)
            if time.monotonic() > until:
                self._process.kill()
        if self._answer is None:
            raise ServerGoneError(self._last_words())
        word, what = self._answer
        if word == "outdated":
            raise OutdatedError
        if word == "refused":
            raise ServerGoneError(what)
        self._running.add(what)
        return Forked(self, what)

    def code(self, pid: int) -> int | None:
        """How a fork ended; None while it runs, or if nobody is left to say."""
        self._listen(0)
        return self._codes.get(pid)

    def _listen(self, seconds: float) -> None:
        """Take in what the server says within this time."""
        try:
            while self._pipe.poll(seconds):
                word, what = self._pipe.recv()
                if word == "ready":
                    self._ready = True
                elif word == "ended":
                    self._codes[what[0]] = what[1]
                    self._running.discard(what[0])
                else:
                    self._answer = word, what
                    self._codes.pop(what, None)  # of an earlier process with this number
                seconds = 0
        except (EOFError, OSError):
            self.gone = True

    def _last_words(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"it was ended by {ending(code)}"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with exit code {code}"


def _close(pipe: Connection, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    """Let a server end, which waits for the forks that still run."""
    pipe.close()
    said.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


class Forked:
    """A process that a server started, with the methods of ``subprocess.Popen``."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._process: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):  # it may have ended already
            self._process = psutil.Process(pid)

    def poll(self) -> int | None:
        """The exit code, -N after signal N; None while it runs.

        Forks go on when their server is killed; their code is then ``UNKNOWN``.
        """
        code = self._server.code(self.pid)
        if code is None and self._server.gone and not self._runs():
            return UNKNOWN
        return code

    def _runs(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            return self._process is not None and self._process.status() != psutil.STATUS_ZOMBIE
        return False

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(psutil.NoSuchProcess):
            if self.poll() is None and self._process is not None:
                self._process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(PAUSE)
        return code
