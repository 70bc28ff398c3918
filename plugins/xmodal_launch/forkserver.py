"""A program that has imported what runs need, and forks a process for each command it is given.

A new Python spends most of a short run on imports; here they are done once. The server runs
nothing else, starts no pool of threads and touches no GPU, so that it may be forked. A fork becomes
``python -m xmodal ...`` in every respect: its session, folder, environment, streams, arguments and
random state are its own, and it ends with the same exit code. Only what is read from the
environment at import (the number of threads) is as it was when the server started.

``xmodal_launch.forks`` is the other end of the pipe whose file descriptor is the argument. Tuples
go over it:

    server: ("ready", None) after its imports
    client: (command, log, folder, environment), one order at a time
    server: ("started", pid), ("outdated", None) or ("refused", why) in answer
    server: ("ended", (pid, code)) when a fork has ended; codes as in ``subprocess``

When the client is gone, the server waits for its forks and ends. It also ends when it has had
nothing to do for minutes.
"""

# What is imported here registers nothing to be done at exit: see ``_Exit``.
from __future__ import annotations

import atexit
import gc
import importlib
import os
import runpy
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MODULE = "xmodal"
GPUS = ("/dev/nvidia", "/dev/kfd")
IDLE = 300.0
"""Seconds without an order or a fork, after which the server ends: it holds memory."""
Order = tuple[tuple[str, ...], str, str, dict[str, str]]


class _Exit:
    """Ends the process without tidying up its memory, which costs more than a short run.

    Functions that are registered last are called first at exit. This one comes before all imports,
    so it is called when the exit is otherwise complete.
    """

    def __init__(self) -> None:
        self.code = 1  # of an exception
        atexit.register(self)

    def __call__(self) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            self.code = 120  # as Python says it
        os._exit(self.code)


def main() -> None:
    """Serve until the client is gone. In a fork, run its command."""
    end = _Exit()
    from multiprocessing.connection import Connection

    import xmodal

    pipe, folder = Connection(int(sys.argv[1])), os.getcwd()
    xmodal.preload()
    importlib.import_module(f"{MODULE}.__main__")
    del sys.modules[f"{MODULE}.__main__"]  # runpy wants to run it as the first of its name
    os.close(os.pidfd_open(os.getpid()))  # fails here, not after a fork, where there are none
    if any(file.startswith(GPUS) for file in _open_files()):
        sys.exit("what it has imported has opened a GPU, which no fork of it could use then")
    gc.collect()
    gc.freeze()  # a collection in a fork would write to all that was imported, and so copy it
    order = _serve(pipe)
    try:
        if order is not None:
            _run(order, folder)
    except SystemExit as asked:
        end.code = _number(asked.code)
        raise
    end.code = 0


def _number(code: Any) -> int:
    """The exit code that Python makes of the argument of ``sys.exit``."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _serve(pipe: Connection) -> Order | None:
    """Answer orders. Returns the order in every fork, and None when nothing is left to do."""
    from multiprocessing.connection import wait

    imported = _stamps()
    forks: dict[int, int] = {}  # by a file descriptor that is readable once the process has ended
    pipe.send(("ready", None))
    client = [pipe]
    while client or forks:
        found = wait([*client, *forks], None if forks else IDLE)
        if not found:
            return None
        for ready in found:
            try:
                if isinstance(ready, int):
                    pipe.send(("ended", _ended(ready, forks.pop(ready))))
                    continue
                order: Order = pipe.recv()
                if _stamps() != imported:
                    pipe.send(("outdated", None))
                    continue
                try:
                    pid = os.fork()
                except OSError as error:
                    pipe.send(("refused", f"cannot fork: {error}"))
                    continue
                if pid == 0:
                    pipe.close()
                    for descriptor in forks:
                        os.close(descriptor)
                    return order
                forks[os.pidfd_open(pid)] = pid
                pipe.send(("started", pid))
            except (EOFError, ConnectionError):
                client = []  # the forks go on
    return None


def _open_files() -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself is closed already
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def _ended(descriptor: int, pid: int) -> tuple[int, int]:
    """Collect a process that has ended."""
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    return pid, os.waitstatus_to_exitcode(status)


def _stamps() -> dict[str, tuple[int, int]]:
    """Times and sizes of the files of all imported modules.

    A run records the code on the disk as its own; what was imported must be the same.
    """
    found = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")  # getattr alone could import more
        if file:
            with suppress(OSError):
                status = os.stat(file)
                found[file] = (status.st_mtime_ns, status.st_size)
    return found


def _run(order: Order, started_in: str) -> None:
    """Become the process of an order, and run its command."""
    import numpy as np
    import torch

    command, log, folder, environment = order
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = [folder if entry == started_in else entry for entry in sys.path]
    np.random.seed()  # as in a new Python; the module random does so by itself
    torch.default_generator.seed()
    sys.argv[:] = command[2:]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
