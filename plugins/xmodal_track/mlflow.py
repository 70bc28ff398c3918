"""MLflow: a run in an experiment named after the task, on a server or in a folder."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pydantic import Field

from xmodal.interfaces import Context, Facts, Tracked, Tracker
from xmodal_track.common import TrackerSettings, absent, flat

FOLDER, REPORT = "mlruns", "report.html"
MOST = 100
"""The largest number of parameters that a server accepts at a time."""
STATES = {"done": "FINISHED", "interrupted": "KILLED"}


class MLflow(Tracker):
    """An MLflow run in the experiment of its task. MLflow's usage reports are turned off."""

    class Config(TrackerSettings):
        """Settings of the tracker."""

        tracking_uri: str | None = Field(
            None,
            min_length=1,
            description="A server or a folder; default: $MLFLOW_TRACKING_URI, or ./mlruns.",
        )
        experiment: str | None = Field(
            None, min_length=1, description="The experiment; default: the name of the task."
        )

    config: Config

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report a missing package."""
        yield from absent("mlflow", "mlflow")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        # MLflow reports its use to its makers unless this is set before the import.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        self._entities, self._make = entities, MlflowClient
        self._client: Any = None
        self._id = ""
        self._known: dict[str, int] = {}
        self._note = context.note
        self._page: Path | None = None

    def start(self, run: Tracked) -> Mapping[str, str]:
        """Create a run, or continue the run in ``run.memory`` on the server where it began."""
        memory = dict(run.memory or {})
        uri = memory.get("uri") or _absolute(
            self.config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or FOLDER
        )
        if urlparse(uri).scheme == "file":
            # Folders still work but need this setting; databases need the full MLflow package.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = self._make(tracking_uri=uri)
        if run.memory is None:
            experiment = self._experiment(self.config.experiment or run.tags["task"])
            created = self._client.create_run(
                experiment, run_name=run.name, tags={**run.tags, "directory": str(run.directory)}
            )
            self._id = created.info.run_id
        else:
            self._id = memory["run"]
            self._client.update_run(self._id, status="RUNNING")
            self._known = self._last_steps()
        self._parameters(run.recipe)
        self._page = run.directory / REPORT
        return {"uri": uri, "run": self._id, "look": self._look(uri)}

    def _look(self, uri: str) -> str:
        """What to open on a server, or to type for a folder or a database."""
        if urlparse(uri).scheme in ("http", "https"):
            experiment = self._client.get_run(self._id).info.experiment_id
            return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{self._id}"
        allow = "MLFLOW_ALLOW_FILE_STORE=true " if urlparse(uri).scheme == "file" else ""
        return f"{allow}mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def _last_steps(self) -> dict[str, int]:
        """The last step of every metric: a killed run may have sent more than it recorded."""
        names = self._client.get_run(self._id).data.metrics
        histories = {name: self._client.get_metric_history(self._id, name) for name in names}
        return {name: max(m.step for m in history) for name, history in histories.items()}

    def _experiment(self, name: str) -> str:
        """The id of an experiment; another run may be creating it at the same time."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _parameters(self, recipe: Mapping[str, Any]) -> None:
        """Add the parameters that the run lacks; MLflow does not allow changes."""
        known = self._client.get_run(self._id).data.params
        new = {_allowed(k): str(v) for k, v in flat(recipe).items() if _allowed(k) not in known}
        made = [self._entities.Param(key, value) for key, value in new.items()]
        for first in range(0, len(made), MOST):
            self._client.log_batch(self._id, params=made[first : first + MOST])

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add metrics, all in one call."""
        now = int(time.time() * 1000)
        named = {_allowed(key): value for key, value in numbers.items()}
        new = {key: v for key, v in named.items() if step > self._known.get(key, -1)}
        metrics = [self._entities.Metric(key, v, now, step) for key, v in new.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, state: str, result: Mapping[str, float] | None) -> None:
        """Add the result and the report, and record how the run ended."""
        if not self._id:
            return
        if result is not None:
            self.log(int(result["steps"]), result)
        self._client.set_terminated(self._id, STATES.get(state, "FAILED"))
        if state == "done" and self._page is not None and self._page.is_file():
            try:
                self._client.log_artifact(self._id, str(self._page))
            except Exception as error:  # a server without room for files still has the numbers
                why = " ".join(str(error).split())
                self._note(f"mlflow: the report could not be uploaded: {why}")


def _absolute(uri: str) -> str:
    """An address that is valid from any working directory."""
    parts = urlparse(uri)
    if parts.scheme in ("", "file"):
        return Path(parts.path if parts.scheme else uri).expanduser().resolve().as_uri()
    return uri


def _allowed(name: str) -> str:
    """A name with only the characters that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)
