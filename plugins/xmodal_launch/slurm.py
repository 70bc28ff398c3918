"""Runs jobs on a Slurm cluster, through submitit: one array, queued again after time limits.

Which jobs wait or run is asked of Slurm, all at once and not too often, and never remembered: every
array's name carries a key, and the key's folder lists its jobs. So a comparison that was killed
leaves nothing behind that the next one cannot find, take over and stop.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from xmodal.errors import PluginError, UsageError
from xmodal.interfaces import Job, Launcher, Settings
from xmodal_launch.controller import PREFIX, Controller, Found, is_transient
from xmodal_launch.process import Order
from xmodal_launch.slurm_job import Cell

LIST = "jobs.json"
TRIES = 3
LAST_LINES = 20
LAST_WORD = 60.0
"""Seconds that Slurm gets to cancel what did not end softly."""


class Slurm(Launcher):
    """Jobs of a Slurm cluster. Run the comparison on a machine that has ``sbatch``."""

    class Config(Settings):
        """Settings of the launcher."""

        partition: str | None = Field(None, description="Partition; default: the cluster's.")
        account: str | None = Field(None, description="Account that the time is booked on.")
        qos: str | None = Field(None, description="Quality of service.")
        minutes: int = Field(
            60, ge=1, description="Time limit. What is not done by then saves and is queued again."
        )
        timeouts: int = Field(
            20, ge=0, description="How often a job may meet its time limit and go on."
        )
        cpus: int = Field(4, ge=1, description="Processors a job, and its threads.")
        gpus: int = Field(0, ge=0, description="GPUs a job.")
        memory: float | None = Field(
            None, gt=0, description="Gigabytes a job; default: the cluster's."
        )
        jobs: int = Field(256, ge=1, description="Jobs of one array that may run at a time.")
        queued: int = Field(
            1000, ge=1, description="Jobs that may wait or run; clusters limit that and arrays."
        )
        setup: tuple[str, ...] = Field(
            (), description="Lines of shell before the job, such as `module load cuda`."
        )
        options: dict[str, str | int | bool] = Field(
            default_factory=dict,
            description="Further options of sbatch: {constraint: a100, exclude: node7}.",
        )
        grace: int = Field(
            120, ge=20, description="Seconds to save, before the time limit and when stopped."
        )
        keep: bool = Field(
            False, description="Leave the jobs in the queue when the comparison is interrupted."
        )
        poll: float = Field(
            10.0, ge=0, description="Seconds between two questions to Slurm about its queue."
        )
        folder: Path = Field(
            Path("runs/.slurm"), description="Where submitit keeps its files; nodes must see it."
        )

    config: Config

    def __init__(self, config: Config, context: None = None) -> None:
        super().__init__(config, context)
        _check()
        self._folder = config.folder.expanduser().absolute()
        self._slurm = Controller(config.poll)
        self._lists: dict[str, list[str]] = {}
        self._mine: dict[str, Job] = {}
        self._found: dict[str, Found] = {}
        self._stopping = False
        self._refresh(must=True)
        self._clear_up()

    @property
    def slots(self) -> int:
        """Jobs that wait or run at a time."""
        return self.config.queued

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs as one array; one that an earlier comparison left there is taken over."""
        self._refresh(now=True)
        self._mine |= {job.name: job for job in jobs}
        new = [job for job in jobs if job.name not in self._found]
        if new:
            self._queue(new)

    def unfinished(self) -> Mapping[str, str]:
        """The jobs of this folder that have not ended, those of other comparisons included."""
        self._refresh()
        return {name: found.word for name, found in self._found.items()}

    def stop(self) -> None:
        """Ask the jobs to save and end, and cancel what has not ended in time."""
        if self.config.keep:
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

    def _queue(self, jobs: list[Job]) -> None:
        """Submit an array. Its list is written first, so that it can be found whatever happens."""
        key = uuid.uuid4().hex[:16]
        folder = self._folder / key
        folder.mkdir(parents=True)
        names = [job.name for job in jobs]
        (folder / LIST).write_text(json.dumps(names), encoding="utf-8")
        cells = [self._cell(job, folder / f"{i}.ended") for i, job in enumerate(jobs)]
        for left in reversed(range(TRIES)):
            refusal = _submitted(self._executor(key), cells)
            if not refusal:
                break
            if not left or not is_transient(refusal):
                shutil.rmtree(folder, ignore_errors=True)
                raise UsageError(f"Slurm does not take the jobs: {refusal}")
            # The array may be there nevertheless, but it would lack the files that come after it.
            time.sleep(max(1.0, self.config.poll))
            self._slurm.cancel_array(key)
        self._lists[key] = names
        for index, name in enumerate(names):
            self._found[name] = Found(key, index, "", "queued")
        self._refresh(now=True)

    def _cell(self, job: Job, ended: Path) -> Cell:
        log = job.log.absolute()
        log.parent.mkdir(parents=True, exist_ok=True)
        order = Order(tuple(job.command), str(log), os.getcwd(), f"slurm {ended}")
        return Cell(order, str(ended), self.config.grace)

    def _executor(self, key: str) -> Any:
        from submitit import SlurmExecutor

        config = self.config
        executor = SlurmExecutor(
            self._folder / key, max_num_timeout=config.timeouts, python=shlex.quote(sys.executable)
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
            job_name=PREFIX + key,
            time=config.minutes,
            cpus_per_task=config.cpus,
            # srun does not take this over from sbatch.
            srun_args=[f"--cpus-per-task={config.cpus}"],
            array_parallelism=config.jobs,
            signal_delay_s=config.grace,
            setup=list(config.setup) or None,
            wckey=None,
            additional_parameters={"requeue": True, **config.options},
        )
        return executor

    def _refresh(self, now: bool = False, must: bool = False) -> None:
        """Learn which jobs are in the queue. Without an answer nothing is known to have ended.

        Raises UsageError if there ``must`` be an answer and there is none.
        """
        answer = self._slurm.ask(now=now or must)
        if must and answer is None:
            raise UsageError(f"Slurm does not answer: {self._slurm.trouble}")
        before = dict(self._found)
        if answer is not None:
            self._found = {}
            for found in answer:
                names = self._names(found.key)
                if found.index < len(names):
                    self._found[names[found.index]] = found
        ended = {
            key: {file.stem for file in (self._folder / key).glob("*.ended")} for key in self._lists
        }
        for key, numbers in ended.items():
            for number in numbers:
                # Slurm still has to clear up after it, which may take long.
                self._found.pop(self._lists[key][int(number)], None)
        for name in before.keys() - self._found.keys():
            self._leave(name, before[name], ended[before[name].key])

    def _names(self, key: str) -> list[str]:
        """The jobs of an array; none if it belongs to another folder."""
        if key not in self._lists:
            try:
                text = (self._folder / key / LIST).read_text(encoding="utf-8")
            except OSError:
                return []
            self._lists[key] = json.loads(text)
        return self._lists[key]

    def _leave(self, name: str, was: Found, ended: set[str]) -> None:
        """A job has left the queue: say why if it did not itself."""
        job = self._mine.pop(name, None)
        if job is not None and str(was.index) not in ended and not self._stopping:
            _explain(job.log, self._folder / was.key, was.id)

    def _clear_up(self) -> None:
        """Remove the files of arrays that have ended, unless a job did so without a word."""
        for file in self._folder.glob(f"*/{LIST}"):
            ended = len(list(file.parent.glob("*.ended")))
            if file.parent.name not in self._lists and ended == len(json.loads(file.read_text())):
                shutil.rmtree(file.parent, ignore_errors=True)


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


def _submitted(executor: Any, cells: Sequence[Cell]) -> str:
    """Why Slurm did not take the array; empty if it did."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        # A comparison may itself be a job, whose variables are no orders for the new ones.
        with clean_env(), executor.batch():
            os.environ.update(where)
            for cell in cells:
                executor.submit(cell)
    except (FailedJobError, FailedSubmissionError) as error:
        return str(error).strip()
    return ""


def _explain(log: Path, folder: Path, number: str) -> None:
    """Add to a job's log what its node said, if it ended without a word of its own."""
    file = folder / f"{number}_0_log.err"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    said = "\n".join(text.splitlines()[-LAST_LINES:]) or (
        f"nothing; it was cancelled before it began, or the node does not see {folder}"
    )
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"job {number} of Slurm left the queue early; its node said:\n{said}\n")
