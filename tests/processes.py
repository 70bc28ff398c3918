"""The command line in processes of its own that start at once.

A new Python needs ten processor seconds to import what a run needs. Here it is imported once, in
a server that does nothing else; every process is a fork of that server. It has its own process id,
working directory, environment, arguments, streams and exit code, and no plugin registry yet: only
imported modules are shared. What is read from the environment at import (``OMP_NUM_THREADS``,
``HF_*``) is what it was when the first of them started; tests of such things, of imports and of
installations need a Python of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .paths import ROOT

PRELOADED = ["xmodal.cli.app", "xmodal.api", "xmodal.comparison.run", "torch._inductor", "sklearn"]
PRELOADED += ["pandas", "scipy.stats", "matplotlib.figure", "accelerate", "h5py", "pyarrow"]
"""What a small run imports."""
TIMEOUT = 300.0


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


class Command:
    """``python -m xmodal ...`` that runs; a signal sent to it is one sent to a real process."""

    def __init__(
        self, *arguments: object, streams: Path, cwd: Path | None = None, **environment: str
    ) -> None:
        streams.mkdir(parents=True, exist_ok=True)
        count = len(list(streams.iterdir()))
        self.out, self.err = streams / f"{count}.out", streams / f"{count}.err"
        if sys.path[0] != str(ROOT):  # forks import this module by its name, and others have
            sys.path.insert(0, str(ROOT))  # a folder of tests, too
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process = context.Process(
            target=_main,
            args=(
                [str(a) for a in arguments],
                str(cwd or Path.cwd()),
                {**os.environ, **environment},
                str(self.out),
                str(self.err),
            ),
        )
        self.out.touch()
        self.err.touch()
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        self._process.join(0)
        return self._process.exitcode

    def wait(self, timeout: float = TIMEOUT) -> Done:
        """Wait for its end; what does not end in time is killed and is an error."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {timeout} s:\n{self.err.read_text()}")
        return Done(self._process.exitcode, self.out.read_text(), self.err.read_text())


def _main(
    arguments: list[str], cwd: str, environment: Mapping[str, str], out: str, err: str
) -> None:
    """What a fork does: become ``python -m xmodal`` in every respect, then run it."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["xmodal", *arguments]
    sys.stdout.reconfigure(line_buffering=False)  # type: ignore[union-attr]
    from xmodal.cli.app import main

    main()
