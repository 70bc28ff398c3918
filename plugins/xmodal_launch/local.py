"""Runs jobs as processes on this machine: one per GPU, or one per CPU core."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
from pydantic import Field

from xmodal.data.datasets import cores
from xmodal.interfaces import Context, Job, Launcher, Settings
from xmodal_launch.forks import (
    PAUSE,
    Forked,
    ForkServer,
    OutdatedError,
    ServerGoneError,
    can_fork,
    drop,
    ending,
    server,
)

THREADS_BESIDE_A_GPU = 4
"""Threads of a job on a GPU, if there are as many cores; more hardly speed up one run."""
CELLS_ON_A_GPU = 10
"""Small runs that fill a GPU together; large ones find out that there is no room, and wait."""
MEMORY_A_JOB = 2 * 2**30
"""Free bytes that a job without a GPU must find; small runs need less than half of it."""


@dataclass
class _Started:
    process: subprocess.Popen[bytes] | Forked
    job: Job
    slot: int


class Local(Launcher):
    """Processes on this machine. They start at once: what they import is imported only once."""

    class Config(Settings):
        """Settings of the launcher."""

        jobs: int | None = Field(
            None,
            ge=1,
            description="Jobs at a time; default: one per GPU, or as many as cores and memory "
            "allow.",
        )
        pack: int | None = Field(
            None,
            ge=1,
            description="Cells that take turns in one job; default: 10 on a GPU, unless jobs is "
            "set, and otherwise 1.",
        )
        threads: int | None = Field(
            None,
            ge=1,
            description="Threads of a job; default: 1, on a GPU up to 4. The last digits of a "
            "result can depend on it, so it does not follow from jobs.",
        )
        grace: float = Field(
            120.0, gt=0, description="Seconds that a stopped job has to save itself."
        )

    config: Config
    default = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._gpus = _gpus()
        beside = min(THREADS_BESIDE_A_GPU, cores() // max(1, len(self._gpus)))
        self._threads = config.threads or (max(1, beside) if self._gpus else 1)
        room = min(cores() // self._threads, psutil.virtual_memory().available // MEMORY_A_JOB)
        self._slots = config.jobs or len(self._gpus) or max(1, room)
        self._waiting: list[Job] = []
        self._started: dict[str, _Started] = {}
        self._server: ForkServer | None = None
        self._forks = True

    @property
    def slots(self) -> int:
        """Jobs that run at a time, and as many that wait to take their place at once.

        Jobs of several cells do not wait: what waits could still join the others.
        """
        return self._slots if self.packs > 1 else 2 * self._slots

    @property
    def packs(self) -> int:
        """The largest number of cells that take turns in one job."""
        alone = not self._gpus or self.config.jobs is not None
        return self.config.pack or (1 if alone else CELLS_ON_A_GPU)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs in free slots; the others wait."""
        known = self.unfinished()
        self._waiting += [job for job in jobs if job.name not in known]
        self._fill()

    def unfinished(self) -> Mapping[str, str]:
        """Running jobs, and jobs that wait for a slot."""
        for name, started in list(self._started.items()):
            if started.process.poll() is not None:
                _say_how_it_ended(started)
                del self._started[name]
        self._fill()
        running = dict.fromkeys(self._started, "running")
        return running | {job.name: "queued" for job in self._waiting}

    def wait(self, seconds: float) -> None:
        """Wait at most this long for a job to end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(PAUSE)
            if any(started.process.poll() is not None for started in self._started.values()):
                break

    def withdraw(self, names: Sequence[str]) -> None:
        """Drop jobs that wait for a slot."""
        self._waiting = [job for job in self._waiting if job.name not in names]

    def stop(self) -> None:
        """Ask every job to save and end; kill those that do not end in time.

        A Ctrl-C while waiting kills them all.
        """
        self._waiting.clear()
        grace = self.config.grace
        for started in self._started.values():
            started.process.send_signal(signal.SIGTERM)
        for started in self._started.values():
            try:
                started.process.wait(grace)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
                grace = 0.0 if isinstance(error, KeyboardInterrupt) else grace
                started.process.kill()
                started.process.wait()
            _say_how_it_ended(started)
        self._started.clear()

    def _fill(self) -> None:
        taken = {started.slot for started in self._started.values()}
        free = [slot for slot in range(self._slots) if slot not in taken]
        while free and self._waiting:
            job, slot = self._waiting[0], free[0]
            process = self._start(job, os.environ | self._environment(slot))
            if process is None:
                return
            self._waiting.pop(0)
            self._started[job.name] = _Started(process, job, free.pop(0))

    def _start(
        self, job: Job, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | Forked | None:
        """Start a job, as a fork if that can be; None while the server is not ready."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        # Opened here, so that a log that cannot be written ends the comparison.
        with job.log.open("ab") as log:
            if self._forks and can_fork(job.command):
                try:
                    if self._server is None:
                        self._server = server(self, environment)
                    if not self._server.ready():
                        return None
                    return self._server.start(job.command, job.log, environment)
                except OutdatedError:
                    if self._server is not None:
                        drop(self._server)
                    self._server = None
                    return None
                except ServerGoneError as error:
                    self._forks, self._server = False, None
                    said = f"jobs take longer to start, because their fork server is lost: {error}"
                    warnings.warn(said, stacklevel=2)
            # A session of its own: Ctrl-C reaches only this process, which then ends the jobs.
            return subprocess.Popen(
                job.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def _environment(self, slot: int) -> dict[str, str]:
        threads = str(self._threads)
        shared = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self._gpus:
            shared["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return shared


def _say_how_it_ended(started: _Started) -> None:
    """Add to the log of a job what killed it: it could not write that itself."""
    code = started.process.poll()
    if code is not None and code < 0:
        with suppress(OSError), started.job.log.open("a", encoding="utf-8") as log:
            log.write(f"the process was ended by {ending(code)}\n")


def _gpus() -> list[str]:
    """The GPUs of this process, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
