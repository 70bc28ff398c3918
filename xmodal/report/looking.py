"""What the model looks at, drawn: how much worse it predicts with a part of the input hidden.

The numbers come from ``xmodal.engine.occlusion``. Shapes: S samples, R parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmodal.report.charts import (
    INK,
    LINE,
    MUTED,
    SERIES,
    Chart,
    drawing,
    plain,
    without_ticks,
)
from xmodal.report.pictures import ERROR, GREY, Array, as_array, drawn_channels
from xmodal.report.samples import ShownInputs
from xmodal.text import number

MOST_COLUMNS, SAMPLES = 20, 3


def columns_that_matter(samples: Mapping[str, Any], facts: Mapping[str, Any]) -> list[int]:
    """The columns of a table, those that matter most first; empty if that is not known."""
    kept, width = samples.get("occlusion"), facts.get("task", {}).get("shape", [])
    if kept is None or len(width) != 1 or kept["effect"].shape[1] != width[0]:
        return []
    mean = np.nan_to_num(as_array(kept["effect"])).mean(axis=0)
    return [int(c) for c in np.argsort(-mean, kind="stable")]


def looking(
    samples: Mapping[str, Any], facts: Mapping[str, Any], inputs: ShownInputs
) -> Chart | None:
    """The figure for a task of any form; None if nothing was kept."""
    kept = samples.get("occlusion")
    if kept is None or "test" not in samples:
        return None
    effect_SR = np.nan_to_num(as_array(kept["effect"]))
    if not effect_SR.size:
        return None
    shape, said = facts["task"]["shape"], f"mean {kept['measure']}"
    place = as_array(kept["place"])
    note = (
        f"Each part in turn is replaced by its mean over training samples. Shown is the "
        f"{kept['measure']}, over {number(len(effect_SR))} test samples; below 0 the prediction is "
        "better without the part."
    )
    if len(shape) == 1:
        return _columns(effect_SR, place, inputs, said, note)
    x = inputs.restored(as_array(samples["test"]["x"]))[:SAMPLES]
    if len(shape) == 2:
        return _series(effect_SR, x[:, 0], place, said, note)
    title, drawn = drawn_channels(x, samples.get("images", {}))[0]
    grid = len(np.unique(place[:, 0])), len(np.unique(place[0]))
    return _grid(effect_SR, drawn, grid, note, title)


def _columns(effect_SR: Array, place: Array, inputs: ShownInputs, said: str, note: str) -> Chart:
    from matplotlib.ticker import MaxNLocator

    mean_R = effect_SR.mean(axis=0)
    order = np.argsort(-mean_R, kind="stable")[:MOST_COLUMNS]
    names = [_part(np.flatnonzero(place == r), inputs) for r in order]
    longest = min(28, max(map(len, names)))
    with drawing((3.6 + 0.085 * longest, 0.7 + 0.26 * len(order))) as figure:
        axes = figure.add_subplot()
        plain(axes, grid="x")
        places = range(len(order))
        axes.barh(places, mean_R[order], color=SERIES[0], height=0.62, alpha=0.8)
        for row in effect_SR[:SAMPLES]:
            axes.plot(row[order], places, "|", color=INK, markersize=8, markeredgewidth=1.1)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(places, [name if len(name) < 29 else f"{name[:27]}…" for name in names])
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(said)
    if len(order) < len(mean_R):
        note += f" The {len(order)} parts that matter most, of {len(mean_R)}."
    note += f" Strokes: the first {min(SAMPLES, len(effect_SR))} test samples."
    words = f"What the model looks at: {names[0]} matters most"
    return Chart("What the model looks at", figure, words, note=note)


def _part(columns: Array, inputs: ShownInputs) -> str:
    """The name of a part of a row: a column, or the first and last of several."""
    first, last = inputs.column(int(columns[0])), inputs.column(int(columns[-1]))
    return first if len(columns) == 1 else f"{first} … {last}"


def _series(effect_SR: Array, x_SL: Array, place: Array, said: str, note: str) -> Chart:
    """Samples with the parts that matter shaded, and the mean over all samples below."""
    count, length = min(len(x_SL), len(effect_SR)), x_SL.shape[1]
    parts = effect_SR.shape[1]
    ends = [0, *(np.flatnonzero(np.diff(place)) + 1).tolist(), length]
    step = max(1, length // 600)
    with drawing((7.2, 1.05 * count + 1.7)) as figure:
        ratio = {"height_ratios": [1] * count + [1.3]}
        rows = figure.subplots(count + 1, 1, sharex=True, gridspec_kw=ratio)
        for i, axes in enumerate(rows[:-1]):
            high = max(float(effect_SR[i].max()), 1e-12)
            for r in range(parts):
                strength = float(max(effect_SR[i, r], 0) / high)
                if strength > 0.02:
                    axes.axvspan(ends[r], ends[r + 1], color=SERIES[1], alpha=0.55 * strength, lw=0)
            axes.plot(np.arange(length)[::step], x_SL[i, ::step], color=INK, linewidth=0.9)
            plain(axes, grid=None)
            axes.set_yticks([])
            axes.tick_params(labelbottom=False)
            axes.spines["bottom"].set_color(LINE)
            axes.set_ylabel(str(i + 1), rotation=0, labelpad=10)
        axes = rows[-1]
        plain(axes)
        mean_R = effect_SR.mean(axis=0)
        axes.stairs(mean_R, ends, color=SERIES[0], linewidth=1.8, baseline=None)
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.set(xlabel="position", xlim=(0, length))
        axes.set_ylabel("mean")
    note += (
        f" Shaded: what matters for the first {count} test samples, each by its own largest value. "
        f"Below: the {said}."
    )
    most = int(mean_R.argmax())
    words = f"What the model looks at: positions {int(ends[most])} to {int(ends[most + 1])} most"
    return Chart("What the model looks at", figure, words, note=note)


def _grid(
    effect_SR: Array,
    x_SHW: Array,
    grid: Sequence[int],
    note: str,
    title: str,
) -> Chart:
    """Samples, what matters in each, and the mean over all samples."""
    count = min(len(x_SHW), len(effect_SR))
    panels = [effect_SR[i].reshape(grid) for i in range(count)]
    mean = effect_SR.mean(axis=0).reshape(grid)
    step = max(1, max(x_SHW.shape[1:]) // 128)
    with drawing((2.0 * (count + 1), 4.3)) as figure:
        rows = figure.subplots(2, count + 1, squeeze=False)
        for i in range(count):
            rows[0][i].imshow(x_SHW[i, ::step, ::step], cmap=GREY)
            rows[1][i].imshow(panels[i], cmap=ERROR, vmin=0, vmax=_high(panels[i]))
            without_ticks(rows[0][i], f"{title} {i + 1}")
            without_ticks(rows[1][i], f"sample {i + 1}")
        rows[0][-1].set_axis_off()
        rows[1][-1].imshow(mean, cmap=ERROR, vmin=0, vmax=_high(mean))
        without_ticks(rows[1][-1], "mean of all")
        for axes in (*rows[0], *rows[1]):
            axes.spines["bottom"].set_visible(False)
    note += (
        f" Bright: matters most; each map by its own largest value, the mean's is "
        f"{number(float(mean.max()), 3)}."
    )
    place = np.unravel_index(int(mean.argmax()), mean.shape)
    words = (
        f"What the model looks at: most in row {place[0] + 1}, column {place[1] + 1} of the parts"
    )
    return Chart("What the model looks at", figure, words, note=note)


def _high(values: Array) -> float:
    return max(float(values.max()), 1e-12)
