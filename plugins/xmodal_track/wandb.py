"""Weights & Biases: writes files in the run's own folder to send later, or sends at once."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any, Literal

from pydantic import Field

from xmodal.interfaces import Context, Facts, Tracked, Tracker
from xmodal_track.common import TrackerSettings, absent

AXIS = "step"
FLUSH = "x_transaction_log_flush_interval"
LONGEST_TAG = 64
OFFLINE = ("offline", "disabled", "dryrun")


class WandB(Tracker):
    """A Weights & Biases run, kept in ``<run>/wandb``; sends nothing unless mode is ``online``."""

    class Config(TrackerSettings):
        """Settings of the tracker."""

        mode: Literal["offline", "online"] = Field(
            "offline",
            description="offline: write files, for `wandb sync`. online: send at once "
            "($WANDB_MODE=offline takes precedence).",
        )
        project: str = Field("xmodal", min_length=1, description="The project.")
        entity: str | None = Field(
            None, min_length=1, description="The user or team; default: your default entity."
        )
        machine: bool = Field(
            False, description="Also record host, command, packages and machine load."
        )

    config: Config

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report a missing package."""
        yield from absent("wandb", "wandb")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        # W&B reports its own errors to its makers unless this is set before the import.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._mode = "offline" if os.environ.get("WANDB_MODE") in OFFLINE else config.mode
        # A service that already runs belongs to another program: do not stop it.
        self._own = wandb.run is None
        self._run: Any = None

    def start(self, run: Tracked) -> Mapping[str, str]:
        """Begin a run, or continue the run in ``run.memory`` with another piece."""
        if self._mode == "online":
            self._log_in()
        identifier = (run.memory or {}).get("run") or uuid.uuid4().hex[:8]
        config, known = self.config, run.tags
        tags = known["name"], known["task"], known["protocol"], f"seed {known['seed']}"
        self._run = self._wandb.init(
            project=config.project,
            entity=config.entity,
            mode=self._mode,
            dir=str(run.directory),
            id=identifier,
            name=run.name,
            group=run.tags["task"],
            tags=[tag[:LONGEST_TAG] for tag in dict.fromkeys(tags)],
            config={**run.recipe, "run": dict(run.tags)},
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",
            settings=self._settings(),
        )
        # W&B's own row count restarts in every piece and drops a second row at the same step.
        self._run.define_metric(AXIS)
        self._run.define_metric("*", step_metric=AXIS)
        return {"run": identifier, "look": self._look(run)}

    def _look(self, run: Tracked) -> str:
        """The page of the run, or what to type to send it."""
        if self._mode == "online":
            return str(self._run.url)
        return f"wandb sync {shlex.quote(str(run.directory))}/wandb/offline-run-*"

    def _log_in(self) -> None:
        """Log in with an existing key; never ask for a key in the middle of a run."""
        login = self._wandb.login
        silent = {"prompt": False} if "prompt" in signature(login).parameters else {"timeout": 1}
        if not login(verify=False, **silent):
            raise RuntimeError("no API key; run `wandb login`, or set WANDB_API_KEY")

    def _settings(self) -> Any:
        """Settings of a client that prints nothing and records neither code nor machine."""
        recorded, known = self.config.machine, self._wandb.Settings.model_fields
        # By default, W&B's process keeps 15 s of rows in memory, which are lost if it is killed.
        flush = {FLUSH: 0.2} if FLUSH in known else {}
        return self._wandb.Settings(
            **flush,
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_meta=not recorded,
            x_disable_machine_info=not recorded,
            x_disable_stats=not recorded,
            x_save_requirements=recorded,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a row."""
        self._run.log({AXIS: step, **numbers})

    def finish(self, state: str, result: Mapping[str, float] | None) -> None:
        """Add the result to the summary; end the run and the service that it started."""
        try:
            if self._run is not None:
                if result is not None:
                    self._run.summary.update(dict(result))
                self._run.finish(exit_code=0 if state == "done" else 1)
        finally:
            if self._own and self._wandb.run is None:
                self._wandb.teardown()
