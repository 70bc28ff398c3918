"""Runs jobs as tasks of a Ray cluster, which restarts them on another node if theirs dies."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from xmodal.errors import PluginError, UsageError
from xmodal.interfaces import Context, Job, Launcher, Settings
from xmodal_launch.process import Order, settings
from xmodal_launch.ray_task import run

STOPPING = 15.0
"""Seconds for Ray itself to end tasks, in addition to the time that jobs need to save."""
AGAIN = 5.0
"""Seconds after which a task that has not ended is cancelled once more."""


@dataclass(frozen=True)
class _Task:
    job: Job
    reference: Any
    size: int  # of the log when the task was submitted; a task first adds a line of its own


class Ray(Launcher):
    """Tasks of a Ray cluster that is already running."""

    class Config(Settings):
        """Settings of the launcher."""

        address: str | None = Field(
            None,
            description="Address of the cluster, such as 10.0.0.1:6379; "
            "default: RAY_ADDRESS, or the cluster of this machine.",
        )
        jobs: int = Field(1000, ge=1, description="Jobs submitted to Ray at a time.")
        cpus: float | None = Field(
            None,
            gt=0,
            description="Processors per job, and its threads; "
            "default: 4, or all processors of the largest node if it has fewer.",
        )
        gpus: float | None = Field(
            None, ge=0, description="GPUs per job, also fractions; default: 1 if a node has GPUs."
        )
        retries: int = Field(
            3, ge=0, description="How often a job may continue on another node after its node died."
        )
        grace: float = Field(
            120.0, gt=0, description="Seconds that a stopped job has to save itself."
        )
        wait: bool = Field(
            False, description="Wait for a node that is large enough to join the cluster."
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._ray = _connect(config.address)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        most = {kind: max(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        self._cpus = min(4.0, most["CPU"]) if config.cpus is None else config.cpus
        self._gpus = min(1.0, most["GPU"]) if config.gpus is None else config.gpus
        if not config.wait and (self._cpus > most["CPU"] or self._gpus > most["GPU"]):
            # Ray would wait forever.
            raise UsageError(
                f"no node of the Ray cluster has {self._cpus:g} processors and {self._gpus:g} GPUs "
                f"(at most {most['CPU']:g} and {most['GPU']:g}); set cpus or gpus of the launcher, "
                "or `wait: true` if such a node will join"
            )
        self._tasks: dict[str, _Task] = {}
        self._withdrawn: set[str] = set()

    @property
    def slots(self) -> int:
        """The largest number of jobs that may wait or run at a time."""
        return self.config.jobs

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submit jobs to Ray, which starts them on nodes with free resources."""
        config = self.config
        task = self._ray.remote(run).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=config.retries,
            retry_exceptions=False,
        )
        threads = max(1, int(self._cpus))
        known = self.unfinished()
        for job in jobs:
            if job.name in known:
                continue
            log = job.log.absolute()
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()
            name = f"ray {uuid.uuid4().hex}"
            order = Order(tuple(job.command), str(log), os.getcwd(), name, settings())
            size = log.stat().st_size
            self._tasks[job.name] = _Task(job, task.remote(order, threads, config.grace), size)

    def unfinished(self) -> Mapping[str, str]:
        """Tasks that Ray has not finished; a task is running if its log has grown."""
        for name in self._ended(0):
            task = self._tasks.pop(name)
            if name not in self._withdrawn:
                self._collect(task)
            self._withdrawn.discard(name)
        return {name: "running" if _begun(task) else "queued" for name, task in self._tasks.items()}

    def withdraw(self, names: Sequence[str]) -> None:
        """Cancel tasks that have not begun; a task that is just starting lets its job save."""
        for name in names:
            task = self._tasks.get(name)
            if task is not None and name not in self._withdrawn and not _begun(task):
                self._withdrawn.add(name)
                self._ray.cancel(task.reference)

    def stop(self) -> None:
        """Cancel all tasks; running tasks tell their jobs, which save themselves."""
        for task in self._tasks.values():
            self._ray.cancel(task.reference)
        until = time.monotonic() + self.config.grace + STOPPING
        again = time.monotonic() + AGAIN
        while len(ended := self._ended(0.2)) < len(self._tasks):
            if time.monotonic() > again:  # a busy node can miss it; one that saves ignores it
                for name in self._tasks.keys() - set(ended):
                    self._ray.cancel(self._tasks[name].reference)
                again = time.monotonic() + AGAIN
            if time.monotonic() > until:
                for task in self._tasks.values():
                    self._ray.cancel(task.reference, force=True)
                break
        self._tasks.clear()

    def _ended(self, seconds: float) -> list[str]:
        names = {task.reference: name for name, task in self._tasks.items()}
        if not names:
            return []
        done, _ = self._ray.wait(list(names), num_returns=len(names), timeout=seconds)
        return [names[reference] for reference in done]

    def _collect(self, task: _Task) -> None:
        """Write the reason into the log of a job whose task ended without reporting it."""
        try:
            self._ray.get(task.reference)
        except (self._ray.exceptions.RayError, OSError) as error:
            cause = getattr(error, "cause", None) or error
            with task.job.log.open("a", encoding="utf-8") as stream:
                stream.write(f"Ray could not run the job: {cause}\n")


def _begun(task: _Task) -> bool:
    """Whether a task has begun: its first action is to add a line to the job's log."""
    try:
        return task.job.log.stat().st_size > task.size
    except OSError:  # the file system does not answer: assume that the task has begun
        return True


def _connect(address: str | None) -> Any:
    """Ray, connected. Never starts a cluster: for one machine, use the launcher `local`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise PluginError(
            "launcher 'ray' needs the package ray: pip install 'xmodal[ray]'"
        ) from None
    if ray.is_initialized():
        return ray
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        ray.init(address=where, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        if where == "auto":
            message = "no Ray cluster runs on this machine; set the launcher's address"
        else:
            message = f"no Ray cluster at {where}: {str(error).strip().partition('.')[0]}"
        raise UsageError(f"{message}, or start one with: ray start --head") from None
    return ray
