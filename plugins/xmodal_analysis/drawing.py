"""Draws a figure twice with matplotlib: as a PNG file, and as SVG in the colours of a page.

A figure is a function of a ``Figure`` and the ``Inks`` to use, so both come from one description.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from xmodal.report.charts import PLACEHOLDERS, SERIES, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
REM_PER_INCH = 7.6
MARKERS = ("o", "^")


@dataclass(frozen=True)
class Inks:
    """The colours of one drawing; ``series`` are told apart also without colour by marker."""

    ink: str
    muted: str
    line: str
    surface: str
    series: tuple[str, ...]

    def of_class(self, number: int) -> tuple[str, str]:
        """Colour and marker of a class; they repeat after ``CLASSES``."""
        return self.series[number % SERIES], MARKERS[number // SERIES % len(MARKERS)]


CLASSES = SERIES * len(MARKERS)
LIGHT = Inks(
    "#1b1c1e",
    "#5c6067",
    "#e2e3e0",
    "#ffffff",
    ("#2a6fcf", "#d2571b", "#14875c", "#8a4fc4", "#b07c00", "#c8396e"),
)
_THEME = list(PLACEHOLDERS)
THEMED = Inks(_THEME[0], _THEME[1], _THEME[2], _THEME[3], tuple(_THEME[4:]))

Draw = Callable[["Figure", Inks], None]


def picture(path: Path, size: tuple[float, float], words: str, draw: Draw) -> Markup:
    """Write the PNG ``path`` and return the same figure as inline SVG; ``words`` describe it."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "xmodal", "text.parse_math": False}
    with matplotlib.rc_context({**settings, "font.size": 10}):
        figure = Figure(figsize=size, layout="constrained", facecolor=LIGHT.surface)
        draw(figure, LIGHT)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, THEMED)
        # Small figures must not grow to the width of the page.
        box = Markup('<div style="max-width: {}rem">{}</div>')
        return box.format(f"{size[0] * REM_PER_INCH:.1f}", themed(figure, words))


def bare(axes: Axes, inks: Inks, title: str = "", grid: bool = True) -> None:
    """The project's plain axes: no frame, quiet ticks."""
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(inks.muted)
    axes.tick_params(color=inks.muted, labelcolor=inks.muted, length=0, pad=4)
    axes.tick_params(which="minor", length=0, labelsize=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(inks.muted)
    if grid:
        axes.grid(axis="y", color=inks.line, linewidth=0.8)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, color=inks.ink, loc="left", fontsize=10.5)


def empty(axes: Axes, inks: Inks, title: str = "") -> None:
    """Axes without ticks, for maps whose units mean nothing."""
    bare(axes, inks, title, grid=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_color(inks.line)


def legend(axes: Axes, inks: Inks, **where: Any) -> None:
    """A legend without a frame."""
    axes.legend(frameon=False, labelcolor=inks.ink, fontsize=9, handletextpad=0.5, **where)


def scatter_classes(
    axes: Axes, inks: Inks, x_N2: Any, classes: Sequence[int], names: Sequence[str]
) -> None:
    """Points by class: one colour and marker a class, those beyond ``CLASSES`` in grey."""
    kept = sorted(set(classes))[:CLASSES]
    rest = [i for i, c in enumerate(classes) if c not in kept]
    if rest:
        axes.scatter(x_N2[rest, 0], x_N2[rest, 1], s=9, color=inks.line, linewidths=0)
    for position, label in enumerate(kept):
        rows = [i for i, c in enumerate(classes) if c == label]
        colour, marker = inks.of_class(position)
        axes.scatter(
            x_N2[rows, 0],
            x_N2[rows, 1],
            s=14,
            color=colour,
            marker=marker,
            linewidths=0,
            label=names[label] if label < len(names) else str(label),
        )
