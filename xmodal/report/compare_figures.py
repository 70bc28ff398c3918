"""The figures of a comparison: effects of a pair, profiles, ranks, learning curves, cost.

Every method has its own ``MethodStyle``: the same colour, marker and dashes in all figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xmodal import text
from xmodal.comparison.criteria import Rule, counted
from xmodal.comparison.error_table import ErrorTable, Floats
from xmodal.comparison.ranks import Overview, Profile
from xmodal.comparison.statistics import Interval, log_ratios
from xmodal.comparison.verdicts import PairResult, TaskResult
from xmodal.report.charts import (
    BAD,
    INK,
    LINE,
    MUTED,
    SURFACE,
    Chart,
    MethodStyle,
    boxed,
    dashes,
    drawing,
    log_ticks,
    named,
    number_axes,
    plain,
)
from xmodal.report.compare_cells import Course, Spot
from xmodal.report.ticks import ratio_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Styles = Mapping[str, MethodStyle]
NAMED = 24
LOG_RATIO = 30  # ranges wider than this factor are drawn on a logarithmic axis


# --- effects of a pair ---


@dataclass(frozen=True)
class EffectRow:
    """One task, or the mean over all tasks, as text; ``effect`` tells if there is no mean."""

    name: str
    effect: str
    interval: str
    note: str


def effect_rows(pair: PairResult, rule: Rule) -> list[EffectRow]:
    """The rows of a pair's figure as text: its tasks, and the mean over them if there is one."""
    rows = [_task_row(task, pair) for task in pair.tasks]
    if pair.numbers:
        effect = pair.numbers.effect
        note = f"{counted(pair.numbers)}, level {100 * rule.level:.3g} %"
        rows.append(
            EffectRow(
                "Mean over tasks" if pair.numbers.unit == "task" else "Mean over families",
                text.percent(effect.value),
                _range(effect),
                note,
            )
        )
    return rows


def _task_row(task: TaskResult, pair: PairResult) -> EffectRow:
    if task.mean is None:
        failed = [
            f"{method} failed in {count} of {text.plural(task.n, 'run')}"
            for method, count in zip((pair.a, pair.b), task.failed, strict=True)
            if count
        ]
        return EffectRow(task.task, "no mean", "", "; ".join(failed))
    note = f"n = {task.n}"
    if task.interval:
        note += f", level {100 * task.level:.3g} %"
    if task.within_spread:
        note += ", within spread"
    if task.task not in pair.counted and pair.numbers:
        note += ", left out of the verdict"
    return EffectRow(task.task, text.percent(task.mean), _range(task.interval), note)


def _range(interval: Interval | None) -> str:
    return "" if interval is None else text.percents(interval.low, interval.high)


def effects_end(pair: PairResult, seeds_TS: Sequence[Floats], rule: Rule) -> float:
    """The end of the log-ratio axis on both sides, wide enough for everything drawn."""
    ends = [2 * rule.log_rope]
    for values in seeds_TS:
        ends += [abs(float(v)) for v in values if math.isfinite(v)]
    intervals = [task.interval for task in pair.tasks if task.interval]
    if pair.numbers:
        intervals.append(pair.numbers.effect)
    for interval in intervals:
        ends += [abs(x) for x in (interval.low, interval.high) if math.isfinite(x)]
    return 1.05 * max(ends)


def effects(pair: PairResult, scores: ErrorTable, styles: Styles, rule: Rule) -> Chart:
    """The forest plot of a pair: dots for seeds, a bar for the interval, a mark for the mean.

    x is the log-ratio of the two errors; rows count from 0. A failed run is drawn at the end of the
    axis.
    """
    d_TS = log_ratios(scores.of_method(pair.a), scores.of_method(pair.b))
    seeds_TS = [d_TS[scores.tasks.index(task.task)] for task in pair.tasks]
    rows, end = effect_rows(pair, rule), effects_end(pair, seeds_TS, rule)
    left, across, right, row, top, bottom = 1.95, 4.2, 5.2, 0.26, 0.3, 0.6
    width, height = left + across + right, top + row * len(rows) + bottom
    with drawing((width, height), font=9.5, layout=None) as figure:
        axes = boxed(figure, left, bottom, right, top)
        axes.set(xlim=(-1.06 * end, 1.06 * end), ylim=(len(rows) - 0.5, -0.5))
        named(axes.axvspan(-rule.log_rope, rule.log_rope, color=MUTED, alpha=0.2, lw=0), "rope")
        named(axes.axvline(0, color=MUTED, linewidth=0.8), "zero")
        for position, (task, seeds_S) in enumerate(zip(pair.tasks, seeds_TS, strict=True)):
            _effect(axes, position, task, seeds_S, end)
        _means(axes, pair, styles)
        if pair.numbers:
            _total(axes, len(pair.tasks), pair, styles, end)
        _ratio_axis(axes, pair, end)
        _effect_words(axes, pair, rows, across, top / row)
        for artist in axes.get_children():
            artist.set_clip_on(False)
    words = "; ".join(
        f"{one.name}: {one.effect} {one.interval}".strip() + f" ({one.note})" for one in rows
    )
    title = f"{pair.a} against {pair.b}"
    return Chart(title, figure, f"Error of {pair.a} over error of {pair.b}. {words}")


def _effect(axes: Axes, position: int, task: TaskResult, seeds_S: Floats, end: float) -> None:
    """One task: the interval, and one dot per seed, one below the other."""
    if task.mean is not None and task.interval:
        ends = task.interval.low, task.interval.high
        (bar,) = axes.plot(ends, [position] * 2, color=INK, linewidth=1.6, zorder=2)
        named(bar, "interval", position)
    seeds_S = seeds_S[~np.isnan(seeds_S)]
    apart = min(0.12, 0.46 / max(1, len(seeds_S)))
    y_S = position + apart * (np.arange(len(seeds_S)) - (len(seeds_S) - 1) / 2)
    finite_S = np.isfinite(seeds_S)
    for kind, chosen_S, look in (
        ("seed", finite_S, {"markerfacecolor": SURFACE, "markeredgecolor": MUTED}),
        ("seed-failed", ~finite_S, {"color": BAD}),
    ):
        if chosen_S.any():
            x_S = np.clip(seeds_S[chosen_S], -end, end)
            style: dict[str, Any] = {"markersize": 3.6, "markeredgewidth": 0.9, "zorder": 3, **look}
            named(axes.plot(x_S, y_S[chosen_S], "o", **style)[0], kind, position)


def _means(axes: Axes, pair: PairResult, styles: Styles) -> None:
    """The marks of the means, each in the style of the method that it favours."""
    means = [(i, task.mean) for i, task in enumerate(pair.tasks) if task.mean is not None]
    for number, method in enumerate((pair.a, pair.b)):
        mine = [(mean, i) for i, mean in means if (mean <= 0) == (method == pair.a)]
        if mine:
            (marks,) = axes.plot(*zip(*mine, strict=True), **styles[method].mark(7.5, zorder=4))
            named(marks, "mark", number)


def _total(axes: Axes, position: int, pair: PairResult, styles: Styles, end: float) -> None:
    """The mean as a diamond; an end without a limit is drawn at the end of the axis."""
    assert pair.numbers is not None
    effect = pair.numbers.effect
    x = [max(effect.low, -end), effect.value, min(effect.high, end), effect.value]
    y = [position, position - 0.26, position, position + 0.26]
    colour = styles[pair.a if effect.value <= 0 else pair.b].colour
    (diamond,) = axes.fill(x, y, color=colour, linewidth=0, zorder=4)
    named(diamond, "total")
    axes.axhline(position - 0.5, color=LINE, linewidth=0.8)


def _ratio_axis(axes: Axes, pair: PairResult, end: float) -> None:
    """The axis with ratios of errors, and which method each side favours."""
    ratios = ratio_ticks(end)
    axes.set_xticks([math.log(ratio) for ratio in ratios], [f"{ratio:g}×" for ratio in ratios])
    axes.tick_params(axis="x", length=3, pad=2)
    axes.set_yticks([])
    long = max(len(pair.a), len(pair.b)) > NAMED
    first, second = ("first", "second") if long else (pair.a, pair.b)
    for x, side, words in ((0, "left", f"← {first} better"), (1, "right", f"{second} better →")):
        place: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "ha": side,
        }
        axes.annotate(words, (x, 0), (0, -31), color=MUTED, **place)


def _effect_words(
    axes: Axes, pair: PairResult, rows: Sequence[EffectRow], across: float, head: float
) -> None:
    """Names to the left of the axis and numbers to the right, in columns placed in inches."""
    at = axes.get_yaxis_transform()
    effect, note = 1 + 0.15 / across, 1 + 2.5 / across
    y = -0.5 - head / 2
    heads = ((-1.92 / across, "Task"), (0.0, _ratio(pair)), (effect, "Change of error"))
    for x, words in (*heads, (note, "Seeds")):
        axes.text(x, y, words, color=MUTED, va="center", transform=at)
    for position, row in enumerate(rows):
        total = position == len(pair.tasks)
        weight = "bold" if total else "normal"
        shown = f"{row.effect} ({row.interval})" if row.interval else row.effect
        line: dict[str, Any] = {"va": "center", "transform": at}
        axes.text(-1.92 / across, position, _short(row.name), weight=weight, **line)
        axes.text(effect, position, shown, **line)
        axes.text(note, position, _short(row.note, 34), color=MUTED, **line)


def _ratio(pair: PairResult) -> str:
    long = len(pair.a) + len(pair.b) > 2 * NAMED
    return "Error of first over second" if long else f"Error of {pair.a} over {pair.b}"


def _short(label: str, limit: int = 25) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


# --- performance profiles ---


def profiles(found: Sequence[Profile], styles: Styles, small: bool = False) -> Chart:
    """Performance profiles of all methods, or of a pair (``small``), tau on a log axis from 1."""
    end = found[0].tau_max if found[0].tau_max > 1.0001 else 2.0
    size, font = ((2.75, 1.9), 9) if small else ((5.2, 3.3), 10)
    with drawing(size, font, layout=None) as figure:
        axes = boxed(figure, *((0.4, 0.5, 0.15, 0.15) if small else (0.75, 0.55, 0.2, 0.15)))
        plain(axes)
        axes.set_xscale("log")
        axes.set(xlim=(1, end), ylim=(-0.02, 1.02))
        _name_ticks(axes, log_ticks(1.0, end, 4 if small else 6))
        axes.set_yticks([0, 0.5, 1] if small else [0, 0.25, 0.5, 0.75, 1])
        axes.set_xlabel("factor τ" if small else "error at most τ times the best (log scale)")
        if not small:
            axes.set_ylabel("ρ(τ), share of tasks")
        # Draw the best method last, on top of the others.
        for profile in sorted(found, key=lambda p: p.area):
            _profile(axes, profile, styles[profile.method], end)
    words = "; ".join(
        f"{p.method} is best on {text.number(100 * p.at_one, 3)} % of tasks, "
        f"area {text.number(p.area, 3)}"
        for p in sorted(found, key=lambda p: -p.area)
    )
    return Chart("Performance profiles", figure, f"Performance profile: {words}")


def _profile(axes: Axes, profile: Profile, style: MethodStyle, end: float) -> None:
    """The step function, with marks at its start and at half of the tasks."""
    taus, shares = list(profile.taus), list(profile.shares)
    if taus[-1] < end:
        taus, shares = [*taus, end], [*shares, shares[-1]]
    at = axes.step(taus, shares, where="post", label=profile.method, clip_on=False, **style.line())
    named(at[0], "profile", style.position)
    half = next((i for i, share in enumerate(shares) if share >= 0.5), -1)
    x, y = zip(*{(taus[0], shares[0]), (taus[half], shares[half])}, strict=True)
    named(axes.plot(x, y, clip_on=False, **style.mark(7))[0], "mark", style.position)


def _name_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Exactly these values on a logarithmic x axis, in plain numbers."""
    from matplotlib.ticker import FixedFormatter, NullLocator

    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(FixedFormatter([tick_label(value) for value in values]))
    axes.xaxis.set_minor_locator(NullLocator())


def tick_label(value: float) -> str:
    """A tick's label; thousands and millions are abbreviated."""
    return text.count(round(value)) if value >= 1e4 and value == round(value) else f"{value:.6g}"


# --- average ranks ---

_RANK_AXIS, _OUT, _LEVEL = 330.0, 38.0, 20.0  # points


def ranks(overview: Overview, styles: Styles) -> Chart:
    """The critical-difference diagram: methods by average rank, 1 is best.

    Bars join methods that the tests cannot distinguish; a ruler shows the critical difference. x is
    the rank, y counts points downwards.
    """
    names, most = list(overview.ranks), float(max(len(overview.ranks), 2))
    half = math.ceil(len(names) / 2)
    sides = names[:half], names[half:]
    left, right = (_OUT + 24 + max((6.6 * len(n) for n in side), default=0.0) for side in sides)
    axis, below = 66.0, 82.0 + 9 * len(overview.cliques)
    width, height = left + _RANK_AXIS + right, below + 12 + _LEVEL * half
    unit = (most - 1) / _RANK_AXIS
    with drawing((width / 72, height / 72), font=10, layout=None) as figure:
        axes = figure.add_axes((left / width, 0, _RANK_AXIS / width, 1))
        axes.set(xlim=(1, most), ylim=(height, 0))
        axes.set_axis_off()
        _ruler(axes, overview.critical_difference, most)
        strong: dict[str, Any] = {"color": INK, "linewidth": 1, "clip_on": False}
        named(axes.plot([1, most], [axis, axis], **strong)[0], "axis")
        for rank in range(1, int(most) + 1, math.ceil(most / 12)):
            axes.plot([rank, rank], [axis - 6, axis], **strong)
            axes.text(rank, axis - 10, str(rank), color=MUTED, ha="center")
        for position, clique in enumerate(overview.cliques):
            _clique(axes, position, [overview.ranks[name] for name in clique], axis, 4 * unit)
        for position, name in enumerate(names):
            first = position < half
            depth = position if first else len(names) - 1 - position
            edge = 1 - _OUT * unit if first else most + _OUT * unit
            at = axis, below + 8 + _LEVEL * depth, edge
            _rank(axes, name, overview.ranks[name], styles[name], at, -unit if first else unit)
    places = "; ".join(f"{name} {text.number(rank, 3)}" for name, rank in overview.ranks.items())
    groups = "; ".join(text.listed(clique) for clique in overview.cliques) or "none"
    words = f"Average ranks: {places}. Not distinguished: {groups}"
    return Chart("Average ranks", figure, words)


def _ruler(axes: Axes, length: float, most: float) -> None:
    """Nemenyi's critical difference, drawn to scale but at most as long as the axis."""
    longer = length > most - 1 + 1e-9
    end = min(1 + length, most)
    look: dict[str, Any] = {"color": MUTED, "linewidth": 1.3, "clip_on": False}
    named(axes.plot([1, end], [22, 22], **look)[0], "ruler")
    for x in (1,) if longer else (1, end):
        axes.plot([x, x], [17, 27], **look)
    words = f"CD = {text.number(length, 3)}" + (", longer than the axis" if longer else "")
    axes.text(1, 12, words, color=MUTED)


def _clique(axes: Axes, position: int, at: Sequence[float], axis: float, beyond: float) -> None:
    y = axis + 13 + 9 * position
    bar: dict[str, Any] = {"linewidth": 3.2, "solid_capstyle": "round", "clip_on": False}
    ends = [min(at) - beyond, max(at) + beyond]
    named(axes.plot(ends, [y, y], color=INK, **bar)[0], "clique", position)
    dot: dict[str, Any] = {"markerfacecolor": SURFACE, "markeredgecolor": INK, "clip_on": False}
    axes.plot(at, [y] * len(at), "o", markersize=5.5, markeredgewidth=1, **dot)


def _rank(
    axes: Axes,
    name: str,
    rank: float,
    style: MethodStyle,
    at: tuple[float, float, float],
    outwards: float,
) -> None:
    """A line from the rank down and outwards to the name; ``outwards`` is one point outwards."""
    axis, y, edge = at
    look = style.line(linewidth=1.1, linestyle="solid", clip_on=False)
    (line,) = axes.plot([rank, rank, edge], [axis, y, y], **look)
    named(line, "rank", style.position)
    (mark,) = axes.plot([edge + 8 * outwards], [y], clip_on=False, **style.mark(7.5))
    named(mark, "mark", style.position)
    side, other = ("right", "left") if outwards < 0 else ("left", "right")
    axes.text(edge + 18 * outwards, y, name, ha=side, va="center_baseline")
    axes.text(edge - 2 * outwards, y - 2, f"{rank:.2f}", ha=other, fontsize=9, color=MUTED)


# --- learning curves ---


def learning_curves(
    task: str, what: str, courses: Sequence[Course], styles: Styles, before: Mapping[str, int]
) -> Chart:
    """One line per method, with its seeds as a band; a method with one score is a level line.

    ``before``: how many earlier epochs of a method were not scored.
    """
    last = max(2, *(c.epochs[-1] for c in courses))
    with drawing((3.7, 2.4), font=10, layout=None) as figure:
        axes = boxed(figure, 0.6, 0.5, 0.12, 0.15)
        plain(axes)
        for c in courses:
            _course(axes, c, styles[c.method], last)
        log = number_axes(axes, False, [v for c in courses for v in (*c.low, *c.high)])
        axes.set_xlim(1 - 0.02 * (last - 1), last + 0.02 * (last - 1))
        axes.set_xlabel("epoch (log scale of the score)" if log else "epoch")
    found = [
        f"{c.method} from {text.number(c.mean[0])} to {text.number(c.mean[-1])}" for c in courses
    ]
    notes = [f"{m}: {text.plural(n, 'earlier epoch')} not scored." for m, n in before.items()]
    level = [c.method for c in courses if len(c.epochs) == 1]
    if level:
        notes.append(f"Level line: {text.listed(level)}, scored once.")
    words = f"{task}, {what} by epoch: {'; '.join(found)}"
    return Chart(task, figure, words, note=" ".join(notes), sub=what)


def _course(axes: Axes, c: Course, style: MethodStyle, last: int) -> None:
    epochs = list(c.epochs) if len(c.epochs) > 1 else [1, last]
    mean, low, high = (v if len(v) > 1 else v * 2 for v in (c.mean, c.low, c.high))
    if c.seeds > 1:
        band = axes.fill_between(epochs, low, high, color=style.colour, alpha=0.13, linewidth=0)
        band.set_clip_on(False)
        named(band, "band", style.position)
    (line,) = axes.plot(epochs, mean, label=c.method, clip_on=False, **style.line())
    named(line, "course", style.position)
    (mark,) = axes.plot(epochs[-1:], mean[-1:], clip_on=False, **style.mark(6))
    named(mark, "mark", style.position)


# --- error against cost ---


def cost(found: Sequence[Spot], styles: Styles) -> Chart | None:
    """Error against cost with the front as a step line; None if no method has both numbers.

    Methods without encoder passes are drawn at 0, to the left of the logarithmic axis.
    """
    shown = [spot for spot in found if math.isfinite(spot.error)]
    if not shown:
        return None
    costs = [spot.cost for spot in shown if spot.cost > 0] or [1.0]
    low, high = min(costs) / 1.2, max(costs) * 1.2
    zero = low / (high / low) ** 0.2
    free = any(spot.cost == 0 for spot in shown)
    with drawing((5.2, 3.5), font=10, layout=None) as figure:
        axes = boxed(figure, 0.75, 0.55, 0.2, 0.15)
        plain(axes)
        axes.set_xscale("log")
        axes.set_xlim(zero / (low / zero) ** 0.5 if free else low, high)
        _name_ticks(axes, log_ticks(low, high))
        if free:
            _free_place(axes, zero, low, high)
        _error_axis(axes, max(spot.error for spot in shown))
        axes.set_xlabel("samples through the encoder per run (log scale)")
        front = [(spot.cost or zero, spot.error) for spot in shown if spot.front]
        if front:
            x, y = zip(*front, (high, front[-1][1]), strict=True)
            look: dict[str, Any] = {"color": MUTED, "linewidth": 1.3, "linestyle": dashes((4, 2.5))}
            named(axes.step(x, y, where="post", clip_on=False, **look)[0], "front")
        for spot in shown:
            style = styles[spot.method]
            look = {"label": spot.method, "clip_on": False, **style.mark(9)}
            named(axes.plot([spot.cost or zero], [spot.error], **look)[0], "mark", style.position)
    best = text.listed([spot.method for spot in shown if spot.front])
    return Chart("Error against cost", figure, f"Error against cost. On the front: {best}")


def _free_place(axes: Axes, zero: float, low: float, high: float) -> None:
    """A separate piece of axis for a cost of 0."""
    axes.spines["bottom"].set_bounds(low, high)
    at = axes.get_xaxis_transform()
    ends = [zero / (low / zero) ** 0.3, zero * (low / zero) ** 0.3]
    axes.plot(ends, [0, 0], color=MUTED, linewidth=0.8, transform=at, clip_on=False)
    place: dict[str, Any] = {
        "xycoords": at,
        "textcoords": "offset points",
        "ha": "center",
        "va": "top",
    }
    axes.annotate("0", (zero, 0), (0, -5), color=MUTED, **place)


def _error_axis(axes: Axes, worst: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    worst = worst if worst > 1.0001 else 1.1
    if worst > LOG_RATIO:
        axes.set_yscale("log")
        axes.set_ylim(0.9, 1.3 * worst)
        axes.set_yticks(log_ticks(1.0, 1.3 * worst, 5))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(1 - 0.06 * (worst - 1), worst + 0.08 * (worst - 1))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("error ÷ best of the task")
