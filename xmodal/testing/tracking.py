"""Contract check of trackers: runs of a few numbers in a folder that is removed again."""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Mapping
from contextlib import chdir, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmodal.interfaces import Tracked, Tracker
from xmodal.testing.support import Given, build, check_config, expect

RECIPE: Mapping[str, Any] = {
    "task": {"use": "example", "path": None},
    "stages": [{"use": "example", "epochs": 2, "train": ["*"], "stretch": 1.5}],
    "deterministic": True,
}
TAGS = ("name", "task", "metric", "seed", "protocol", "role", "hash")
NUMBERS = {"train/loss": 0.5, "validation/metric": float("nan"), "step/part of/it.1": 2.0}
RESULT = {"test/metric": 0.25, "best/metric": 0.5, "steps": 12.0}


def check_tracker(component: type[Tracker], given: Given = None) -> None:
    """A tracker follows a run, goes on with one that was cut off, and ends at any point.

    It must leave standard output and the global random generators alone.
    """
    expect(issubclass(component, Tracker), f"{component.__name__} must derive from Tracker")
    check_config(component, given)
    name = component.__name__
    with tempfile.TemporaryDirectory() as text, chdir(text), redirect_stdout(io.StringIO()) as out:
        run = Tracked("example/run", Path(text), RECIPE, dict.fromkeys(TAGS, "example"))
        before = _generators()
        memory = _follow(component, given, run, "interrupted", None, (1, 10, 10))
        expect(_plain(memory), f"{name}.start must return text by names of text, not {memory}")
        again = replace(run, memory=json.loads(json.dumps(memory)), step=10)
        continued = _follow(component, given, again, "done", RESULT, (12,))
        expect(continued == memory, f"{name} begins another run instead of going on: {continued}")
        build(component, given).finish("failed", None)
        expect(_generators() == before, f"{name} draws from a global random generator")
        expect(not out.getvalue(), f"{name} prints: {out.getvalue()!r}")


def _follow(
    component: type[Tracker],
    given: Given,
    run: Tracked,
    state: str,
    result: Mapping[str, float] | None,
    steps: tuple[int, ...],
) -> dict[str, str]:
    tracker = build(component, given)
    every = tracker.every_steps
    expect(
        every is None or (isinstance(every, int) and every >= 1),
        f"{component.__name__}.every_steps must be a number from 1, or None, not {every!r}",
    )
    try:
        memory = tracker.start(run)
        for step in steps:
            tracker.log(step, dict(NUMBERS))
    finally:
        tracker.finish(state, result)
    return dict(memory)


def _plain(memory: Mapping[Any, Any]) -> bool:
    return all(isinstance(part, str) for pair in memory.items() for part in pair)


def _generators() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=True)
    drawn = [str(part) for part in numpy_state]
    return random.getstate(), drawn, torch.random.get_rng_state().tolist()
