"""Pictures of pairs and of ranks: forest plots of paired log-ratios, critical-difference diagram.

A forest plot is a table whose middle column is drawn row by row on one axis, so that its words stay
words and the numbers beside it are its text alternative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from xmodal.comparison.error_table import ErrorTable, Floats
from xmodal.comparison.ranks import Overview
from xmodal.comparison.statistics import Interval, log_ratios
from xmodal.comparison.verdicts import PairResult, Rule, TaskResult, percent
from xmodal.report import svg
from xmodal.report.compare_charts import Styles
from xmodal.report.svg import Axis
from xmodal.report.text import listed, number, plural

WIDTH, ROW = 380, 30
MIDDLE = ROW / 2
PAD = 22.0
NAMED = 18
LISTS = (
    (0.98, 0.99, 1.0, 1.01, 1.02),
    (0.96, 0.98, 1.0, 1.02, 1.04),
    (0.9, 0.95, 1.0, 1.05, 1.1),
    (0.8, 0.9, 1.0, 1.1, 1.25),
    (0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0),
    (0.2, 0.33, 0.5, 1.0, 2.0, 3.0, 5.0),
    (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    (0.01, 0.1, 1.0, 10.0, 100.0),
)
"""Ratios of two errors that an axis may name, from the finest."""


@dataclass(frozen=True)
class ForestRow:
    """One task, or all: its picture and the same in words."""

    name: str
    picture: Markup
    effect: str
    interval: str
    note: str
    total: bool = False


@dataclass(frozen=True)
class Forest:
    """All rows of a pair and the drawn axis below them."""

    pair: PairResult
    rows: tuple[ForestRow, ...]
    axis: Markup


def forest_axis(pair: PairResult, seeds_TS: Sequence[Floats], rule: Rule) -> Axis:
    """The axis of a pair: log-ratios, 0 in the middle, wide enough for all that is drawn."""
    ends = [2 * rule.log_rope]
    for values in seeds_TS:
        ends += [abs(float(v)) for v in values if math.isfinite(v)]
    intervals = [task.interval for task in pair.tasks if task.interval]
    if pair.numbers:
        intervals.append(pair.numbers.effect)
    ends += [abs(end) for interval in intervals for end in (interval.low, interval.high)]
    end = 1.05 * max(ends)
    return Axis(-end, end, PAD, WIDTH - PAD)


def forest(pair: PairResult, scores: ErrorTable, styles: Styles, rule: Rule) -> Forest:
    """The forest plot of a pair: dots for seeds, a bar for the interval, a mark for the mean."""
    d_TS = log_ratios(scores.of_method(pair.a), scores.of_method(pair.b))
    seeds = [d_TS[scores.tasks.index(task.task)] for task in pair.tasks]
    axis = forest_axis(pair, seeds, rule)
    rows = [
        _task(task, values, pair, axis, styles, rule)
        for task, values in zip(pair.tasks, seeds, strict=True)
    ]
    if pair.numbers:
        rows.append(_total(pair, pair.numbers.effect, axis, styles, rule))
    return Forest(pair, tuple(rows), _ruler(pair, axis, rule))


def _task(
    task: TaskResult, seeds_S: Floats, pair: PairResult, axis: Axis, styles: Styles, rule: Rule
) -> ForestRow:
    drawn = _ground(axis, rule)
    dots = _dots([float(d) for d in seeds_S if not math.isnan(d)], axis)
    if task.mean is None:
        picture = _picture([*drawn, *dots], f"{task.task}: runs failed")
        words = [
            f"{method} failed in {failed} of {plural(task.n, 'run')}"
            for method, failed in zip((pair.a, pair.b), task.failed, strict=True)
            if failed
        ]
        return ForestRow(task.task, picture, "no mean", "", "; ".join(words))
    if task.interval:
        drawn.append(_bar(task.interval, axis, "interval"))
    drawn += dots
    drawn.append(_mean(task.mean, pair, axis, styles))
    note = f"n = {task.n}"
    if task.interval:
        note += f", level {100 * task.level:.3g} %"
    if task.within_spread:
        note += ", within spread"
    if task.task not in pair.counted and pair.numbers:
        note += ", left out of the verdict"
    effect, interval = percent(task.mean), _interval(task.interval)
    picture = _picture(drawn, f"{task.task}: {effect} {interval}")
    return ForestRow(task.task, picture, effect, interval, note)


def _dots(seeds: Sequence[float], axis: Axis) -> list[Markup]:
    """One dot a seed, the seeds below each other; a failed run stands at the end of the axis."""
    apart = min(3.5, 14 / len(seeds)) if seeds else 0.0
    return [
        svg.mark(
            axis.at(d),
            MIDDLE + apart * (position - (len(seeds) - 1) / 2),
            0,
            2.4,
            "seed" if math.isfinite(d) else "seed failed",
        )
        for position, d in enumerate(seeds)
    ]


def _total(pair: PairResult, effect: Interval, axis: Axis, styles: Styles, rule: Rule) -> ForestRow:
    left, middle, right = (axis.at(v) for v in (effect.low, effect.value, effect.high))
    corners = [(left, MIDDLE), (middle, MIDDLE - 7), (right, MIDDLE), (middle, MIDDLE + 7)]
    diamond = svg.line([*corners, corners[0]], "total")
    style = styles[pair.a if effect.value <= 0 else pair.b]
    drawn = [*_ground(axis, rule), svg.tag("g", diamond, class_=style.name)]
    words = percent(effect.value), _interval(effect)
    picture = _picture(drawn, f"Mean over tasks: {words[0]} {words[1]}")
    note = f"{plural(len(pair.counted), 'task')}, level {100 * rule.level:.3g} %"
    return ForestRow("Mean over tasks", picture, *words, note, total=True)


def _ground(axis: Axis, rule: Rule) -> list[Markup]:
    """The region of practical equivalence and the line of no difference."""
    left, right = axis.at(-rule.log_rope), axis.at(rule.log_rope)
    zero = axis.at(0)
    return [
        svg.rectangle(left, 0, right - left, ROW, "rope"),
        svg.line([(zero, 0), (zero, ROW)], "zero"),
    ]


def _bar(interval: Interval, axis: Axis, kind: str) -> Markup:
    return svg.line([(axis.at(interval.low), MIDDLE), (axis.at(interval.high), MIDDLE)], kind)


def _mean(mean: float, pair: PairResult, axis: Axis, styles: Styles) -> Markup:
    """The mark of the method that the mean favours."""
    style = styles[pair.a if mean <= 0 else pair.b]
    return svg.tag("g", svg.mark(axis.at(mean), MIDDLE, style.shape, 5), class_=style.name)


def _picture(drawn: Sequence[Markup], words: str) -> Markup:
    return svg.drawing(WIDTH, ROW, words, drawn, "plot row")


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def _ruler(pair: PairResult, axis: Axis, rule: Rule) -> Markup:
    """The axis in ratios of errors, and which side is whose."""
    at = ratio_ticks(axis.high)
    drawn = [svg.line([(axis.start, 0.5), (axis.end, 0.5)], "axis")]
    for ratio in at:
        x = axis.at(math.log(ratio))
        drawn.append(svg.line([(x, 0), (x, 5)], "axis"))
        drawn.append(svg.text(x, 18, f"{svg.short(ratio)}×"))
    words = f"Axis: error of {pair.a} over error of {pair.b}, {percent(-axis.high)} to "
    long = max(len(pair.a), len(pair.b)) > NAMED
    left, right = ("first", "second") if long else (pair.a, pair.b)
    drawn.append(svg.text(0, 36, f"← {left} better", "start"))
    drawn.append(svg.text(WIDTH, 36, f"{right} better →", "end"))
    return svg.drawing(WIDTH, 42, words + percent(axis.high), drawn, "plot row")


def ratio_ticks(end: float) -> tuple[float, ...]:
    """Ratios to name on an axis that reaches from log-ratio ``-end`` to ``end``."""
    for ratios in LISTS:
        shown = tuple(r for r in ratios if abs(math.log(r)) <= end)
        if len(shown) == len(ratios) and abs(math.log(ratios[-1])) < 0.45 * end:
            continue
        if len(shown) > 1:
            return shown
    return LISTS[-1] if end > 1 else (1.0,)


# --- critical-difference diagram ---------------------------------------------------------------

TEXT = 12.0
LEVEL = 20.0
AXIS = 330.0
OUT = 38.0


def rank_axis(methods: int, left: float) -> Axis:
    """Average ranks from 1, the best, to the number of methods."""
    return Axis(1.0, float(max(methods, 2)), left, left + AXIS)


def rank_chart(overview: Overview, styles: Styles) -> Markup:
    """Methods by average rank; bars join those that no test tells apart, a ruler shows the CD."""
    names = list(overview.ranks)
    half = math.ceil(len(names) / 2)
    widths = [
        max((svg.width_of(name, TEXT) for name in side), default=0.0) + OUT + 24
        for side in (names[:half], names[half:])
    ]
    axis = rank_axis(len(names), widths[0])
    top = 66.0
    below = top + 16 + 9 * len(overview.cliques)
    drawn = [*_rank_ruler(overview, axis), *_rank_scale(axis, top, len(names))]
    for position, clique in enumerate(overview.cliques):
        y = top + 13 + 9 * position
        ends = [axis.at(overview.ranks[name]) for name in clique]
        drawn.append(svg.line([(min(ends) - 4, y), (max(ends) + 4, y)], "clique"))
        drawn += [svg.mark(x, y, 0, 3.2, "member") for x in ends]
    for position, name in enumerate(names):
        left = position < half
        depth = position if left else len(names) - 1 - position
        y = below + 12 + LEVEL * depth
        edge = axis.start - OUT if left else axis.end + OUT
        drawn.append(_rank_label(name, overview, styles, axis, (top, y, edge)))
    width = axis.end + widths[1]
    height = below + 12 + LEVEL * half
    ranks = "; ".join(f"{name} {number(rank, 3)}" for name, rank in overview.ranks.items())
    groups = "; ".join(listed(clique) for clique in overview.cliques) or "none"
    words = f"Average ranks: {ranks}. Not told apart: {groups}"
    return svg.drawing(math.ceil(width), math.ceil(height), words, drawn, "plot wide")


def _rank_ruler(overview: Overview, axis: Axis) -> list[Markup]:
    """Nemenyi's critical difference as long as it is on the axis, or as long as the axis."""
    length = overview.critical_difference
    scale = (axis.end - axis.start) / (axis.high - axis.low)
    end = axis.start + min(length * scale, axis.end - axis.start)
    longer = length * scale > axis.end - axis.start + 0.5
    words = f"CD = {number(length, 3)}" + (", longer than the axis" if longer else "")
    drawn = [svg.line([(axis.start, 22), (end, 22)], "ruler")]
    drawn.append(svg.line([(axis.start, 17), (axis.start, 27)], "ruler"))
    if not longer:
        drawn.append(svg.line([(end, 17), (end, 27)], "ruler"))
    return [*drawn, svg.text(axis.start, 12, words, "start")]


def _rank_scale(axis: Axis, top: float, methods: int) -> list[Markup]:
    drawn = [svg.line([(axis.start, top), (axis.end, top)], "axis strong")]
    step = math.ceil(methods / 12)
    for rank in range(1, max(methods, 2) + 1, step):
        x = axis.at(rank)
        drawn.append(svg.line([(x, top - 6), (x, top)], "axis strong"))
        drawn.append(svg.text(x, top - 11, str(rank)))
    return drawn


def _rank_label(
    name: str, overview: Overview, styles: Styles, axis: Axis, at: tuple[float, float, float]
) -> Markup:
    """A line from the rank down and out to the name."""
    top, y, edge = at
    rank, style = overview.ranks[name], styles[name]
    left = edge < axis.start
    x = axis.at(rank)
    outwards = -1 if left else 1
    parts = [
        svg.line([(x, top), (x, y), (edge, y)], "line thin"),
        svg.mark(edge + 8 * outwards, y, style.shape, 4),
        svg.text(edge + 18 * outwards, y + 4, name, "end" if left else "start", "name"),
        svg.text(edge - 2 * outwards, y - 3, f"{rank:.2f}", "start" if left else "end", "small"),
    ]
    return svg.tag("g", Markup("").join(parts), class_=style.name)
