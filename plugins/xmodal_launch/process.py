"""The part of a cluster job that runs on its node: runs the command as a child process.

Imports nothing heavy, because it lives as long as the run and must not take its memory or time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

JOB = "XMODAL_JOB"
"""Tells the run which job it is (``xmodal.runs.JOB``), so that a restarted job can take over."""
OURS = "XMODAL_"
"""Begins the names of the environment variables that are settings of xmodal."""
PAUSE = 0.2
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


@dataclass(frozen=True)
class Order:
    """What to run, with absolute paths.

    ``folder`` is the working directory; output is appended to ``log``. ``job`` stays the same when
    the cluster starts the job again. ``environment`` is added to the node's.
    """

    command: tuple[str, ...]
    log: str
    folder: str
    job: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def settings() -> dict[str, str]:
    """xmodal's own environment variables here, such as the cache folder and the fetch policy.

    For a cluster that starts processes in the environment of its nodes.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    own.pop(JOB, None)  # of the job that this process may be itself
    return own


def start(order: Order, threads: int, own_session: bool = False) -> subprocess.Popen[bytes]:
    """Start the command, after a line in its log that names this machine.

    Raises FileNotFoundError if this machine does not see the job's folders.
    """
    _check(order)
    environment = {
        **os.environ,
        **order.environment,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        JOB: order.job,
    }
    with Path(order.log).open("ab") as stream:
        stream.write(f"on {socket.gethostname()}:\n".encode())
        stream.flush()
        return subprocess.Popen(
            order.command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=order.folder,
            env=environment,
            start_new_session=own_session,
            preexec_fn=_prepare,
        )


def _check(order: Order) -> None:
    for folder in (Path(order.log).parent, Path(order.folder)):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"node {socket.gethostname()} does not see {folder}: the cells (--root) and the "
                "working directory must be on a file system that all nodes share"
            )


# Load this before any fork, because as little as possible should happen between fork and exec.
_C = ctypes.CDLL(None) if sys.platform == "linux" else None


def _prepare() -> None:
    """In the child: ignore the cluster's warning signal, but die with the job."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if _C is not None:
        _C.prctl(_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)


def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait in small steps, so that signals are handled in between. Returns the exit code."""
    while process.poll() is None:
        time.sleep(PAUSE)
    return process.returncode


def end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ask the command to save and end, and kill it after ``grace`` seconds.

    Does not collect the process: ``wait`` does, so this may run inside a signal handler that
    interrupted ``wait``.
    """
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    until = time.monotonic() + grace
    while not _ended(process.pid):
        if time.monotonic() > until:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            until = float("inf")
        time.sleep(PAUSE)


def _ended(pid: int) -> bool:
    """Whether a child process has ended; does not collect it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # already collected
        return True
