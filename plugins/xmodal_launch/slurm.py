"""Runs jobs on a Slurm cluster through submitit, as job arrays; requeues them after time limits.

Slurm alone knows which jobs wait or run; it is asked about all of them at once, and not too often.
The name of every array has a key, and the key's folder lists the array's jobs. If a comparison is
killed, the next one can therefore find, take over and stop all its jobs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from xmodal.errors import PluginError, UsageError
from xmodal.interfaces import Context, Job, Launcher, Settings
from xmodal_launch.arrays import ArrayFolder
from xmodal_launch.controller import PREFIX, Controller, Found, is_transient
from xmodal_launch.process import Order
from xmodal_launch.slurm_job import ClusterCell

TRIES = 3
AGAIN = 30.0
"""Seconds until jobs are submitted again that Slurm refused while it had others of ours."""
LAST_WORD = 60.0
"""Seconds for Slurm to cancel jobs that did not end when asked."""


class Slurm(Launcher):
    """Jobs on a Slurm cluster. Run the comparison on a machine that has ``sbatch``."""

    class Config(Settings):
        """Settings of the launcher."""

        partition: str | None = Field(None, description="Partition; default: the cluster's.")
        account: str | None = Field(None, description="Account to charge the time to.")
        qos: str | None = Field(None, description="Quality of service.")
        minutes: int = Field(
            60, ge=1, description="Time limit; a job that reaches it saves and is queued again."
        )
        timeouts: int = Field(
            20, ge=0, description="How often a job may continue after a time limit."
        )
        cpus: int = Field(4, ge=1, description="Processors per job, and its threads.")
        gpus: int = Field(0, ge=0, description="GPUs per job.")
        memory: float | None = Field(
            None, gt=0, description="Gigabytes of memory per job; default: the cluster's."
        )
        jobs: int = Field(256, ge=1, description="Jobs of one array that may run at a time.")
        queued: int = Field(
            1000, ge=1, description="Jobs that may wait or run; clusters limit it and array sizes."
        )
        setup: tuple[str, ...] = Field(
            (), description="Shell lines to run before the job, such as `module load cuda`."
        )
        options: dict[str, str | int | bool] = Field(
            default_factory=dict,
            description="Further options of sbatch: {constraint: a100, exclude: node7}.",
        )
        grace: int = Field(
            120, ge=20, description="Seconds for a job to save, before its limit or when stopped."
        )
        keep: bool = Field(
            False, description="Leave the jobs in the queue when the comparison is interrupted."
        )
        poll: float = Field(10.0, ge=0, description="Seconds between two queries of Slurm's queue.")
        folder: Path = Field(
            Path("runs/.slurm"), description="Where submitit keeps its files; nodes must see it."
        )

        @model_validator(mode="after")
        def _time_to_work(self) -> Self:
            if self.grace >= 60 * self.minutes:
                raise ValueError(
                    f"grace ({self.grace} s, to save before the time limit) must be shorter than "
                    f"the time limit (minutes: {self.minutes})"
                )
            return self

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        _check()
        self._arrays = ArrayFolder(config.folder.expanduser().absolute())
        self._slurm = Controller(config.poll)
        self._mine: dict[str, Job] = {}
        self._found: dict[str, Found] = {}
        self._waiting: dict[str, Job] = {}  # until Slurm accepts them
        self._again = self._withdraws_again = float("-inf")
        self._listed: set[str] = set()  # the arrays of this folder that Slurm has in its queue
        self._ours: set[str] = set()  # the arrays that hold jobs of this comparison
        self._withdrawn: set[str] = set()
        self._unread = self._told = ""
        self._stopping = False
        self._refresh(must=True)
        self._arrays.clear_up(self._listed)

    @property
    def slots(self) -> int:
        """The largest number of jobs that may wait or run at a time."""
        return self.config.queued

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs as one array; take over a job that an earlier comparison left in the queue.

        Raises UsageError if Slurm refuses the jobs while it has no others of this comparison.
        """
        self._refresh(now=True)
        new = {job.name: job for job in jobs}
        self._mine |= new
        self._waiting |= new
        self._hand_over()

    def unfinished(self) -> Mapping[str, str]:
        """The unfinished jobs of this folder, including those of other comparisons."""
        self._refresh()
        self._hand_over()
        found = {name: found.word for name, found in self._found.items()}
        return dict.fromkeys(self._waiting, "queued") | found

    def withdraw(self, names: Sequence[str]) -> None:
        """Cancel jobs that have not begun; a job that Slurm is just starting may stay."""
        self._waiting = {name: job for name, job in self._waiting.items() if name not in names}
        waits = {name: found for name, found in self._found.items() if found.word == "queued"}
        mine = [name for name in names if name in waits and name in self._mine]
        if not mine or time.monotonic() < self._withdraws_again:
            return
        self._withdraws_again = time.monotonic() + max(1.0, self.config.poll)
        self._withdrawn |= set(mine)
        self._slurm.withdraw([waits[name].id for name in mine if waits[name].id])
        self._refresh(now=True)

    def stop(self) -> None:
        """Ask the jobs to save and end; cancel those that do not end in time."""
        self._waiting.clear()
        if self.config.keep:
            if left := len(self._ids()):
                why = f"{left} jobs stay in Slurm's queue (keep: true); rerun to take them over"
                warnings.warn(why, stacklevel=2)
            return
        self._stopping = True
        self._refresh(now=True)
        until = time.monotonic() + self.config.grace
        while ids := self._ids():
            late = time.monotonic() > until
            self._slurm.cancel(ids, softly=not late)
            for _ in range(5):
                time.sleep(1)
                self._refresh(now=True)
                if not self._ids():
                    return
            if time.monotonic() > until + LAST_WORD:
                return  # a node does not answer: Slurm will cancel the job when it does

    def _ids(self) -> list[str]:
        return [self._found[name].id for name in self._mine if name in self._found]

    def _hand_over(self) -> None:
        """Queue waiting jobs. While Slurm has other jobs of ours, a refusal means "not now"."""
        self._ours |= {self._found[name].key for name in self._waiting if name in self._found}
        new = [job for name, job in self._waiting.items() if name not in self._found]
        self._waiting = {job.name: job for job in new}
        patient = not self._ours.isdisjoint(self._listed)
        if not new or (patient and time.monotonic() < self._again):
            return
        refusal = self._unread or self._queue(new, 1 if patient else TRIES)
        if refusal and patient:
            self._again = time.monotonic() + AGAIN
            if refusal != self._told:
                self._told = refusal
                why = f"Slurm accepts no more jobs for now ({len(new)} waiting): {refusal}"
                warnings.warn(why, stacklevel=2)
            return
        self._waiting.clear()
        if refusal:
            raise UsageError(f"Slurm refuses the jobs: {refusal}")

    def _queue(self, jobs: list[Job], tries: int) -> str:
        """Submit an array. Its list is written first, so that it can always be found.

        Returns Slurm's reason for refusing it; empty if Slurm accepted it.
        """
        key = uuid.uuid4().hex[:16]
        names = [job.name for job in jobs]
        self._arrays.add(key, names)
        cells = [self._cell(job, self._arrays.file(key, i)) for i, job in enumerate(jobs)]
        for left in reversed(range(tries)):
            refusal = _submitted(self.config, self._arrays.folder / key, PREFIX + key, cells)
            if not is_transient(refusal):
                break
            # The array may be queued all the same, but without the files that are written later.
            time.sleep(max(1.0, self.config.poll) if left else 0.0)
            self._slurm.cancel_array(key)
        if refusal:
            self._arrays.drop(key)
            return refusal
        self._ours.add(key)
        self._listed.add(key)
        for index, name in enumerate(names):
            self._found[name] = Found(key, index, "", "queued")
        self._refresh(now=True)
        return ""

    def _cell(self, job: Job, ended: Path) -> ClusterCell:
        log = job.log.absolute()
        log.parent.mkdir(parents=True, exist_ok=True)
        order = Order(tuple(job.command), str(log), os.getcwd(), f"slurm {ended}")
        return ClusterCell(order, str(ended), self.config.grace)

    def _refresh(self, now: bool = False, must: bool = False) -> None:
        """Find out which jobs are in the queue. Without an answer, no job counts as ended.

        Raises UsageError if Slurm ``must`` answer but does not.
        """
        answer = self._slurm.ask(now=now or must)
        if must and answer is None:
            raise UsageError(f"Slurm does not answer: {self._slurm.trouble}")
        before = self._found
        listed = list(before.items()) if answer is None else self._named(answer)
        keys = {found.key for _, found in [*before.items(), *listed]}
        ended = {key: self._arrays.ended(key) for key in keys}
        # Slurm may take long to clear ended jobs from its queue. A cell may appear twice: its first
        # job failed, and another array tries it again.
        self._found = {name: job for name, job in listed if job.index not in ended[job.key]}
        if answer is not None:
            self._listed = {found.key for _, found in listed}
        for name in before.keys() - self._found.keys():
            self._leave(name, before[name], ended[before[name].key])

    def _named(self, answer: Sequence[Found]) -> list[tuple[str, Found]]:
        """Those jobs of Slurm's answer that belong to this folder, with their names."""
        named = []
        self._unread = ""
        for found in answer:
            try:
                names = self._arrays.names(found.key)
            except (OSError, ValueError) as error:
                # The jobs in this array must not be queued a second time.
                self._unread = (
                    f"the list of jobs of array {PREFIX}{found.key}, which is in the queue, "
                    f"cannot be read: {error}; cancel it with scancel --name={PREFIX}{found.key}"
                )
                continue
            if found.index < len(names):
                named.append((names[found.index], found))
        return named

    def _leave(self, name: str, was: Found, ended: set[int]) -> None:
        """Handle a job that left the queue: explain its end in its log if the job did not."""
        job = self._mine.pop(name, None)
        told = was.index in ended or name in self._withdrawn or self._stopping
        self._withdrawn.discard(name)
        if job is not None and not told:
            self._arrays.explain(job.log, was.key, was.id)


def _check() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise PluginError(
            "launcher 'slurm' needs the package submitit: pip install 'xmodal[slurm]'"
        ) from None
    missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if not shutil.which(name)]
    if missing:
        raise UsageError(
            f"launcher 'slurm' needs {', '.join(missing)} on the PATH: start the comparison on a "
            "login node of the cluster"
        )


def _submitted(config: Slurm.Config, folder: Path, name: str, cells: Sequence[ClusterCell]) -> str:
    """Submit the array ``name``; return Slurm's reason for refusing it, empty if accepted.

    submitit keeps its files in ``folder``.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    executor = _executor(config, folder, name)
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        # A comparison may itself be a Slurm job; its variables must not affect the new jobs.
        with clean_env(), executor.batch():
            os.environ.update(where)
            for cell in cells:
                executor.submit(cell)
    except (FailedJobError, FailedSubmissionError) as error:
        return str(error).strip()
    return ""


def _executor(config: Slurm.Config, folder: Path, name: str) -> Any:
    from submitit import SlurmExecutor

    executor = SlurmExecutor(
        folder, max_num_timeout=config.timeouts, python=shlex.quote(sys.executable)
    )
    given: dict[str, Any] = {
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "gpus_per_node": config.gpus or None,
        "mem": None if config.memory is None else f"{round(config.memory * 1024)}M",
    }
    executor.update_parameters(
        **{name: value for name, value in given.items() if value is not None},
        job_name=name,
        time=config.minutes,
        cpus_per_task=config.cpus,
        # srun does not inherit this from sbatch.
        srun_args=[f"--cpus-per-task={config.cpus}"],
        array_parallelism=config.jobs,
        signal_delay_s=config.grace,
        setup=list(config.setup) or None,
        wckey=None,
        additional_parameters={"requeue": True, **config.options},
    )
    return executor
