"""Tells trackers about a run, each in a thread of its own: none can hold the run up or end it.

``trackers.json`` keeps what each of them was told. A resumed run tells a tracker what it does not
know yet, and nothing twice; a tracker that joins late is told all earlier epochs.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from xmodal import runs
from xmodal.data.store import Store
from xmodal.engine.step import StepRecord
from xmodal.errors import XModalError
from xmodal.files import as_json, write_atomically
from xmodal.interfaces import Context, Tracked, Tracker
from xmodal.plugins import reason
from xmodal.recipe.recipe import Recipe

KEPT = runs.TRACKERS
PATIENCE = 60.0
BEHIND = 10_000

Position = tuple[int, int, int]
"""Optimizer steps, stage and finished epochs of it: grows with every record of a run."""


class Tracking:
    """All trackers of a run; empty in the processes of a run that keep no record."""

    def __init__(self, recipe: Recipe, run: runs.Run, note: Callable[[str], None]) -> None:
        self._recipe, self._run, self._note = recipe, run, note
        self._channels: list[_Channel] = []
        self._result: Mapping[str, float] | None = None

    def start(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Build the trackers and begin, or continue where they stopped.

        ``lines`` are those of ``metrics.jsonl`` so far.
        """
        if not self._recipe.trackers:
            return
        kept = _Kept(self._run, self._note)
        told = _described(self._recipe, self._run)
        for use in self._recipe.trackers:
            if kept.of(use.name).get("done"):
                continue
            try:
                tracker = use.build(Context.outside(Store(), use.name, note=self._note))
                self._channels.append(_Channel(use.name, tracker, kept, told))
            except (Exception, SystemExit) as error:
                self._note(_off(use.name, reason(error)))
        for line in lines:
            self.epoch(line)

    def step(self, record: StepRecord) -> None:
        """Tell the trackers that want this optimizer step."""
        at = record.progress
        numbers = {"loss": record.loss, **record.log, "gradient_norm": record.gradient_norm}
        numbers = {f"step/{k}": v for k, v in {**numbers, "lr": record.lr}.items()}
        for channel in self._channels:
            if channel.wants(record.number):
                channel.log((record.number, at.stage, at.epoch), numbers)
        self._report(self._channels)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Tell all trackers a line of ``metrics.jsonl``."""
        position = (line["total_steps"], line["stage"], line["epoch"] + 1)
        numbers = {f"train/{k}": v for k, v in line["train"].items()}
        numbers |= {f"validation/{k}": v for k, v in line["validation"].items()}
        numbers |= {f"epoch/{k}": line[k] for k in ("stage", "seconds", "trainable")}
        numbers["epoch/number"] = line["epoch"] + 1
        for channel in self._channels:
            channel.log(position, _numbers(numbers))
        self._report(self._channels)

    def done(self, result: Mapping[str, Any]) -> None:
        """Take the content of ``result.json``, for when the trackers end."""
        nested = {
            "test": {key: result["test"][key] for key in ("metric", "loss", "smallest")},
            "best": {"metric": result["validation"]["metric"]},
            "parameters": result["parameters"],
            "seconds": {"training": result["seconds"]["training"]},
        }
        numbers = {f"{part}/{k}": v for part, inner in nested.items() for k, v in inner.items()}
        numbers |= {k: result[k] for k in ("steps", "encoded_samples", "memory_bytes")}
        self._result = _numbers(numbers)

    def _report(self, channels: Sequence[_Channel]) -> None:
        """Make one note for each tracker that failed."""
        for channel in channels:
            if channel.error and not channel.reported:
                channel.reported = True
                self._note(_off(channel.name, channel.error))

    def end(self, state: str) -> None:
        """Let all trackers finish, and wait a while for them. A second call does nothing."""
        channels, self._channels = self._channels, []
        for channel in channels:
            channel.end(state, self._result)
        deadline = time.monotonic() + PATIENCE
        for channel in channels:
            channel.wait(deadline)
        self._report(channels)


class _Channel:
    """One tracker and the thread that calls it."""

    def __init__(self, name: str, tracker: Tracker, kept: _Kept, run: Tracked) -> None:
        self.name, self.tracker = name, tracker
        self._every = tracker.every_steps
        self.error, self.reported = "", False
        self._kept = kept
        before = kept.of(name)
        self._told: Position = tuple(before.get("told", (0, 0, 0)))
        run = replace(run, memory=before.get("memory"), step=self._told[0])
        self._end: tuple[str, Mapping[str, float] | None] = ("failed", None)
        self._acts: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._acts.put(partial(self._start, run))
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def wants(self, total_steps: int) -> bool:
        """Whether this tracker is told this optimizer step."""
        return total_steps % self._every == 0 if self._every else False

    def log(self, position: Position, numbers: Mapping[str, float]) -> None:
        """Tell the tracker, unless it knows already or is off. Returns at once."""
        if self.error or position <= self._told:
            return
        if self._acts.qsize() >= BEHIND:
            self.error = f"it is {BEHIND} calls behind"
            return
        self._acts.put(partial(self._log, position, dict(numbers)))

    def end(self, state: str, result: Mapping[str, float] | None) -> None:
        """Let the tracker finish once it has been told everything."""
        self._end = (state, result if state == "done" else None)
        self._acts.put(None)

    def wait(self, deadline: float) -> None:
        """Wait until it has finished; one that hangs is left behind."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive() and not self.error:
            self.error = f"it did not finish within {PATIENCE:.0f} s"

    def _work(self) -> None:
        while (act := self._acts.get()) is not None:
            if not self.error:
                self._try(act)
        self._try(self._finish)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # a thread has nobody else to tell
            self.error = self.error or reason(error)

    def _start(self, run: Tracked) -> None:
        memory = dict(self.tracker.start(run))
        self._kept.keep(self.name, memory=memory)

    def _log(self, position: Position, numbers: Mapping[str, float]) -> None:
        self.tracker.log(position[0], numbers)
        self._kept.keep(self.name, told=list(position))

    def _finish(self) -> None:
        state, result = self._end
        failed = bool(self.error)
        self.tracker.finish(state, None if failed else result)
        if state == "done" and not failed:
            self._kept.keep(self.name, done=True)


class _Kept:
    """``trackers.json``: what each tracker wants to remember, and how far it has been told."""

    def __init__(self, run: runs.Run, note: Callable[[str], None]) -> None:
        self._path = run.path / KEPT
        self._lock = threading.Lock()
        try:
            self._content = run.read(KEPT)
        except XModalError as error:
            note(f"{error}; trackers begin anew")
            self._content = {}

    def of(self, name: str) -> Mapping[str, Any]:
        """What is known of a tracker; empty for a new one."""
        known: Mapping[str, Any] = self._content.get(name, {})
        return known

    def keep(self, name: str, **facts: Any) -> None:
        """Add facts."""
        with self._lock:
            self._content[name] = {**self._content.get(name, {}), **facts}
            # Written at every number, so it does not wait for the disk. What a power failure
            # takes is told to the tracker a second time.
            text = as_json(self._content, indent=1) + "\n"
            write_atomically(self._path, text, durable=False)


def _described(recipe: Recipe, run: runs.Run) -> Tracked:
    manifest, folder = run.read("manifest.json"), run.path.resolve()
    resolved = recipe.model_dump(mode="json", exclude={"trackers"})
    # Not what reads the data, but what they are called: arrays/clinic, say.
    task = str(manifest.get("facts", {}).get("task", {}).get("name", recipe.task.name))
    method = recipe.method or folder.parent.name
    words = filter(None, (f"{method} on {task}", recipe.scale, f"seed {recipe.seed}"))
    tags = {
        "name": folder.parent.name,
        "task": task,
        "method": method,
        "scale": recipe.scale or "as the recipes say",
        "metric": recipe.task.config.metric.name,
        "seed": str(recipe.seed),
        "protocol": recipe.protocol,
        "role": recipe.role,
        "hash": str(manifest.get("hash", "")),
    }
    return Tracked(", ".join(words), folder, resolved, tags)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are known, as floats."""
    return {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}


def _off(name: str, why: str) -> str:
    return f"tracker '{name}' is off, the run goes on: {' '.join(why.split())}"
