"""From finished cells to a table with verdicts: results, what counts, under which conditions.

The table is the one thing that the terminal, CSV, LaTeX, JSON and the HTML page are made from.
Verdicts are asked for pairs of contenders, and for each contender against each rival. Controls and
trivial answers are in the table because they raise doubts, or settle them; asking for verdicts
on them too, or on two rivals, would blunt every other verdict.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import Any, TypeVar

import numpy as np

from xmodal.comparison.criteria import EFFECT
from xmodal.comparison.error_table import ErrorTable
from xmodal.comparison.fairness import Conditions
from xmodal.comparison.grid import CONTROL, METHOD, RIVAL, ROLES, Cell, Request
from xmodal.comparison.outlook import asked_pairs
from xmodal.comparison.published import PublishedNumber
from xmodal.comparison.queue import DONE, FAILED, State
from xmodal.comparison.statistics import CellSummary, summary
from xmodal.comparison.verdicts import Comparison, weigh
from xmodal.errors import DataError, UsageError
from xmodal.recipe.cheap import TRIVIAL
from xmodal.recipe.lookup import from_anywhere
from xmodal.runs import Run
from xmodal.text import plural, shortlist

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class CellResult:
    """The result of one cell. ``test`` and ``validation`` are the task's metric.

    ``smallest`` is the least error above 0 that the test split can show, None if there is none;
    ``encoded_samples`` is None without an encoder. ``learning_rate`` is that of the last stage that
    has one, ``family`` the kind of the task's data as the recipe or else the task says.
    ``machine``: the GPU, or else the processor, that it took.
    """

    method: str
    task: str
    seed: int
    metric: str
    better: str
    test: float
    validation: float
    validation_loss: float
    protocol: str
    selected_on: str
    encoded_samples: int | None
    seconds: float
    memory_bytes: int
    trainable: int
    scale: str
    family: str
    fraction: float
    labelled: float
    smallest: float | None
    learning_rate: float | None
    directory: str
    command: str
    machine: str = ""

    @property
    def on_test(self) -> bool:
        """Whether the test split chose the best epoch."""
        return self.selected_on.startswith("test")


def encoded(rows: Iterable[CellResult]) -> int | None:
    """The mean number of samples through the encoder; None if there is no encoder."""
    known = [row.encoded_samples for row in rows if row.encoded_samples is not None]
    return round(mean(known)) if known else None


def rows(
    cells: Iterable[Cell], states: Iterable[State]
) -> tuple[list[CellResult], tuple[State, ...]]:
    """One row for every cell that is done, and how each cell stands.

    A cell whose files are damaged has failed: it must not cost the others their table.
    """
    found, standing = [], []
    for cell, state in zip(cells, states, strict=True):
        if state.word == DONE:
            try:
                found.append(_row(cell))
            except DataError as error:
                state = State(FAILED, state.epoch, state.epochs, detail=str(error))
        standing.append(state)
    return found, tuple(standing)


def _row(cell: Cell) -> CellResult:
    run = cell.run
    result = run.read("result.json")
    if not result:
        raise DataError(
            f"{run.path / 'result.json'} is gone; without {run.path} the cell runs again"
        )
    manifest = run.read("manifest.json")
    run.metrics()  # the report reads these, and nothing checks them again
    return CellResult(
        method=cell.method,
        task=cell.task,
        seed=cell.seed,
        metric=result["metric"],
        better=result["better"],
        test=_number(result["test"]["metric"]),
        validation=_number(result["validation"]["metric"]),
        validation_loss=_number(result["validation"].get("loss")),
        protocol=result["protocol"],
        selected_on=result["selected_on"],
        encoded_samples=result["encoded_samples"],
        seconds=float(result["seconds"]["training"]),
        memory_bytes=int(result["memory_bytes"]),
        trainable=int(result["parameters"]["trainable"]),
        scale=cell.scale or "",
        family=str(cell.resolved.get("family") or result.get("family") or ""),
        fraction=float(cell.resolved["fraction"]),
        labelled=float(cell.resolved["labelled"]),
        smallest=result["test"].get("smallest"),
        learning_rate=cell.learning_rate,
        directory=str(cell.directory),
        command=by_hand(cell),
        machine=str(manifest.get("gpu") or manifest.get("processor") or ""),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def by_hand(cell: Cell) -> str:
    """What to type to get this cell alone."""
    scale = ["--scale", cell.scale] if cell.scale else []
    files = [word for file in cell.plugin_files for word in ("--plugin", os.path.abspath(file))]
    recipes = map(from_anywhere, cell.references)
    return shlex.join(["xmodal", "run", *recipes, *scale, *files, *cell.overrides])


@dataclass(frozen=True)
class ComparisonTable:
    """A comparison.

    ``command`` repeats it, ``name`` is that of the folder of its report. ``methods`` and ``tasks``
    are labels in the order asked for, methods grouped by role; ``roles`` says what each is
    (``method``, ``rival``, ``control`` or ``trivial``). ``states`` belong to ``cells``, one each;
    ``rows`` are the cells that are done. ``left_out`` says per task why it is not among the
    ``scores`` (its metric has no ratios, for example). Both ``scores`` and ``comparison`` are None
    where nothing is done that could be weighed. ``published``: what others report of these tasks,
    apart and never weighed. ``notes``: lines for people about what was not looked at.
    """

    command: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    roles: Mapping[str, str]
    cells: tuple[Cell, ...]
    states: tuple[State, ...]
    rows: tuple[CellResult, ...]
    scores: ErrorTable | None = None
    comparison: Comparison | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    published: tuple[PublishedNumber, ...] = ()
    name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def standing(self) -> list[tuple[Cell, State]]:
        """Every cell with how it stands."""
        return list(zip(self.cells, self.states, strict=True))

    def summary(self, method: str, task: str) -> CellSummary:
        """The scores of the runs that are done; one that is not finite, or no run, has failed."""
        key = method, task
        scores = [row.test for row in self.rows if (row.method, row.task) == key]
        failed = [
            math.inf
            for cell, state in self.standing
            if (cell.method, cell.task) == key and state.word == FAILED
        ]
        errors_S = np.array([*scores, *failed], dtype=float)
        return summary(np.where(np.isfinite(errors_S), errors_S, math.inf))

    def strongest(self, task: str) -> str | None:
        """The trivial answer with the best mean on validation; None if none is done."""
        return _strongest(self.rows, self.roles).get(task)

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
            "cells": [_cell_as_dict(*pair) for pair in self.standing],
            "rows": [plain(asdict(row)) for row in self.rows],
            "left_out": dict(self.left_out),
            "effect": EFFECT,
            "notes": list(self.notes),
            "verdicts": None if self.comparison is None else plain(asdict(self.comparison)),
            "published": [asdict(number) for number in self.published],
        }


def _cell_as_dict(cell: Cell, state: State) -> dict[str, Any]:
    return {
        "method": cell.method,
        "task": cell.task,
        "seed": cell.seed,
        "state": state.word,
        "detail": state.detail,
        "directory": None if cell.directory is None else str(cell.directory),
    }


def grouped(items: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    """The items under each key, both in the order in which they come."""
    found: dict[K, list[V]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def plain(value: Any) -> Any:
    """A nested value as JSON can hold it; infinities become text, NaN becomes None."""
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


AS_WRITTEN = "as the recipes say"


def assemble(request: Request, cells: Sequence[Cell], states: Sequence[State]) -> ComparisonTable:
    """Everything that the cells say so far about what was asked."""
    methods = tuple(dict.fromkeys(cell.method for cell in cells))
    roles = {cell.method: str(cell.resolved.get("role", METHOD)) for cell in cells if cell.resolved}
    roles = {method: roles.get(method, METHOD) for method in methods}
    methods = tuple(sorted(methods, key=lambda method: ROLES.index(roles[method])))
    found, states = rows(cells, states)
    scores, left_out = _scores(cells, states, found)
    comparison = None
    contenders, rivals = ([m for m in methods if roles[m] == role] for role in (METHOD, RIVAL))
    pairs = asked_pairs(contenders, rivals, request.against)
    if scores is not None:
        comparison = _weigh(scores, cells, found, roles, pairs)
    return ComparisonTable(
        name=request.name,
        command=request.command,
        methods=methods,
        tasks=tuple(dict.fromkeys(cell.task for cell in cells)),
        roles=roles,
        cells=tuple(cells),
        states=states,
        rows=tuple(found),
        scores=scores,
        comparison=comparison,
        left_out=left_out,
        published=request.published,
        notes=(*_older(cells), *_machines(found)),
    )


def _older(cells: Sequence[Cell]) -> tuple[str, ...]:
    """A note about finished runs of these cells that an earlier version made."""
    places = {(cell.directory.parent, cell.seed) for cell in cells if cell.directory is not None}
    number = 0
    for folder, seed in places:
        for path in folder.glob(f"seed{seed}-*/result.json"):
            with suppress(DataError):
                number += Run(path.parent).older
    if not number:
        return ()
    return (
        f"{plural(number, 'finished run')} of an earlier version of xmodal left out: results of "
        "the same recipes have changed since",
    )


def _machines(found: Sequence[CellResult]) -> tuple[str, ...]:
    """A note where times of one task were measured on different machines."""
    for rows_of_task in grouped(found, lambda row: row.task).values():
        machines = sorted({row.machine for row in rows_of_task if row.machine})
        if len(machines) > 1:
            return (f"seconds and memory come from different machines: {shortlist(machines)}",)
    return ()


def _weigh(
    scores: ErrorTable,
    cells: Sequence[Cell],
    found: Sequence[CellResult],
    roles: Mapping[str, str],
    pairs: Iterable[tuple[str, str]],
) -> Comparison:
    return weigh(
        scores,
        [*_conditions(found), *_searched(cells, found)],
        pairs=[pair for pair in pairs if set(pair) <= set(scores.methods)],
        trivial=[method for method in scores.methods if roles[method] == TRIVIAL],
        strongest=_strongest(found, roles),
        controls=[method for method in scores.methods if roles[method] == CONTROL],
        rivals=[method for method in scores.methods if roles[method] == RIVAL],
    )


def _strongest(found: Iterable[CellResult], roles: Mapping[str, str]) -> dict[str, str]:
    """By task, the trivial answer with the best mean on validation: the test split chooses nothing.

    Where the metric says nothing there, the validation loss decides.
    """
    cheap = grouped((row for row in found if roles[row.method] == TRIVIAL), lambda row: row.task)
    return {task: best for task, rows in cheap.items() if (best := best_on_validation(rows))}


def best_on_validation(rows: Sequence[CellResult]) -> str | None:
    """The method that did best on the validation samples of one task, by its mean over seeds."""
    by_loss = any(math.isnan(row.validation) for row in rows)
    score = {
        name: mean(row.validation_loss if by_loss else row.validation for row in mine)
        for name, mine in grouped(rows, lambda row: row.method).items()
    }
    if any(map(math.isnan, score.values())):
        return None
    pick = min if by_loss or rows[0].better == "lower" else max
    return pick(score, key=lambda name: score[name])


def _scores(
    cells: Sequence[Cell], states: Sequence[State], found: Sequence[CellResult]
) -> tuple[ErrorTable | None, dict[str, str]]:
    """The errors of all tasks that have ratios, and why the others have none.

    A run without a finite score failed; where no method has one, the split has nothing to measure.
    A task of which runs state different families has none.
    """
    errors: dict[tuple[str, str], dict[int, float]] = {}
    measured = {(row.task, row.seed) for row in found if math.isfinite(row.test)}
    for row in found:
        if (row.task, row.seed) in measured:
            test = row.test if math.isfinite(row.test) else math.inf
            errors.setdefault((row.method, row.task), {})[row.seed] = test
    for cell, state in zip(cells, states, strict=True):
        if state.word == FAILED:
            errors.setdefault((cell.method, cell.task), {})[cell.seed] = math.inf
    steps = {row.task: row.smallest for row in found if row.smallest}
    better = {row.task: row.better for row in found}
    unmeasured = {row.task for row in found} - {task for task, _ in measured}
    left_out = dict.fromkeys(sorted(unmeasured), "no run has a finite score on its test split")
    for task in dict.fromkeys(task for _, task in errors):
        mine = {key: value for key, value in errors.items() if key[1] == task}
        try:
            ErrorTable.of(mine, steps=_of(task, steps), better=_of(task, better))
        except UsageError as error:
            left_out[task] = str(error)
    kept = {key: value for key, value in errors.items() if key[1] not in left_out}
    if not kept:
        return None, left_out
    said = {task: {row.family for row in found if row.task == task} for task, _ in measured}
    families = {task: names.pop() for task, names in said.items() if len(names) == 1}
    return ErrorTable.of(kept, steps=steps, better=better, families=families), left_out


def _of(task: str, values: Mapping[str, V]) -> dict[str, V]:
    return {task: values[task]} if task in values else {}


def _conditions(found: Iterable[CellResult]) -> list[Conditions]:
    return [
        Conditions(
            method=row.method,
            task=row.task,
            protocol=row.protocol,
            scale=row.scale or AS_WRITTEN,
            fraction=row.fraction,
            labelled=row.labelled,
            metric=row.metric,
            selected_on_test=row.on_test,
            selected_by="loss" if row.selected_on.endswith(" loss") else "metric",
            encoded_samples=row.encoded_samples,
        )
        for row in found
    ]


def _searched(cells: Sequence[Cell], found: Sequence[CellResult]) -> list[Conditions]:
    """For variants that differ in the learning rate alone: the rate that did best on validation."""
    settings = {cell.method: cell.setting for cell in cells}

    def other_settings(row: CellResult) -> tuple[str, ...]:
        # Settings of an optimizer (xmodal.optimize) call the rate lr, wherever they stand.
        setting = settings[row.method]
        return tuple(text for text in setting if not text.partition("=")[0].endswith(".lr"))

    varied = [row for row in found if other_settings(row) != settings[row.method]]
    varied = [row for row in varied if row.learning_rate is not None]
    variants = grouped(
        varied, lambda row: (row.method.split(" [")[0], row.task, other_settings(row))
    )
    chosen = []
    for members in variants.values():
        name = best_on_validation(members)
        if name is None:
            continue  # nothing says which rate did best
        best = next(row for row in members if row.method == name)
        rates = tuple(sorted({row.learning_rate for row in members if row.learning_rate}))
        (conditions,) = _conditions([best])
        chosen.append(replace(conditions, learning_rate=best.learning_rate, searched=rates))
    return chosen
