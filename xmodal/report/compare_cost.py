"""What methods cost, and their error against it.

Cost is counted in samples through the encoder, which no other load on the machine changes; time and
memory stand beside it as they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np
from markupsafe import Markup

from xmodal.comparison.ranks import levels
from xmodal.comparison.table import CellResult, ComparisonTable
from xmodal.report import svg, text
from xmodal.report.compare_cells import by_cell
from xmodal.report.compare_charts import SIZE, Plane, Styles, axes
from xmodal.report.text import listed

LOG_RATIO = 30
LABELLED = 6


@dataclass(frozen=True)
class Cost:
    """What runs of a method took, mean over seeds; ``share`` of the dearest is for a bar."""

    method: str
    encoded: float
    ratio: str
    share: float
    seconds: float
    memory: int
    trainable: str
    runs: int


def costs(table: ComparisonTable, tasks: Sequence[str]) -> list[Cost]:
    """Cost of a run of each method that is done on all of ``tasks``, mean over these tasks."""
    made = by_cell(table.rows)
    found: list[tuple[str, list[list[CellResult]]]] = []
    for method in table.methods:
        if tasks and all((method, task) in made for task in tasks):
            found.append((method, [made[method, task] for task in tasks]))
    encoded = {m: fmean(fmean(r.encoded_samples for r in rows) for rows in g) for m, g in found}
    cheapest = min((value for value in encoded.values() if value > 0), default=0.0)
    dearest = max(encoded.values(), default=0.0)
    return [
        Cost(
            method=method,
            encoded=encoded[method],
            ratio=f"{encoded[method] / cheapest:.2f}×" if encoded[method] else "none",
            share=encoded[method] / dearest if dearest else 0.0,
            seconds=fmean(fmean(r.seconds for r in rows) for rows in groups),
            memory=max(r.memory_bytes for rows in groups for r in rows),
            trainable=_parameters([r.trainable for rows in groups for r in rows]),
            runs=sum(len(rows) for rows in groups),
        )
        for method, groups in found
    ]


def _parameters(counts: Sequence[int]) -> str:
    low, high = text.count(min(counts)), text.count(max(counts))
    return low if low == high else f"{low} to {high}"


def common(table: ComparisonTable) -> tuple[str, ...]:
    """Tasks on which every method that is done anywhere is done."""
    made = {(row.method, row.task) for row in table.rows}
    methods = {row.method for row in table.rows}
    return tuple(t for t in table.tasks if made and all((m, t) in made for m in methods))


def front(table: ComparisonTable) -> tuple[list[Spot], tuple[str, ...]]:
    """Error against cost on the tasks that all methods share; the tasks come second."""
    if table.scores is None or not table.rows:
        return [], ()
    tasks, level_MT = levels(table.scores)
    made = by_cell(table.rows)
    methods = table.scores.methods
    # A method whose every run failed has spent nothing that is known.
    known = [i for i, m in enumerate(methods) if all((m, task) in made for task in tasks)]
    if not tasks or not known:
        return [], ()
    error = {methods[i]: float(np.exp(level_MT[i].mean())) for i in known}
    cost = {}
    for method in error:
        passes = [fmean(row.encoded_samples for row in made[method, task]) for task in tasks]
        cost[method] = math.exp(fmean(map(math.log, passes))) if min(passes) > 0 else 0.0
    return spots(error, cost), tasks


# --- error against cost ------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """One method: geometric mean of its error over the best's, samples through the encoder."""

    method: str
    error: float
    cost: float
    front: bool


def spots(error: Mapping[str, float], cost: Mapping[str, float]) -> list[Spot]:
    """Methods by cost; on the front are those that no other beats in one and matches in the other.

    A method that failed somewhere has an infinite error and is never on the front.
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


def cost_chart(found: Sequence[Spot], styles: Styles) -> Markup | None:
    """Error against cost with the front as a step line; None where no method has both.

    Methods without any encoder pass stand left of the logarithmic axis, at 0.
    """
    shown = [spot for spot in found if math.isfinite(spot.error)]
    if not shown:
        return None
    plane, zero = _cost_plane(shown)

    def place(spot: Spot) -> tuple[float, float]:
        return (plane.x.at(spot.cost) if spot.cost > 0 else zero), plane.y.at(spot.error)

    drawn = plane.drawn()
    if any(spot.cost == 0 for spot in shown):
        bottom = plane.y.start
        drawn.append(svg.text(zero, bottom + 17, "0"))
        drawn.append(svg.line([(zero - 14, bottom), (zero + 14, bottom)], "axis"))
    front = [place(spot) for spot in shown if spot.front]
    steps = front[:1]
    for x, y in front[1:]:
        steps += [(x, steps[-1][1]), (x, y)]
    if front:
        steps.append((plane.x.end, steps[-1][1]))
        drawn.append(svg.line(steps, "front"))
    for spot in shown:
        style = styles[spot.method]
        inside = svg.mark(*place(spot), style.shape, 6)
        drawn.append(svg.tag("g", inside, class_=style.name))
    if len(shown) <= LABELLED:
        drawn += _labels([(spot.method, place(spot)) for spot in shown], plane, steps)
    best = listed([spot.method for spot in shown if spot.front])
    return svg.drawing(*plane.size, f"Error against cost. On the front: {best}", drawn)


def _cost_plane(shown: Sequence[Spot]) -> tuple[Plane, float]:
    """The axes, and where a cost of 0 stands."""
    size = (SIZE[0], 290)
    costs = [spot.cost for spot in shown if spot.cost > 0] or [1.0]
    errors = [spot.error for spot in shown]
    low, high = min(costs) / 1.2, max(costs) * 1.2
    worst = max(errors) if max(errors) > 1.0001 else 1.1
    log = worst > LOG_RATIO
    free = any(spot.cost == 0 for spot in shown)
    top = worst * 1.3 if log else worst + 0.08 * (worst - 1)
    bottom = 0.9 if log else 1 - 0.06 * (worst - 1)
    x, y = axes(size, (low, high, True), (bottom, top, log), 104.0 if free else 54.0)
    at = svg.log_ticks(1.0, top, 5) if log else svg.ticks(1.0, top, 5)
    label = "samples through the encoder, a run (log scale)"
    name = "error ÷ best of the task"
    return Plane(size, x, y, svg.log_ticks(low, high), at, label, name, 54.0), 74.0


def _labels(
    named: Sequence[tuple[str, tuple[float, float]]],
    plane: Plane,
    front: Sequence[tuple[float, float]],
) -> list[Markup]:
    """Names beside their marks where there is room; the legend has all of them anyway."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for _, (x, y) in named]
    for a, b in pairwise(front):
        taken.append((min(a[0], b[0]), min(a[1], b[1]) - 1, max(a[0], b[0]), max(a[1], b[1]) + 1))
    found = []
    for name, (x, y) in named:
        width = svg.width_of(name, 12)
        places = (
            (x + 10, y + 4, "start", x + 10),
            (x - 10, y + 4, "end", x - 10 - width),
            (x, y - 11, "middle", x - width / 2),
            (x, y + 20, "middle", x - width / 2),
        )
        for at_x, at_y, anchor, left in places:
            box = (left, at_y - 10, left + width, at_y + 3)
            inside = left >= plane.x.start and left + width <= plane.size[0] and at_y > 24
            if inside and at_y < plane.y.start and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(svg.text(at_x, at_y, name, anchor, "name"))
                break
    return found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
