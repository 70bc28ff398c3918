"""TensorBoard: event files in the run's own folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from xmodal.files import as_json
from xmodal.interfaces import Context, Facts, Tracked, Tracker
from xmodal_track.common import TrackerSettings, absent, flat

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Event files in ``<run>/tensorboard``: curves, the recipe, hyperparameters with the result."""

    class Config(TrackerSettings):
        """Settings of the tracker."""

    config: Config

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report a missing package."""
        yield from absent("tensorboard", "tensorboard")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        from torch.utils.tensorboard import SummaryWriter

        self._make = SummaryWriter
        self._writer: Any = None
        self._run: Tracked | None = None

    def start(self, run: Tracked) -> Mapping[str, str]:
        """Open an event file; points after ``run.step`` in an earlier file no longer count."""
        self._run = run
        resumed = run.memory is not None
        # torch has no type annotations here.
        folder = str(run.directory / FOLDER)
        self._writer = self._make(folder, purge_step=run.step + 1 if resumed else None)
        if not resumed:
            recipe = as_json(dict(run.recipe), indent=2)
            self._writer.add_text("recipe", "\n".join(f"    {r}" for r in recipe.splitlines()))
            table = "\n".join(f"|{key}|{value}|" for key, value in run.tags.items())
            self._writer.add_text("run", f"|tag|value|\n|---|---|\n{table}")
        self._writer.flush()
        return {"look": f"tensorboard --logdir {shlex.quote(folder)}"}

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add scalars and flush them, so that a crash loses none."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, state: str, result: Mapping[str, float] | None) -> None:
        """Add the result to the hyperparameters, and close the file."""
        if self._writer is None:
            return
        if result is not None and self._run is not None:
            self._writer.add_hparams(
                {**flat(self._run.recipe), "name": self._run.tags["name"]},
                dict(result),
                run_name=".",
                global_step=int(result["steps"]),
            )
        self._writer.close()
