"""What the cells of a comparison say one by one: scores, course of training, what is missing.

Scores are shown in the task's own metric, as they were measured; verdicts rest on ``Table.scores``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xmodal.comparison.grid import Cell
from xmodal.comparison.queue import DONE, FAILED, SKIPPED, State
from xmodal.comparison.statistics import CellSummary
from xmodal.comparison.table import CellResult, ComparisonTable, by_hand
from xmodal.errors import DataError
from xmodal.report import history, text
from xmodal.report.compare_charts import Course, course
from xmodal.report.run_report import FILE

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Key = tuple[str, str]


@dataclass(frozen=True)
class Link:
    """A seed of a cell, and where its page lies seen from the comparison's; empty without one."""

    seed: int
    href: str


@dataclass(frozen=True)
class Score:
    """One method on one task: ``mean ± sd``, how many seeds, and what is missing."""

    value: str = ""
    seeds: int = 0
    best: bool = False
    missing: str = ""
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Column:
    """One task of the table of scores."""

    task: str
    metric: str
    better: str


def columns(table: ComparisonTable) -> list[Column]:
    """The tasks, with the metric of their finished cells."""
    found = []
    for task in table.tasks:
        rows = [row for row in table.rows if row.task == task]
        metrics = text.listed(sorted({row.metric for row in rows}))
        found.append(Column(task, metrics, rows[0].better if rows else ""))
    return found


def scores(table: ComparisonTable, page: Path | None) -> list[tuple[str, list[Score]]]:
    """Mean and deviation of every method on every task; ``page`` is where links start from."""
    here = _states(table)
    best = {task: table.best(task) for task in table.tasks}

    def score(key: Key) -> Score:
        return _score(table.summary(*key), here.get(key, []), page, key[0] in best[key[1]])

    return [(method, [score((method, task)) for task in table.tasks]) for method in table.methods]


def by_cell(rows: Iterable[CellResult]) -> dict[Key, list[CellResult]]:
    """Rows by method and task."""
    found: dict[Key, list[CellResult]] = {}
    for row in rows:
        found.setdefault((row.method, row.task), []).append(row)
    return found


def _states(table: ComparisonTable) -> dict[Key, list[tuple[Cell, State]]]:
    found: dict[Key, list[tuple[Cell, State]]] = {}
    for cell, state in zip(table.cells, table.states, strict=True):
        found.setdefault((cell.method, cell.task), []).append((cell, state))
    return found


def _score(
    found: CellSummary, here: Sequence[tuple[Cell, State]], page: Path | None, best: bool
) -> Score:
    words = [state.word for _, state in here if state.word != DONE]
    words += ["without a finite score"] * (found.failed - words.count(FAILED))
    missing = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    links = tuple(Link(cell.seed, link(cell, page)) for cell, state in here if state.word == DONE)
    if not found.n:
        return Score(missing=missing or "not asked for", links=links)
    return Score(text.mean_sd(found.mean, found.sd), found.n, best, missing, links)


def link(cell: Cell, page: Path | None) -> str:
    """The cell's page, or its directory, relative to ``page``; empty where links are not wanted."""
    if page is None or cell.directory is None:
        return ""
    report = cell.directory / FILE
    target = report if report.is_file() else cell.directory
    try:
        relative = os.path.relpath(target.resolve(), page.resolve().parent)
    except ValueError:  # another drive
        return ""
    return quote(Path(relative).as_posix()) + ("" if target == report else "/")


# --- course of training ------------------------------------------------------------------------


def courses(table: ComparisonTable, task: str) -> tuple[str, list[Course], dict[str, int]]:
    """What the curves of a task show, and one course a method, over its finished cells.

    Epochs count from the first that was scored; third is how many each method had before.
    """
    rows = [row for row in table.rows if row.task == task]
    split = "test" if any(row.selected_on == "test" for row in rows) else "validation"
    found, here = [], _states(table)
    before: dict[str, int] = {}
    for method in table.methods:
        runs = []
        for cell, state in here.get((method, task), ()):
            if state.word == DONE:
                line = history.of_validation(cell.run.metrics(), "")
                skipped = round(line.x[0]) - 1 if len(line.x) > 1 else 0
                before[method] = max(before.get(method, 0), skipped)
                scored = zip(line.x, line.y, strict=True)
                runs.append({round(e) - skipped: v for e, v in scored})
        made = course(method, runs)
        if made is not None:
            found.append(made)
    metric = text.listed(sorted({row.metric for row in rows})) or "metric"
    better = f", {rows[0].better} is better" if rows else ""
    return f"{split} {metric}{better}", found, {m: n for m, n in before.items() if n}


# --- what is missing ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    """Cells of one method on one task that are not done for one reason."""

    method: str
    task: str
    seeds: str
    word: str
    at: str
    detail: str
    commands: tuple[str, ...]


def unfinished(table: ComparisonTable) -> list[Missing]:
    """Cells without a result: failed first, then skipped, then those still to come."""
    groups: dict[tuple[str, str, str, str, str], list[Cell]] = {}
    for cell, state in zip(table.cells, table.states, strict=True):
        if state.word == DONE:
            continue
        at = f"epoch {state.epoch} of {state.epochs}" if state.epochs and state.epoch else ""
        detail = _ANSI.sub("", state.detail).replace("\r", "\n").strip()
        groups.setdefault((state.word, cell.method, cell.task, at, detail), []).append(cell)
    first = {FAILED: 0, SKIPPED: 1}
    return [
        Missing(
            method=method,
            task=task,
            seeds=text.spans(cell.seed for cell in cells),
            word=word,
            at=at,
            detail=detail,
            commands=tuple(by_hand(cell) for cell in cells) if word == FAILED else (),
        )
        for (word, method, task, at, detail), cells in sorted(
            groups.items(), key=lambda item: first.get(item[0][0], 2)
        )
    ]


def manifests(table: ComparisonTable) -> list[tuple[str, dict[str, Any]]]:
    """Task and manifest of each finished cell; damaged manifests are left out."""
    found = []
    for cell, state in zip(table.cells, table.states, strict=True):
        if state.word == DONE and cell.directory is not None:
            try:
                found.append((cell.task, cell.run.read("manifest.json")))
            except DataError:
                continue
    return found
