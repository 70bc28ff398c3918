"""Runs jobs as processes on this machine: one per GPU, or a few that share the CPU cores."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from pydantic import Field

from xmodal.interfaces import Context, Job, Launcher, Settings

CORES_A_JOB = 4
"""Cores per job without a GPU; more cores hardly speed up one small run."""
CELLS_ON_A_GPU = 10
"""Small runs that fill a GPU together; large ones find out that there is no room, and wait."""


@dataclass
class _Started:
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    slot: int


class Local(Launcher):
    """Processes on this machine. Jobs share the cores evenly, so they do not slow each other."""

    class Config(Settings):
        """Settings of the launcher."""

        jobs: int | None = Field(
            None, ge=1, description="Jobs at a time; default: one per GPU, or one per four cores."
        )
        pack: int | None = Field(
            None,
            ge=1,
            description="Cells that take turns in one job; default: 10 on a GPU, unless jobs is "
            "set, and otherwise 1.",
        )
        grace: float = Field(
            120.0, gt=0, description="Seconds that a stopped job has to save itself."
        )

    config: Config
    default = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._gpus = _gpus()
        self._slots = config.jobs or len(self._gpus) or max(1, _cores() // CORES_A_JOB)
        self._waiting: list[Job] = []
        self._started: dict[str, _Started] = {}

    @property
    def slots(self) -> int:
        """The largest number of jobs at a time."""
        return self._slots

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
                started.log.close()
                del self._started[name]
        self._fill()
        running = dict.fromkeys(self._started, "running")
        return running | {job.name: "queued" for job in self._waiting}

    def withdraw(self, names: Sequence[str]) -> None:
        """Drop jobs that wait for a slot."""
        self._waiting = [job for job in self._waiting if job.name not in names]

    def stop(self) -> None:
        """Ask every job to save and end; kill those that do not end in time."""
        self._waiting.clear()
        for started in self._started.values():
            started.process.send_signal(signal.SIGTERM)
        for started in self._started.values():
            try:
                started.process.wait(self.config.grace)
            except subprocess.TimeoutExpired:
                started.process.kill()
                started.process.wait()
            started.log.close()
        self._started.clear()

    def _fill(self) -> None:
        taken = {started.slot for started in self._started.values()}
        free = [slot for slot in range(self._slots) if slot not in taken]
        for slot in free[: len(self._waiting)]:
            job = self._waiting.pop(0)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            log = job.log.open("ab")
            # A session of its own: Ctrl-C reaches only this process, which then ends the jobs.
            process = subprocess.Popen(
                job.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | self._environment(slot),
                start_new_session=True,
            )
            self._started[job.name] = _Started(process, log, slot)

    def _environment(self, slot: int) -> dict[str, str]:
        threads = max(1, _cores() // self._slots)
        shared = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        if self._gpus:
            shared["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return shared


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs of this process, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
