"""Comparisons for tests: finished, failed and missing cells in the files that runs leave behind."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.comparison.grid import Cell, Request, Suite
from xmodal.comparison.published import PublishedNumber
from xmodal.comparison.queue import DONE, FAILED, QUEUED, SKIPPED, State
from xmodal.comparison.table import ComparisonTable, assemble

from . import forms

TASKS = ("car", "wine", "darcy", "psicov", "ecg", "cosmic", "crop", "satellite")
EPOCHS = 5
LOG = "Traceback (most recent call last):\n\x1b[31mNonFinite\x1b[0m: the loss is <nan> at step 41"
Place = tuple[str, str, int]


def compared(
    root: Path,
    methods: Mapping[str, float],
    tasks: Sequence[str] = TASKS,
    seeds: int = 3,
    *,
    failed: Collection[Place] = (),
    missing: Collection[Place] = (),
    skipped: Collection[tuple[str, str]] = (),
    roles: Mapping[str, str] | None = None,
    published: Sequence[PublishedNumber] = (),
    noise: float = 0.03,
    **result: Any,
) -> ComparisonTable:
    """A comparison in which each method's error is its factor times the task's, with some noise.

    ``result`` replaces entries of every ``result.json``.
    """
    random = np.random.default_rng(0)
    cells, states = [], []
    for seed in range(seeds):
        for t, task in enumerate(tasks):
            for m, (method, factor) in enumerate(methods.items()):
                error = factor * 0.05 * 1.4**t * math.exp(noise * random.standard_normal())
                cell = _cell(root, method, task, seed, (roles or {}).get(method, "method"))
                state = State(DONE, EPOCHS, EPOCHS)
                if (method, task) in skipped:
                    cell = Cell(method, task, seed, cell.references, cell.overrides, cell.scale)
                    state = State(SKIPPED, detail="mixer: this needs a grid of tokens")
                elif (method, task, seed) in failed:
                    state = State(FAILED, 2, EPOCHS, detail=LOG)
                elif (method, task, seed) in missing:
                    state = State(QUEUED, 0, EPOCHS)
                else:
                    _finish(cell, error, 1000 * (1 + m % 3), result)
                cells.append(cell)
                states.append(state)
    words = ["xmodal compare", *methods, "--task", *tasks, f"--seeds {seeds}"]
    suite = Suite(methods=tuple(methods), tasks=tuple(tasks), seeds=seeds)
    request = Request(suite, " ".join(words), "comparison", published=tuple(published))
    return assemble(request, cells, states)


def _cell(root: Path, method: str, task: str, seed: int, role: str) -> Cell:
    resolved = {
        "description": f"A recipe that says {method} only once.",
        "role": role,
        "protocol": "clean",
        "fraction": 1.0,
        "labelled": 1.0,
        "seed": seed,
        "stages": [{"use": "finetune", "epochs": EPOCHS, "optimizer": {"lr": 1e-3}}],
    }
    names = [name.replace("/", "-").replace("<", "-").replace(">", "-") for name in (task, method)]
    folder = root.joinpath(*names, f"seed{seed}")
    references = (f"methods/{method}", f"tasks/{task}")
    overrides = (f"seed={seed}",)
    return Cell(
        method,
        task,
        seed,
        references,
        overrides,
        "cpu",
        resolved=resolved,
        directory=folder,
        epochs=EPOCHS,
        learning_rate=1e-3,
    )


def _finish(cell: Cell, error: float, passes: int, changes: Mapping[str, Any]) -> None:
    """Write what a finished run leaves behind."""
    assert cell.directory is not None
    cell.directory.mkdir(parents=True)
    if cell.resolved["role"] == "trivial":
        passes = 0  # and no encoder
    result = forms.result(
        test={"metric": error, "loss": 1.0, "smallest": 1e-4},
        validation={"metric": 0.9 * error, "at": [0, EPOCHS - 1]},
        encoded_samples=passes or None,
        seconds={"training": passes / 50, "this_process": passes / 50},
        parameters={"total": 2_000_000, "trainable": 1_500_000},
    )
    data = {"task": f"sum of {cell.task}"}
    manifest = forms.manifest(xmodal="0.1.0", python="3.11.7", data=data)
    scores = [error * (1 + 2 * 0.5**epoch) for epoch in range(EPOCHS if passes else 1)]
    lines = [
        forms.epoch(0, number, train={"loss": s}, validation={"metric": s, "loss": s})
        for number, s in enumerate(scores)
    ]
    content = {
        "result.json": json.dumps({**result, **changes}),
        "status.json": json.dumps({"state": "done"}),
        "manifest.json": json.dumps(manifest),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "report.html": "<!DOCTYPE html>",
    }
    for name, text in content.items():
        (cell.directory / name).write_text(text, encoding="utf-8")
