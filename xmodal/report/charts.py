"""Line and dot charts as inline SVG whose colours and fonts the page's style sheet decides.

matplotlib draws with placeholder colours that are then replaced by CSS variables, so one drawing
serves light and dark pages. Legends are the page's business: a chart only says what its keys are.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup, escape

from xmodal.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = 0
SERIES = 6
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.8), (7, 2, 1.5, 2), (3, 1.5), (9, 3))
PLACEHOLDERS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--surface)",
    **{f"#05050{i}": f"var(--series-{i})" for i in range(1, SERIES + 1)},
}
_INK, _MUTED, _LINE, _SURFACE = list(PLACEHOLDERS)[:4]
_LOG_RATIO = 30  # wider ranges than this are drawn on a logarithmic axis


@dataclass(frozen=True)
class Line:
    """One line: ``colour`` is 0 for the ink of the text, else the number of a series."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = INK
    mark: tuple[float, float] | None = None

    @property
    def dash(self) -> str:
        """The dash pattern that tells this line apart without colour."""
        return " ".join(f"{d:g}" for d in _dash(self.colour))


@dataclass(frozen=True)
class Chart:
    """A drawn chart: title, SVG, and the lines a legend must explain."""

    title: str
    svg: Markup
    keys: tuple[Line, ...] = ()
    note: str = ""


def series(position: int) -> int:
    """The colour number of the ``position``-th series; colours repeat after the sixth."""
    return position % SERIES + 1


def curves(
    title: str,
    lines: Sequence[Line],
    x_label: str = "epoch",
    borders: Sequence[float] = (),
    note: str = "",
    height: float = 2.3,
) -> Chart:
    """Lines over one axis, logarithmic where the range asks for it; a mark is a ring on a line."""
    with _drawing(height) as (figure, axes):
        for border in borders:
            axes.axvline(border, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        for line in lines:
            _draw(axes, line)
        _number_axes(axes, lines)
        finite = [v for line in lines for v in line.y if math.isfinite(v)]
        if finite and min(finite) > 0 and max(finite) / min(finite) > _LOG_RATIO:
            _logarithmic(axes)
        axes.set_xlabel(x_label)
        svg = themed(figure, _describe(title, lines, x_label))
    keys = tuple(lines) if len(lines) > 1 else ()
    return Chart(title, svg, keys, note)


def dots(
    title: str, rows: Sequence[tuple[str, float, float | None, int]], x_label: str, note: str = ""
) -> Chart:
    """One row a label: a filled dot, and a hollow one where a second value is known."""
    with _drawing(0.75 + 0.34 * len(rows), grid="x") as (figure, axes):
        for position, (_, value, other, colour) in enumerate(rows):
            ink = _colour(colour)
            if other is not None:
                axes.plot([value, other], [position] * 2, color=_LINE, linewidth=1.5, zorder=1)
                ring: dict[str, Any] = {"markerfacecolor": _SURFACE, "markersize": 7}
                axes.plot([other], [position], "o", markeredgecolor=ink, zorder=2, **ring)
            axes.plot([value], [position], "o", color=ink, markersize=8, zorder=3)
        axes.set_yticks(range(len(rows)), [_short(row[0]) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.set_xlabel(x_label)
        words = "; ".join(f"{label} {number(value)}" for label, value, _, _ in rows)
        svg = themed(figure, f"{title}: {words}")
    return Chart(title, svg, note=note)


class _drawing:
    """A figure with bare axes, drawn under settings that end with it."""

    def __init__(self, height: float, width: float = 4.3, grid: Literal["x", "y"] = "y") -> None:
        self.size, self.grid = (width, height), grid

    def __enter__(self) -> tuple[Figure, Axes]:
        import matplotlib
        from matplotlib.figure import Figure

        # Text stays text (small, searchable, in the page's font); "$" in a name is not mathematics.
        settings = {"svg.fonttype": "none", "svg.hashsalt": "xmodal", "text.parse_math": False}
        self.settings = matplotlib.rc_context({**settings, "font.size": 11})
        self.settings.__enter__()
        figure = Figure(figsize=self.size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_MUTED)
        axes.tick_params(color=_MUTED, labelcolor=_MUTED, length=0, pad=5)
        axes.tick_params(which="minor", length=0, labelsize=0)
        axes.xaxis.label.set_color(_MUTED)
        axes.grid(axis=self.grid, color=_LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        return figure, axes

    def __exit__(self, *error: object) -> None:
        self.settings.__exit__(None, None, None)


def _draw(axes: Axes, line: Line) -> None:
    ink = _colour(line.colour)
    dash = _dash(line.colour)
    few: dict[str, Any] = {"marker": "o", "markersize": 4} if len(line.x) == 1 else {}
    style = (0, dash) if dash else "solid"
    axes.plot(line.x, line.y, color=ink, linewidth=1.9, linestyle=style, label=line.label, **few)
    if line.mark is not None:
        ring: dict[str, Any] = {"markerfacecolor": _SURFACE, "markeredgewidth": 2}
        axes.plot(*[[value] for value in line.mark], "o", color=ink, markersize=8, zorder=4, **ring)


def _dash(colour: int) -> tuple[float, ...]:
    return DASHES[(colour - 1) % SERIES] if colour else ()


def _colour(number_: int) -> str:
    return f"#05050{number_}" if number_ else _INK


def _short(label: str, limit: int = 26) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _number_axes(axes: Axes, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import MaxNLocator

    whole = all(float(v).is_integer() for line in lines for v in line.y)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole))
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    axes.yaxis.get_offset_text().set_color(_MUTED)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    # The default labels are powers in mathematical notation, which is switched off here.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _describe(title: str, lines: Sequence[Line], x_label: str) -> str:
    parts = []
    for line in lines:
        if line.y:
            ends = f"{number(line.y[0])} to {number(line.y[-1])}"
            parts.append(f"{line.label} goes from {ends} over {len(line.y)} points")
    return f"{title} by {x_label}: " + "; ".join(parts)


def themed(figure: Figure, alternative: str) -> Markup:
    """The figure as inline SVG without what only a file of its own needs."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    head = f'<svg class="chart" role="img" aria-label="{escape(alternative)}" viewBox="{box[1]}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    # Named shapes are told apart by their content; two charts may name different shapes alike.
    mark = f"{hash_of(svg)}-"
    svg = re.sub(r'((?: id="| href="#|url\(#))(?=[mp])', lambda m: m[1] + mark, svg)
    for placeholder, variable in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, variable)
    return Markup(re.sub(r"\s*\n\s*", " ", svg))


def hash_of(content: str) -> str:
    """A short name for ``content`` that is the same every time."""
    return "c" + hashlib.sha256(content.encode()).hexdigest()[:8]
