"""A whole comparison as plain values: what was asked, what came of it, what it says.

The one thing that the terminal, CSV, LaTeX, JSON and the HTML page are made from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from xmodal.compare.cells import Cell
from xmodal.compare.collect import Row
from xmodal.compare.queue import FAILED, State
from xmodal.compare.scores import Scores
from xmodal.compare.statistics import CellSummary, summary
from xmodal.compare.suites import Published
from xmodal.compare.verdicts import Comparison


@dataclass(frozen=True)
class Table:
    """A comparison.

    ``command`` repeats it, ``name`` is that of the folder of its report. ``methods`` and ``tasks``
    are labels in the order asked for, methods of every role included; ``roles`` says what each is
    (``method``, ``control`` or ``trivial``). ``states`` belong to ``cells``, one each; ``rows`` are
    the cells that are done. ``left_out`` says per task why it is not among the ``scores`` (its
    metric has no ratios, for example). Both ``scores`` and ``comparison`` are None where nothing is
    done that could be weighed. ``published``: per task what others report; it stands apart and is
    never weighed.
    """

    command: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    roles: Mapping[str, str]
    cells: tuple[Cell, ...]
    states: tuple[State, ...]
    rows: tuple[Row, ...]
    scores: Scores | None = None
    comparison: Comparison | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
    name: str = ""

    def summary(self, method: str, task: str) -> CellSummary:
        """The scores of the runs that are done; one that is not finite, or no run, has failed."""
        key = method, task
        scores = [row.test for row in self.rows if (row.method, row.task) == key]
        failed = [
            math.inf
            for cell, state in zip(self.cells, self.states, strict=True)
            if (cell.method, cell.task) == key and state.word == FAILED
        ]
        errors_S = np.array([*scores, *failed], dtype=float)
        return summary(np.where(np.isfinite(errors_S), errors_S, math.inf))

    def best(self, task: str) -> frozenset[str]:
        """Methods with the best mean among those with the most seeds; none if nothing competes."""
        found = {method: self.summary(method, task) for method in self.methods}
        most = max((one.n for one in found.values()), default=0)
        means = {m: one.mean for m, one in found.items() if one.mean is not None and one.n == most}
        if len(means) < 2:
            return frozenset()
        higher = any(row.better == "higher" for row in self.rows if row.task == task)
        target = (max if higher else min)(means.values())
        return frozenset(method for method, mean in means.items() if mean == target)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: infinities and NaN become texts and None."""
        return {
            "name": self.name,
            "command": self.command,
            "methods": list(self.methods),
            "tasks": list(self.tasks),
            "roles": dict(self.roles),
            "cells": [_cell(*pair) for pair in zip(self.cells, self.states, strict=True)],
            "rows": [plain(row.as_dict()) for row in self.rows],
            "left_out": dict(self.left_out),
            "verdicts": None if self.comparison is None else plain(asdict(self.comparison)),
            "published": {task: one.model_dump() for task, one in self.published.items()},
        }


def _cell(cell: Cell, state: State) -> dict[str, Any]:
    return {
        "method": cell.method,
        "task": cell.task,
        "seed": cell.seed,
        "state": state.word,
        "detail": state.detail,
        "directory": None if cell.directory is None else str(cell.directory),
    }


def plain(value: Any) -> Any:
    """A value of dictionaries, sequences, sets and numbers in the words of JSON."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(plain(inner) for inner in value)
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else f"{value}"
    return value
