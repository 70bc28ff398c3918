"""The job that runs on a Slurm node: one cell, which survives time limits and preemption.

Slurm sends USR2 before the time limit (submitit asks for it), and TERM when it preempts, requeues
or cancels the job. The run saves itself in all cases. It goes back to the queue only after a time
limit or a preemption: a job that somebody cancelled stays cancelled.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from xmodal_launch.process import Order, end, start, wait

SAVED = (-signal.SIGTERM, 128 + signal.SIGTERM)


class ClusterCell:
    """The function that submitit calls on the node.

    ``ended`` is the file in which the job reports its end. ``grace`` is the number of seconds from
    the warning to the time limit.
    """

    def __init__(self, order: Order, ended: str, grace: float) -> None:
        self.order, self.ended, self.grace = order, ended, grace
        self._process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> tuple[Order, str, float]:
        """Only the arguments, because a running process cannot be pickled."""
        return self.order, self.ended, self.grace

    def __setstate__(self, state: tuple[Order, str, float]) -> None:
        """Rebuild from the arguments."""
        self.__init__(*state)  # type: ignore[misc]

    def __call__(self) -> None:
        """Run the command to its end; exit with its exit code."""
        Path(self.ended).unlink(missing_ok=True)
        self._process = start(self.order, _threads())
        code = wait(self._process)
        if code in SAVED and _preempted():
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
            sys.exit(128 + signal.SIGTERM)
        Path(self.ended).write_text(f"{code}\n", encoding="utf-8")
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> Any:
        """Let the run save itself; submitit then queues the returned job again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            # End slightly before Slurm would: a job killed here is at least queued again.
            end(self._process, max(1.0, self.grace - 10))
        return DelayedSubmission(ClusterCell(self.order, self.ended, self.grace))


def _threads() -> int:
    """The processors of this job."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return int(given) if given else len(os.sched_getaffinity(0))


def _preempted() -> bool:
    """Whether Slurm is about to take the node away for another job.

    Slurm then queues the job again itself, but only if it had to kill it: a job that ends within
    its grace period counts as finished.
    """
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    running = re.search(r"\bJobState=RUNNING\b", shown)
    time = re.search(r"\bPreemptTime=(\S+)", shown)
    return bool(running and time and time[1] not in ("None", "Unknown", "N/A"))
