"""The cells of a comparison: scores, course of training, cost, recipes and missing cells.

Scores are shown in the task's own metric, as measured; verdicts use the table's error scores. Cost
is counted in samples through the encoder, which does not depend on other load on the machine; time
and memory are shown next to it, as measured.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

import numpy as np
from ruamel.yaml import YAML

from xmodal import text
from xmodal.comparison.grid import METHOD, Cell
from xmodal.comparison.published import PublishedNumber
from xmodal.comparison.queue import DONE, FAILED, SKIPPED, State
from xmodal.comparison.ranks import levels
from xmodal.comparison.statistics import CellSummary
from xmodal.comparison.table import CellResult, ComparisonTable, by_hand, encoded, grouped
from xmodal.errors import DataError
from xmodal.report.run import FILE, Words, environment, kept_samples, recipe_text, validation_curve
from xmodal.report.samples import FieldMaps, side_by_side

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Key = tuple[str, str]


@dataclass(frozen=True)
class SeedLink:
    """A seed of a cell, and the link to its page from the comparison's page; empty if none."""

    seed: int
    href: str


@dataclass(frozen=True)
class ScoreEntry:
    """One method on one task: ``mean ± sd``, the number of seeds, and the missing runs."""

    value: str = ""
    seeds: int = 0
    best: bool = False
    missing: str = ""
    links: tuple[SeedLink, ...] = ()


@dataclass(frozen=True)
class BesidePublished:
    """A published number, and what was measured here of that method on that task, if anything.

    ``metric`` is that of ``measured``: often an error where others print a score.
    """

    number: PublishedNumber
    measured: str
    metric: str


def beside_published(table: ComparisonTable) -> list[BesidePublished]:
    """Every published number beside the measured one, in the order of the tasks."""
    found = []
    metrics = {column.task: column.metric for column in columns(table)}
    for number in table.published:
        label = number.label if number.label in table.methods else number.method
        same = not number.setting or label == number.label
        mine = table.summary(label, number.task) if label in table.methods and same else None
        measured = "" if mine is None or mine.mean is None else text.mean_sd(mine.mean, mine.sd)
        metric = metrics.get(number.task, "") if measured else ""
        found.append(BesidePublished(number, measured, metric))
    return found


@dataclass(frozen=True)
class TaskColumn:
    """One task of the table of scores."""

    task: str
    metric: str
    better: str


def columns(table: ComparisonTable) -> list[TaskColumn]:
    """The tasks, with the metric of their finished cells."""
    found = []
    for task in table.tasks:
        rows = [row for row in table.rows if row.task == task]
        metrics = text.listed(sorted({row.metric for row in rows}))
        found.append(TaskColumn(task, metrics, rows[0].better if rows else ""))
    return found


def scores(table: ComparisonTable, page: Path | None) -> list[tuple[str, list[ScoreEntry]]]:
    """Mean and deviation of every method on every task; links are relative to ``page``."""
    here = grouped(table.standing, lambda pair: _key(pair[0]))
    best = {task: table.best(task) for task in table.tasks}

    def score(key: Key) -> ScoreEntry:
        return _score(table.summary(*key), here.get(key, []), page, key[0] in best[key[1]])

    return [(method, [score((method, task)) for task in table.tasks]) for method in table.methods]


def _key(one: Cell | CellResult) -> Key:
    return one.method, one.task


def _done(table: ComparisonTable) -> dict[Key, list[Cell]]:
    return grouped((cell for cell, state in table.standing if state.word == DONE), _key)


def _score(
    found: CellSummary, here: Sequence[tuple[Cell, State]], page: Path | None, best: bool
) -> ScoreEntry:
    words = [state.word for _, state in here if state.word != DONE]
    words += ["without a finite score"] * (found.failed - words.count(FAILED))
    missing = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    links = tuple(
        SeedLink(cell.seed, link(cell, page)) for cell, state in here if state.word == DONE
    )
    if not found.n:
        return ScoreEntry(missing=missing or "not requested", links=links)
    return ScoreEntry(text.mean_sd(found.mean, found.sd), found.n, best, missing, links)


def link(cell: Cell, page: Path | None) -> str:
    """The cell's page, or its directory, relative to ``page``; empty if links are not wanted."""
    if page is None or cell.directory is None:
        return ""
    report = cell.directory / FILE
    target = report if report.is_file() else cell.directory
    try:
        relative = os.path.relpath(target.resolve(), page.resolve().parent)
    except ValueError:  # another drive
        return ""
    return quote(Path(relative).as_posix()) + ("" if target == report else "/")


# --- course of training ---


@dataclass(frozen=True)
class Course:
    """Validation scores of one method on one task: mean, smallest and largest over seeds."""

    method: str
    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int


def course(method: str, runs: Sequence[Mapping[int, float]]) -> Course | None:
    """Mean and range over the runs, at the epochs that all of them have; None if none."""
    runs = [run for run in runs if run]
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    columns = [(e, [run[e] for run in runs]) for e in shared]
    columns = [(e, values) for e, values in columns if all(map(math.isfinite, values))]
    if not columns:
        return None
    return Course(
        method,
        tuple(e for e, _ in columns),
        tuple(sum(values) / len(values) for _, values in columns),
        tuple(min(values) for _, values in columns),
        tuple(max(values) for _, values in columns),
        len(runs),
    )


def courses(table: ComparisonTable, task: str) -> tuple[str, list[Course], dict[str, int]]:
    """The title of a task's curves, one course per method over its finished cells, and a count.

    Epochs count from the first scored epoch; the count is each method's number of earlier epochs.
    """
    rows = [row for row in table.rows if row.task == task]
    split = "test" if any(row.on_test for row in rows) else "validation"
    found, done = [], _done(table)
    before: dict[str, int] = {}
    for method in table.methods:
        runs = []
        for cell in done.get((method, task), ()):
            line = validation_curve(cell.run.metrics(), "")
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


def compared_fields(table: ComparisonTable) -> list[tuple[str, list[FieldMaps]]]:
    """For tasks with 2-D fields: every method's predictions for the same test samples.

    Uses the first finished seed of each method.
    """
    done, found = _done(table), []
    for task in table.tasks:
        first = [(m, done[m, task][0]) for m in table.methods if (m, task) in done]
        maps = side_by_side([(m, kept_samples(cell.run)) for m, cell in first])
        if maps:
            found.append((task, maps))
    return found


# --- what is missing ---


@dataclass(frozen=True)
class UnfinishedCells:
    """Cells of one method on one task that are not done, for the same reason."""

    method: str
    task: str
    seeds: str
    word: str
    at: str
    detail: str
    commands: tuple[str, ...]


def unfinished(table: ComparisonTable) -> list[UnfinishedCells]:
    """Cells without a result: failed cells first, then skipped, then those yet to run."""

    def alike(pair: tuple[Cell, State]) -> tuple[str, str, str, str, str]:
        cell, state = pair
        at = f"epoch {state.epoch} of {state.epochs}" if state.epochs and state.epoch else ""
        detail = _ANSI.sub("", state.detail).replace("\r", "\n").strip()
        return state.word, cell.method, cell.task, at, detail

    groups = grouped((pair for pair in table.standing if pair[1].word != DONE), alike)
    first = {FAILED: 0, SKIPPED: 1}
    return [
        UnfinishedCells(
            method=method,
            task=task,
            seeds=text.spans(cell.seed for cell, _ in cells),
            word=word,
            at=at,
            detail=detail,
            commands=tuple(by_hand(cell) for cell, _ in cells) if word == FAILED else (),
        )
        for (word, method, task, at, detail), cells in sorted(
            groups.items(), key=lambda item: first.get(item[0][0], 2)
        )
    ]


def manifests(table: ComparisonTable) -> list[tuple[str, dict[str, Any]]]:
    """Task and manifest of each finished cell, but for those damaged since the table was made."""
    found = []
    for cell, state in table.standing:
        if state.word == DONE:
            with suppress(DataError):
                found.append((cell.task, cell.run.read("manifest.json")))
    return found


# --- cost ---


@dataclass(frozen=True)
class Cost:
    """The cost of a method's runs, averaged over seeds; ``share`` of the highest is for a bar.

    ``encoded``: None without an encoder.
    """

    method: str
    encoded: int | None
    ratio: str
    share: float
    seconds: float
    memory: int
    trainable: str
    runs: int


def costs(table: ComparisonTable, tasks: Sequence[str]) -> list[Cost]:
    """The cost of a run, averaged over ``tasks``, for each method that is done on all of them."""
    made = grouped(table.rows, _key)
    able = [m for m in table.methods if tasks and all((m, task) in made for task in tasks)]
    found = [(m, [made[m, task] for task in tasks]) for m in able]
    passes = {m: encoded(row for rows in groups for row in rows) for m, groups in found}
    positive = [value for value in passes.values() if value]
    cheapest, dearest = min(positive, default=1), max(positive, default=1)
    return [
        Cost(
            method=method,
            encoded=passes[method],
            ratio=_ratio(passes[method], cheapest),
            share=(passes[method] or 0) / dearest,
            seconds=fmean(fmean(r.seconds for r in rows) for rows in groups),
            memory=max(r.memory_bytes for rows in groups for r in rows),
            trainable=_parameters([r.trainable for rows in groups for r in rows]),
            runs=sum(len(rows) for rows in groups),
        )
        for method, groups in found
    ]


def _ratio(passes: int | None, cheapest: int) -> str:
    if passes is None:
        return text.MISSING
    return f"{passes / cheapest:.2f}×" if passes else "none"


def _parameters(counts: Sequence[int]) -> str:
    low, high = text.count(min(counts)), text.count(max(counts))
    return low if low == high else f"{low} to {high}"


def common(table: ComparisonTable) -> tuple[str, ...]:
    """The tasks on which all methods are done, leaving out methods that are done nowhere."""
    made = {(row.method, row.task) for row in table.rows}
    methods = {row.method for row in table.rows}
    return tuple(t for t in table.tasks if made and all((m, t) in made for m in methods))


def front(table: ComparisonTable) -> tuple[list[Spot], tuple[str, ...]]:
    """Error against cost on the tasks that all methods share, and these tasks."""
    if table.scores is None or not table.rows:
        return [], ()
    tasks, level_MT = levels(table.scores)
    made = grouped(table.rows, _key)
    methods = table.scores.methods
    # If every run of a method failed, its cost is unknown.
    known = [i for i, m in enumerate(methods) if all((m, task) in made for task in tasks)]
    if not tasks or not known:
        return [], ()
    error = {methods[i]: float(np.exp(level_MT[i].mean())) for i in known}
    cost = {}
    for method in error:
        passes = [encoded(made[method, task]) or 0 for task in tasks]
        cost[method] = math.exp(fmean(map(math.log, passes))) if min(passes) > 0 else 0.0
    return spots(error, cost), tasks


# --- error against cost ---


@dataclass(frozen=True)
class Spot:
    """One method: the geometric mean of its error over the best error, and its encoded samples."""

    method: str
    error: float
    cost: float
    front: bool


def spots(error: Mapping[str, float], cost: Mapping[str, float]) -> list[Spot]:
    """Methods by cost. The front has the methods that no other beats on one axis and at least
    matches on the other.

    A method with a failed task has an infinite error and is never on the front.
    """
    found = []
    for method in error:
        e, c = error[method], cost[method]
        beaten = any(
            error[o] <= e and cost[o] <= c and (error[o] < e or cost[o] < c)
            for o in error
            if o != method
        )
        found.append(Spot(method, e, c, math.isfinite(e) and not beaten))
    return sorted(found, key=lambda spot: (spot.cost, spot.error))


# --- recipes and surroundings ---


@dataclass(frozen=True)
class RecipeEntry:
    """Cells of one method on one task: the recipe of the first, and how the others differ."""

    method: str
    task: str
    yaml: str
    differs: tuple[tuple[str, str], ...]
    commands: tuple[tuple[int, str], ...]
    directories: tuple[str, ...]


def recipes(table: ComparisonTable) -> list[RecipeEntry]:
    """One entry for every method on every task that can run."""
    groups = grouped((cell for cell in table.cells if cell.directory is not None), _key)
    commands = {row.directory: row.command for row in table.rows}
    return [
        RecipeEntry(
            method=method,
            task=task,
            yaml=_yaml(cells[0]),
            differs=tuple(differences([cell.resolved for cell in cells])),
            commands=tuple(
                (cell.seed, commands.get(str(cell.directory)) or by_hand(cell)) for cell in cells
            ),
            directories=tuple(str(cell.directory) for cell in cells),
        )
        for method, task in product(table.methods, table.tasks)
        if (cells := groups.get((method, task)))
    ]


def _yaml(cell: Cell) -> str:
    """The resolved recipe as the run wrote it or, before the run began, as it will write it."""
    written = recipe_text(cell.run)
    if written:
        return written
    stream = io.StringIO()
    YAML().dump(dict(cell.resolved), stream)
    return stream.getvalue()


def differences(resolved: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Settings that differ between recipes: the key, and its values in order."""
    flat = [dict(_flat(recipe)) for recipe in resolved]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    found = []
    for key in keys:
        values = [_shown(recipe.get(key)) for recipe in flat]
        if len(set(values)) > 1:
            found.append((key, ", ".join(values)))
    return found


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value:
        for position, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{position}" if key else str(position))
    else:
        yield key, value


def surroundings(manifests: Sequence[tuple[str, Mapping[str, Any]]]) -> Words:
    """Versions and machines of all finished cells; if they differ, every value that occurs."""
    # The hash is of one run alone; data are said per task below.
    kept = [{k: v for k, v in m.items() if k not in ("hash", "data")} for _, m in manifests]
    return _distinct(pair for manifest in kept for pair in environment(manifest))


def data_sums(manifests: Sequence[tuple[str, Mapping[str, Any]]]) -> Words:
    """The checksum of each task's data, as the finished cells recorded it."""
    return _distinct((task, str(v)) for task, m in manifests for v in m.get("data", {}).values())


def _distinct(pairs: Iterable[tuple[str, str]]) -> Words:
    found = grouped(dict.fromkeys(pairs), lambda pair: pair[0])
    return [(name, "; ".join(value for _, value in same)) for name, same in found.items()]


def design(table: ComparisonTable) -> Words:
    """The requested comparison."""
    cells = table.cells
    seeds = text.spans(cell.seed for cell in cells)
    roles = [
        m if table.roles.get(m, METHOD) == METHOD else f"{m} ({table.roles[m]})"
        for m in table.methods
    ]
    return [
        ("Methods", ", ".join(roles) or text.MISSING),
        ("Tasks", ", ".join(table.tasks) or text.MISSING),
        ("Seeds", seeds or text.MISSING),
        ("Cells", text.number(len(cells))),
    ]
