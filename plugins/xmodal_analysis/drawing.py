"""Draws a figure once, as PNG, SVG and PDF for a paper, and inline for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from xmodal.report import LINE, SERIES, drawing, inline, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".png", ".svg", ".pdf")
MARKERS = ("o", "^")
CLASSES = len(SERIES) * len(MARKERS)


def picture(
    path: Path, size: tuple[float, float], words: str, draw: Callable[[Figure], None]
) -> Markup:
    """Write the figure and return it for a page; ``words`` describe it.

    The suffix of ``path`` sets the file type; without a known suffix, writes PNG, SVG and PDF.
    """
    with drawing(size, font=10) as figure:
        draw(figure)
        for kind in [path.suffix] if path.suffix in KINDS else KINDS:
            save(figure, path.with_suffix(kind))
        return inline(figure, words)


def scatter_classes(axes: Axes, x_N2: Any, classes: Sequence[int]) -> None:
    """Points with one colour and marker per class; classes beyond ``CLASSES`` are grey."""
    kept = sorted(set(classes))[:CLASSES]
    rest = [i for i, c in enumerate(classes) if c not in kept]
    if rest:
        axes.scatter(x_N2[rest, 0], x_N2[rest, 1], s=9, color=LINE, linewidths=0)
    for position, label in enumerate(kept):
        rows = [i for i, c in enumerate(classes) if c == label]
        axes.scatter(
            x_N2[rows, 0],
            x_N2[rows, 1],
            s=14,
            color=SERIES[position % len(SERIES)],
            marker=MARKERS[position // len(SERIES) % len(MARKERS)],
            linewidths=0,
            label=str(label),
        )
