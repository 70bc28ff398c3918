"""Hands cells to Slurm as one array, through submitit."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal_launch.slurm_job import ClusterCell

if TYPE_CHECKING:
    from xmodal_launch.slurm import Slurm


def submitted(config: Slurm.Config, folder: Path, name: str, cells: Sequence[ClusterCell]) -> str:
    """Why Slurm did not take the array of this ``name``; empty if it did.

    submitit keeps its files in ``folder``.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    executor = _executor(config, folder, name)
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
        # srun does not take this over from sbatch.
        srun_args=[f"--cpus-per-task={config.cpus}"],
        array_parallelism=config.jobs,
        signal_delay_s=config.grace,
        setup=list(config.setup) or None,
        wckey=None,
        additional_parameters={"requeue": True, **config.options},
    )
    return executor
