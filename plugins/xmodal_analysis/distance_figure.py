"""Fig. 1b of the paper: how far the intermediate modality is from source and target, over k.

The mixed samples are made from the same samples that they are compared with. At k = 0 they equal
the target, so a distance that is 0 for equal sets ends at 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from xmodal.batch import Points
from xmodal.data import Store
from xmodal.interfaces import Distance
from xmodal.report import INK, MUTED, SERIES, number, plain
from xmodal.settings import Use
from xmodal_analysis.clouds import SPACES, Cloud, Clouds
from xmodal_analysis.distances import measure
from xmodal_analysis.drawing import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def counts(most: int, points: int) -> list[int]:
    """At most ``points`` numbers of replaced tokens from ``most`` down to 0, evenly spread."""
    if most <= 0:
        return []
    return sorted({round(k) for k in np.linspace(0, most, max(2, points))}, reverse=True)


def compute(clouds: Clouds, use: Use[Distance], points: int) -> dict[str, Any]:
    """The numbers of the figure; ``k`` is empty if the method does not count replaced tokens."""
    opened = clouds.opened
    source, target = clouds.source(), clouds.target()

    def far(first: Points, second: Points) -> float:
        session = opened.session
        return measure(use, session.facts, Store(), session.seed, first, second)

    grid = counts(clouds.most(), points)
    spaces: dict[str, dict[str, Any]] = {
        space: {
            "between": far(source.points(space), target.points(space)),
            "to_source": [],
            "to_target": [],
        }
        for space in SPACES
    }
    for k in grid:
        mixed: Cloud = clouds.mixed(k)
        for space, values in spaces.items():
            here = mixed.points(space)
            values["to_source"].append(far(source.points(space), here))
            values["to_target"].append(far(target.points(space), here))
    return {
        "distance": use.dump(),
        "samples": {"source": len(source.embeddings_ND), "target": len(target.embeddings_ND)},
        "tokens": clouds.most(),
        "k": grid,
        **spaces,
    }


def draw(numbers: dict[str, Any], path: Path) -> Markup:
    """Two panels, distances on embeddings and on features, with k falling as in training."""
    name = numbers["distance"]["use"]

    def figure(canvas: Figure) -> None:
        panels = canvas.subplots(1, 2)
        for axes, space in zip(panels, SPACES, strict=True):
            _panel(axes, numbers, space)
            axes.set_ylabel(f"{name} distance")
        if numbers["k"]:
            where: dict[str, Any] = {"loc": "outside lower center", "ncols": 3}
            canvas.legend(*panels[0].get_legend_handles_labels(), labelcolor=INK, **where)

    return picture(path, (8.6, 3.1), words(numbers), figure)


def _panel(axes: Axes, numbers: dict[str, Any], space: str) -> None:
    plain(axes, f"On {space}")
    values, grid = numbers[space], numbers["k"]
    if not grid:
        axes.bar(["source to target"], [values["between"]], width=0.3, color=SERIES[0])
        axes.set_xlim(-0.8, 0.8)
        return
    level: dict[str, Any] = {"color": MUTED, "linewidth": 1.2, "linestyle": (0, (2, 3))}
    axes.axhline(values["between"], label="source to target", **level)
    styles = (("to_source", "to source", 1, "o", "-"), ("to_target", "to target", 0, "s", "--"))
    for key, label, colour, marker, line in styles:
        axes.plot(
            grid,
            values[key],
            line,
            marker=marker,
            markersize=4,
            linewidth=1.8,
            color=SERIES[colour],
            label=label,
        )
    axes.set_xlim(max(grid) * 1.03, -max(grid) * 0.03)
    axes.set_ylim(bottom=min(0.0, *values["to_source"], *values["to_target"]))
    axes.set_xlabel("k, replaced tokens")


def words(numbers: dict[str, Any]) -> str:
    """The figure in one sentence."""
    parts = []
    for space in SPACES:
        values = numbers[space]
        text = f"on {space}, source and target are {number(values['between'])} apart"
        if numbers["k"]:
            first, last = numbers["k"][0], numbers["k"][-1]
            text += (
                f"; the distance to the source goes from {number(values['to_source'][0])} at "
                f"k = {first} to {number(values['to_source'][-1])} at k = {last}, the distance to "
                f"the target from {number(values['to_target'][0])} to "
                f"{number(values['to_target'][-1])}"
            )
        parts.append(text)
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."
