"""Charts over methods: performance profiles and learning curves, on axes that others share.

Every method has its ``Style``: the same colour, mark and dashes in all of them. Sizes are units of
the drawing, which the page shows about as large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from xmodal.comparison.ranks import Profile
from xmodal.report import svg
from xmodal.report.svg import Axis, Style
from xmodal.report.text import number

Styles = Mapping[str, Style]
SIZE = (380, 260)
CURVES = (280, 200)
SMALL = (200, 150)
MARGIN = (46.0, 12.0, 20.0, 40.0)  # left, top, right, bottom
_LOG_RATIO = 30  # wider ranges than this are drawn on a logarithmic axis


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


def axes(
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
    x, y = axes(size, (1.0, end, True), (0.0, 1.0, False), 36.0)
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
    x, y = axes(CURVES, (1, last, False), (low - room, high + room, log), left)
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
