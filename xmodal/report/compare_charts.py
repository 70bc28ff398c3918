"""Charts over methods: performance profiles, learning curves, error against cost.

Every method has its ``Style``: the same colour, mark and dashes in all of them. Sizes are units of
the drawing, which the page shows about as large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from xmodal.compare.ranks import Profile
from xmodal.report import svg
from xmodal.report.svg import Axis, Style
from xmodal.report.text import listed, number

Styles = Mapping[str, Style]
SIZE = (380, 260)
CURVES = (280, 200)
SMALL = (200, 150)
MARGIN = (46.0, 12.0, 20.0, 40.0)  # left, top, right, bottom
_LOG_RATIO = 30  # wider ranges than this are drawn on a logarithmic axis
LABELLED = 6


@dataclass(frozen=True)
class Plane:
    """The area of a chart: its two axes, their ticks and what they are called."""

    size: tuple[int, int]
    x: Axis
    y: Axis
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_label: str
    y_label: str
    edge: float | None = None
    """Where the grid begins; default: where the axis does."""

    def drawn(self) -> list[Markup]:
        """Grid, ticks and labels."""
        bottom = max(self.y.start, self.y.end)
        edge = self.x.start if self.edge is None else self.edge
        found = []
        for value in self.y_ticks:
            y = self.y.at(value)
            found.append(svg.line([(edge, y), (self.x.end, y)], "gridline"))
            found.append(svg.text(edge - 9, y + 4, svg.short(value), "end"))
        found.append(svg.line([(self.x.start, bottom), (self.x.end, bottom)], "axis"))
        for value in self.x_ticks:
            x = self.x.at(value)
            found.append(svg.line([(x, bottom), (x, bottom + 4)], "axis"))
            found.append(svg.text(x, bottom + 17, svg.short(value)))
        middle = (self.x.start + self.x.end) / 2
        found.append(svg.text(middle, self.size[1] - 6, self.x_label))
        if self.y_label:
            found.append(svg.text(2, 11, self.y_label, "start"))
        return found


def _axes(
    size: tuple[int, int], x: tuple[float, float, bool], y: tuple[float, float, bool], left: float
) -> tuple[Axis, Axis]:
    """Both axes inside the margins; y grows upwards."""
    _, top, right, bottom = MARGIN
    across = Axis(x[0], x[1], left, size[0] - right, x[2])
    return across, Axis(y[0], y[1], size[1] - bottom, top if size[0] < SIZE[0] else top + 12, y[2])


# --- performance profiles ----------------------------------------------------------------------


def profile_steps(profile: Profile) -> list[tuple[float, float]]:
    """Corners of the step function (tau, rho) from tau = 1 to ``tau_max``."""
    corners = [(profile.taus[0], profile.shares[0])]
    for tau, share in zip(profile.taus[1:], profile.shares[1:], strict=True):
        corners += [(tau, corners[-1][1]), (tau, share)]
    return corners


def profile_plane(tau_max: float, small: bool = False) -> Plane:
    """Axes of a performance profile: tau on a logarithmic axis from 1, rho from 0 to 1."""
    size = SMALL if small else SIZE
    end = tau_max if tau_max > 1.0001 else 2.0
    x, y = _axes(size, (1.0, end, True), (0.0, 1.0, False), 36.0)
    at = svg.log_ticks(1.0, end, 4 if small else 6)
    label = "factor τ" if small else "error at most τ times the best (log scale)"
    shares = [0.0, 0.5, 1.0] if small else [0.0, 0.25, 0.5, 0.75, 1.0]
    return Plane(size, x, y, at, shares, label, "" if small else "ρ(τ), share of tasks")


def profile_chart(profiles: Sequence[Profile], styles: Styles, small: bool = False) -> Markup:
    """Performance profiles of all methods, or of a pair (``small``)."""
    plane = profile_plane(profiles[0].tau_max, small)
    found = plane.drawn()
    # The best is drawn last, over the others.
    for profile in sorted(profiles, key=lambda p: p.area):
        style = styles[profile.method]
        steps = [(plane.x.at(tau), plane.y.at(share)) for tau, share in profile_steps(profile)]
        if steps[-1][0] < plane.x.end:
            steps.append((plane.x.end, steps[-1][1]))
        half = next((at for at in steps[1:] if at[1] <= plane.y.at(0.5)), steps[-1])
        marks = [svg.mark(*at, style.shape, 4 if small else 5) for at in {steps[0], half}]
        inside = Markup("").join([svg.line(steps, "line", style.dash), *sorted(marks)])
        found.append(svg.tag("g", inside, class_=style.name))
    words = "; ".join(
        f"{p.method} is best on {number(100 * p.at_one, 3)} % of tasks, area {number(p.area, 3)}"
        for p in sorted(profiles, key=lambda p: -p.area)
    )
    return svg.drawing(*plane.size, f"Performance profile: {words}", found)


# --- learning curves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """Validation scores of one method on one task: mean, least and largest over seeds."""

    method: str
    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int


def course(method: str, runs: Sequence[Mapping[int, float]]) -> Course | None:
    """Mean and range over the runs at the epochs that all of them have; None if there are none."""
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


def curve_chart(title: str, courses: Sequence[Course], styles: Styles) -> Markup:
    """One line a method, its seeds as a band; a method with one score is a level line."""
    values = [v for c in courses for v in (*c.low, *c.high)]
    low, high = min(values), max(values)
    log = low > 0 and high / low > _LOG_RATIO
    room = 0.0 if log else 0.04 * ((high - low) or abs(high) or 1.0)
    last = max(2, *(c.epochs[-1] for c in courses))
    at = svg.log_ticks(low, high, 5) if log else svg.ticks(low - room, high + room, 4)
    left = max(MARGIN[0], *(10 + svg.width_of(svg.short(v), 12) for v in at))
    x, y = _axes(CURVES, (1, last, False), (low - room, high + room, log), left)
    epochs = [e for e in svg.ticks(1, last, 6) if float(e).is_integer()]
    epochs = epochs if epochs[:1] == [1] else [1.0, *epochs]
    plane = Plane(
        CURVES, x, y, epochs, at, "epoch (log scale of the score)" if log else "epoch", ""
    )
    bands, lines = [], []
    for c in courses:
        style = styles[c.method]
        drawn = _course(c, plane, last)
        if c.seeds > 1:
            outline = [*drawn[1], *reversed(drawn[2])]
            bands.append(svg.tag("g", svg.line(outline, "band"), class_=style.name))
        inside = svg.line(drawn[0], "line", style.dash) + svg.mark(*drawn[0][-1], style.shape, 4)
        lines.append(svg.tag("g", inside, class_=style.name))
    words = [f"{c.method} from {number(c.mean[0])} to {number(c.mean[-1])}" for c in courses]
    words[0] = f"{title} by epoch: {words[0]}"
    return svg.drawing(*CURVES, "; ".join(words), [*plane.drawn(), *bands, *lines])


def _course(c: Course, plane: Plane, last: int) -> list[list[tuple[float, float]]]:
    """Points of mean, least and largest; a single score is drawn through to the last epoch."""
    epochs = c.epochs if len(c.epochs) > 1 else (1, last)
    found = []
    for values in (c.mean, c.low, c.high):
        level = values if len(values) > 1 else values * 2
        found.append([(plane.x.at(e), plane.y.at(v)) for e, v in zip(epochs, level, strict=True)])
    return found


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
    log = worst > _LOG_RATIO
    free = any(spot.cost == 0 for spot in shown)
    top = worst * 1.3 if log else worst + 0.08 * (worst - 1)
    bottom = 0.9 if log else 1 - 0.06 * (worst - 1)
    x, y = _axes(size, (low, high, True), (bottom, top, log), 104.0 if free else 54.0)
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
