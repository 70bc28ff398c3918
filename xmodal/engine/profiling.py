"""Traces a few steps of a run, with the validation and the save after them.

Nothing here changes what is computed. ``span`` names a part of a step in the trace.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from xmodal.batch import Progress
from xmodal.files import atomically
from xmodal.text import plural

FOLDER, TRACE, TABLE = "profile", "trace.json.gz", "profile.txt"
WARM_UP = 2
"""Steps before the traced ones at least: the first steps load libraries and allocate memory."""
ROWS = 25
_OURS = "xmodal: "


def span(name: str) -> AbstractContextManager[object]:
    """A block that a trace shows under this name; nothing unless a trace is being taken."""
    if not torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    return record_function(_OURS + name)


class StepTrace:
    """Traces the last ``steps`` steps of an epoch, and what follows them in it, once.

    As a context manager it ends the trace of a run that ends before, which is then not written.

    The epoch is the first that has that many after the warm-up or, where epochs are shorter, the
    first after it; in the last epoch it is whatever is left.
    """

    def __init__(self, steps: int, device: torch.device, run: Path) -> None:
        self._steps, self._run = steps, run
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._seen = self._seen_before = 0
        self._traced: profile | None = None
        self._begun = 0.0
        self.done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        traced, self._traced = self._traced, None
        if traced is not None:
            traced.stop()  # it is of the whole process

    def record(self, at: Progress, epoch_over: bool) -> None:
        """A step, or an epoch with everything that belongs to it, is over."""
        if self.done:
            return
        self._seen += not epoch_over
        if self._traced is not None:
            if epoch_over:
                self.stop()
            return
        left = at.steps - at.step - 1
        if epoch_over:
            left = at.steps if at.epoch + 1 < at.epochs else 0
        now = epoch_over or left == self._steps or at.epoch + 1 == at.epochs
        if now and self._seen >= WARM_UP and 0 < left <= self._steps:
            # Its own messages are about what it does not find here; it reads this when it starts.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            self._traced = profile(activities=self._activities)
            self._seen_before = self._seen
            self._begun = time.perf_counter()
            self._traced.start()

    def stop(self) -> None:
        """Write what was traced, if anything was."""
        traced, self._traced = self._traced, None
        if traced is None:
            return
        if ProfilerActivity.CUDA in self._activities:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._begun
        traced.stop()
        with atomically(self._run / FOLDER) as new:
            new.mkdir()
            traced.export_chrome_trace(str(new / TRACE))
            (new / TABLE).write_text(self._table(traced, seconds), encoding="utf-8")
        self.done = True

    def _table(self, traced: profile, seconds: float) -> str:
        """The shares of the parts, a blank line, and the operations that took most time."""
        on_gpu = ProfilerActivity.CUDA in self._activities
        averages = traced.key_averages()
        parts = {
            event.key.removeprefix(_OURS): event.cpu_time_total / 1e6
            for event in averages
            if event.key.startswith(_OURS) and event.cpu_time_total
        }
        parts["other"] = max(0.0, seconds - sum(parts.values()))
        steps = plural(self._seen - self._seen_before, "step")
        lines = [f"{steps}, and what followed in the epoch, took {seconds:.3f} s while traced:"]
        ordered = sorted(parts.items(), key=lambda part: -part[1])
        lines += [f"  {name:<24}{took:>9.3f} s {took / seconds:>7.1%}" for name, took in ordered]
        by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        operations = averages.table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        return "\n".join(
            [*lines, "", f"The {ROWS} operations that took most time:", operations, ""]
        )


def summary(run: Path) -> str | None:
    """What a user is told of the trace of a run: the shares, and where the rest is; None if none.

    The table of operations is left in its file: it is wider than a terminal.
    """
    table, trace = run / FOLDER / TABLE, run / FOLDER / TRACE
    if not table.exists():
        return None
    shares, _, _ = table.read_text(encoding="utf-8").partition("\n\n")
    return (
        f"{shares}\n"
        f"operations: {table}\n"
        f"trace: {trace} (open it at https://ui.perfetto.dev, or in chrome://tracing)"
    )
