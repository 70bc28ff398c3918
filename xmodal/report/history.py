"""Learning curves of one run, out of ``metrics.jsonl``: one chart a quantity, one line a part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from xmodal.report.charts import Chart, Line, curves, series
from xmodal.report.text import MISSING, number

LOSS, RATE, NORM, REPLACED = "loss", "lr", "gradient_norm", "k"
_PART = re.compile(r"view(\d+)/(.+)")
_MAX_OTHERS = 4

Lines = Sequence[Mapping[str, Any]]


def charts(metrics: Lines, result: Mapping[str, Any]) -> list[Chart]:
    """Loss and its parts, validation metric, k, learning rate, gradient norm, and what else is.

    A single epoch makes no curve, so it gives no chart.
    """
    if len(metrics) < 2:
        return []
    borders = stage_borders(metrics)
    names = sorted({name for line in metrics for name in line["train"]})
    parts = [name for name in names if _PART.fullmatch(name)]
    drawn = [_losses(metrics, parts, borders), _validation(metrics, result, borders)]
    titles = {REPLACED: "Tokens replaced, k", RATE: "Learning rate", NORM: "Gradient norm"}
    others = [n for n in names if n not in {LOSS, *titles, *parts}][:_MAX_OTHERS]
    for name in [*titles, *others]:
        line = of_train(metrics, name)
        if line is not None:
            drawn.append(curves(titles.get(name, name), [line], borders=borders))
    return [chart for chart in drawn if chart is not None]


def of_train(metrics: Lines, name: str, label: str = "", colour: int = 1) -> Line | None:
    """A train mean over epochs counted through all stages; None where it was never logged."""
    points = [(i + 1, float(m["train"][name])) for i, m in enumerate(metrics) if name in m["train"]]
    if not points:
        return None
    return Line(label or name, [x for x, _ in points], [y for _, y in points], colour)


def of_validation(metrics: Lines, label: str, colour: int = 1) -> Line:
    """The validation metric over epochs, its best epoch marked."""
    scored = [
        (i + 1, float(m["validation"]["metric"]))
        for i, m in enumerate(metrics)
        if m["validation"]["metric"] is not None
    ]
    best = [i + 1 for i, m in enumerate(metrics) if m.get("best")]
    mark = (float(best[-1]), dict(scored)[best[-1]]) if best else None
    return Line(label, [x for x, _ in scored], [y for _, y in scored], colour, mark)


def replaced(metrics: Lines) -> str:
    """How k went, as ``first → last``; a dash where nothing is replaced."""
    line = of_train(metrics, REPLACED)
    if line is None:
        return MISSING
    first, last = (f"{round(k, 1):g}" for k in (line.y[0], line.y[-1]))
    return first if first == last else f"{first} → {last}"


def stage_borders(metrics: Lines) -> list[float]:
    """Where a new stage begins, between two epochs."""
    pairs = enumerate(pairwise(metrics))
    return [i + 1.5 for i, (before, after) in pairs if before["stage"] != after["stage"]]


def table(metrics: Lines) -> tuple[list[str], list[list[str]]]:
    """The same numbers as text: column names and one row an epoch."""
    names = sorted({name for line in metrics for name in line["train"]})
    head = ["epoch", "validation metric", "validation loss", "seconds", *names]
    rows = []
    for position, line in enumerate(metrics):
        scores = line["validation"]
        cells = [scores["metric"], scores["loss"], line["seconds"]]
        cells += [line["train"].get(name) for name in names]
        best = " (best so far)" if line.get("best") else ""
        rows.append([f"{position + 1}{best}", *(number(cell) for cell in cells)])
    return head, rows


def _losses(metrics: Lines, parts: Sequence[str], borders: Sequence[float]) -> Chart | None:
    total = of_train(metrics, LOSS, "total", colour=0)
    lines = [] if total is None else [total]
    for position, name in enumerate(parts):
        match = _PART.fullmatch(name)
        assert match is not None
        line = of_train(metrics, name, f"view {match[1]}, {match[2]} head", series(position + 1))
        assert line is not None
        lines.append(line)
    if not lines:
        return None
    note = "Parts are shown before weighting, so they need not add up to the total."
    return curves("Training loss", lines, borders=borders, note=note if len(lines) > 1 else "")


def _validation(metrics: Lines, result: Mapping[str, Any], borders: Sequence[float]) -> Chart:
    name = result.get("metric", "metric")
    split = "Test" if result.get("selected_on") == "test" else "Validation"
    line = of_validation(metrics, f"{split} {name}", series(0))
    note = ""
    if line.mark is not None:
        note = f"Ring: the best epoch, {int(line.mark[0])}, at {number(line.mark[1])}."
    better = f"{str(result['better']).capitalize()} is better. " if "better" in result else ""
    return curves(f"{split} {name}", [line], borders=borders, note=better + note)
