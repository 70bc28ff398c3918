"""From finished cells to a table with verdicts: what counts, under which conditions, for whom.

Verdicts are asked for pairs of contenders. Controls and the trivial answer are in the table for the
doubts that they raise or lay to rest; a question about them would make every other answer blunter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import mean
from typing import TypeVar

from xmodal.compare.cells import Cell
from xmodal.compare.collect import Row, rows
from xmodal.compare.fairness import Conditions
from xmodal.compare.queue import FAILED, State
from xmodal.compare.request import CONTROL, METHOD, TRIVIAL, Requested
from xmodal.compare.scores import Scores
from xmodal.compare.table import Table
from xmodal.compare.verdicts import Comparison, weigh
from xmodal.errors import UsageError

AS_WRITTEN = "as the recipes say"

V = TypeVar("V")


def assemble(asked: Requested, cells: Sequence[Cell], states: Sequence[State]) -> Table:
    """Everything the cells say so far about what was asked."""
    methods = tuple(dict.fromkeys(cell.method for cell in cells))
    roles = {cell.method: str(cell.resolved.get("role", METHOD)) for cell in cells if cell.resolved}
    roles = {method: roles.get(method, METHOD) for method in methods}
    found = rows(cells)
    scores, left_out = _scores(cells, states, found)
    comparison = None
    pairs = _pairs([m for m in methods if roles[m] == METHOD], asked.against)
    if scores is not None:
        comparison = _weigh(scores, cells, found, roles, pairs)
    return Table(
        name=asked.name,
        command=asked.command,
        methods=methods,
        tasks=tuple(dict.fromkeys(cell.task for cell in cells)),
        roles=roles,
        cells=tuple(cells),
        states=tuple(states),
        rows=tuple(found),
        scores=scores,
        comparison=comparison,
        left_out=left_out,
        published=asked.published,
    )


def _pairs(contenders: Sequence[str], against: str | None) -> list[tuple[str, str]]:
    if against is None:
        return list(combinations(contenders, 2))
    return [(method, against) for method in contenders if method != against]


def _weigh(
    scores: Scores,
    cells: Sequence[Cell],
    found: Sequence[Row],
    roles: Mapping[str, str],
    pairs: Iterable[tuple[str, str]],
) -> Comparison:
    trivial = [method for method in scores.methods if roles[method] == TRIVIAL]
    return weigh(
        scores,
        [*_conditions(found), *_searched(cells, found)],
        pairs=[pair for pair in pairs if set(pair) <= set(scores.methods)],
        trivial=trivial[0] if trivial else None,
        controls=[method for method in scores.methods if roles[method] == CONTROL],
    )


def _scores(
    cells: Sequence[Cell], states: Sequence[State], found: Sequence[Row]
) -> tuple[Scores | None, dict[str, str]]:
    """The errors of all tasks that have ratios, and why the others have none.

    A run without a finite score failed; where no method has one, the split has nothing to measure.
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
            Scores.of(mine, steps=_of(task, steps), better=_of(task, better))
        except UsageError as error:
            left_out[task] = str(error)
    kept = {key: value for key, value in errors.items() if key[1] not in left_out}
    if not kept:
        return None, left_out
    return Scores.of(kept, steps=steps, better=better), left_out


def _of(task: str, values: Mapping[str, V]) -> dict[str, V]:
    return {task: values[task]} if task in values else {}


def _conditions(found: Iterable[Row]) -> list[Conditions]:
    return [
        Conditions(
            method=row.method,
            task=row.task,
            protocol=row.protocol,
            scale=row.scale or AS_WRITTEN,
            fraction=row.fraction,
            labelled=row.labelled,
            metric=row.metric,
            selected_on_test=row.selected_on == "test",
            encoded_samples=row.encoded_samples,
        )
        for row in found
    ]


def _searched(cells: Sequence[Cell], found: Sequence[Row]) -> list[Conditions]:
    """The learning rate that did best on validation, where variants differ in nothing else."""
    settings = {cell.method: cell.setting for cell in cells}
    groups: dict[tuple[str, str, tuple[str, ...]], list[Row]] = {}
    for row in found:
        setting = settings[row.method]
        rest = tuple(text for text in setting if not text.partition("=")[0].endswith(".lr"))
        if len(rest) < len(setting) and row.learning_rate is not None:
            groups.setdefault((row.method.split(" [")[0], row.task, rest), []).append(row)
    chosen = []
    for members in groups.values():
        by_method = {row.method: [r for r in members if r.method == row.method] for row in members}
        score = {name: mean(r.validation for r in mine) for name, mine in by_method.items()}
        pick = min if members[0].better == "lower" else max
        best = by_method[pick(score, key=lambda name: score[name])][0]
        rates = tuple(sorted({row.learning_rate for row in members if row.learning_rate}))
        (conditions,) = _conditions([best])
        chosen.append(replace(conditions, learning_rate=best.learning_rate, searched=rates))
    return chosen
