"""How good the test predictions are, drawn: by class, by number, or over a field.

Curves and matrices are those of scikit-learn. Shapes: N samples, K classes or outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xmodal.report.charts import (
    COLOURS,
    INK,
    MUTED,
    SERIES,
    Chart,
    Curve,
    curves,
    dashes,
    drawing,
    plain,
    series,
    without_ticks,
)
from xmodal.report.pictures import ERROR, MAX_SIDE, Array, as_array
from xmodal.report.samples import class_name
from xmodal.text import number

ACCENT = COLOURS["accent"][0]
MOST_CLASSES, MOST_CURVES, MOST_OUTPUTS = 25, 6, 4
MOST_POINTS, MOST_DOTS, BINS = 200, 1500, 10
_SIDE = 3.6


@dataclass(frozen=True)
class Quality:
    """The figures of all test predictions, and a table by class (heads, rows)."""

    charts: list[Chart] = field(default_factory=list)
    table: tuple[list[str], list[list[str]]] | None = None
    note: str = ""


def quality(
    predicted: Mapping[str, Any],
    target: Mapping[str, Any],
    classes: Sequence[str],
    trained_K: Sequence[int] = (),
    columns: Sequence[str] = (),
) -> Quality:
    """Figures of ``predicted`` (``prediction`` and ``label`` ``[N, ...]``) for a ``target``.

    ``trained_K``: the training samples of each class. ``columns``: the names of the outputs.
    Samples whose prediction is not a number are left out.
    """
    prediction, y = as_array(predicted["prediction"]), as_array(predicted["label"])
    good_N = np.isfinite(prediction.reshape(len(prediction), -1)).all(axis=1)
    prediction, y = prediction[good_N], y[good_N]
    lost = int((~good_N).sum())
    note = f"{number(lost)} predictions are not numbers; they are left out here." if lost else ""
    if len(y) < 2:
        return Quality(note=note)
    if target["kind"] == "classification":
        found = _classes(prediction, y, classes, trained_K)
    elif target["kind"] == "multi-label":
        found = _labels(prediction, y, classes, trained_K)
    elif target["kind"] == "regression":
        found = _numbers(prediction, y, columns)
    else:
        found = _fields(prediction, y)
    return Quality(found.charts, found.table, note)


# --- classes ---


def _classes(
    prediction: Array, y: Array, classes: Sequence[str], trained_K: Sequence[int]
) -> Quality:
    from scipy.special import softmax
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    size = prediction.shape[1]
    share_NK, said_N = softmax(prediction.astype(np.float64), axis=1), prediction.argmax(axis=1)
    names = [class_name(label, classes) for label in range(size)]
    every = list(range(size))
    counts_KK = confusion_matrix(y, said_N, labels=every)
    scores = precision_recall_fscore_support(y, said_N, labels=every, zero_division=0)[:3]
    said_K = counts_KK.sum(axis=0)
    heads = ["class", "test samples", "predicted", "precision", "recall", "F1"]
    rows = [
        [
            names[k],
            number(int(counts_KK[k].sum())),
            number(int(said_K[k])),
            number(float(scores[0][k]), 3) if said_K[k] else number(None),
            number(float(scores[1][k]), 3) if counts_KK[k].any() else number(None),
            number(float(scores[2][k]), 3) if counts_KK[k].any() else number(None),
        ]
        for k in every
    ]
    # Of two classes, the second one's curves say everything.
    curved = [1] if size == 2 else _most(counts_KK.sum(axis=1))
    truth_NK = np.eye(size, dtype=int)[y]
    charts = [confusion(counts_KK, names)]
    charts += _separation(truth_NK, share_NK, names, curved)
    charts.append(calibration(share_NK.max(axis=1), said_N == y, "probability of the answer"))
    return Quality(charts, (_with(heads, trained_K), _with(rows, trained_K)))


def _with(cells: list[Any], trained_K: Sequence[int]) -> list[Any]:
    """The heads or rows with a column of the training samples, where they are known."""
    if not trained_K:
        return cells
    if isinstance(cells[0], str):
        return [cells[0], "training samples", *cells[1:]]
    return [
        [row[0], number(int(count)), *row[1:]] for row, count in zip(cells, trained_K, strict=True)
    ]


def _most(counts_K: Array) -> list[int]:
    """The classes with most test samples, in their order."""
    order = np.argsort(-counts_K, kind="stable")[:MOST_CURVES]
    return sorted(int(k) for k in order if counts_K[k])


def confusion(counts_KK: Array, names: Sequence[str]) -> Chart:
    """Which class (rows) is taken for which (columns); shades are shares of a row."""
    from matplotlib.patches import Rectangle

    shown = list(range(len(names)))
    note = "Rows are the true classes, columns the answers; shades are shares of a row."
    if len(shown) > MOST_CLASSES:
        wrong_K = counts_KK.sum(axis=0) + counts_KK.sum(axis=1) - 2 * counts_KK.diagonal()
        shown = sorted(int(k) for k in np.argsort(-wrong_K, kind="stable")[:MOST_CLASSES])
        note += f" Of {len(names)} classes, the {MOST_CLASSES} with most mistakes are shown."
    counts = counts_KK[np.ix_(shown, shown)]
    total_K = counts_KK.sum(axis=1)[shown]
    size, labels = len(shown), [_short(names[k]) for k in shown]
    longest = max(map(len, labels))
    side = min(5.6, max(2.0, 0.42 * size))
    with drawing((side + 0.5 + 0.075 * longest, side + 0.5 + 0.06 * longest), font=9) as figure:
        axes = figure.add_subplot()
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = counts[row, column] / total_K[row]
            box = Rectangle(
                (column - 0.5, row - 0.5), 1, 1, facecolor=ACCENT, alpha=0.06 + 0.64 * share
            )
            axes.add_patch(box)
            if size <= 15:
                count = number(int(counts[row, column]))
                axes.text(column, row, count, ha="center", va="center", color=INK)
        without_ticks(axes)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(size), labels, rotation=90 if longest > 3 else 0)
        axes.set_yticks(range(size), labels)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
    right = int(counts_KK.diagonal().sum())
    words = f"Confusion matrix: {right} of {int(counts_KK.sum())} on the diagonal"
    return Chart("Confusion matrix", figure, words, note=note)


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _separation(
    truth_NK: Array, share_NK: Array, names: Sequence[str], curved: Sequence[int]
) -> list[Chart]:
    """ROC and precision-recall curves of some classes, each against all others."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    roc, recall = [], []
    for position, k in enumerate(curved):
        known_N = np.isfinite(truth_NK[:, k])
        truth_N, share_N = truth_NK[known_N, k], share_NK[known_N, k]
        if len(np.unique(truth_N)) < 2:
            continue
        false_T, true_T, _ = roc_curve(truth_N, share_N)
        area = number(float(auc(false_T, true_T)), 3)
        roc.append(_thinned(f"{_short(names[k])} (area {area})", false_T, true_T, position))
        precision_T, recall_T, _ = precision_recall_curve(truth_N, share_N)
        mean = number(float(average_precision_score(truth_N, share_N)), 3)
        label = f"{_short(names[k])} (average {mean})"
        recall.append(_thinned(label, recall_T, precision_T, position))
    if not roc:
        return []
    other = "" if len(curved) == truth_NK.shape[1] or truth_NK.shape[1] == 2 else (
        f" The {len(roc)} classes with most test samples."
    )  # fmt: skip
    against = "One class against all others." if truth_NK.shape[1] > 2 else ""
    return [
        _unit("ROC curve", roc, "false alarms", "found", f"{against}{other} Dots: chance.", True),
        _unit("Precision and recall", recall, "recall", "precision", f"{against}{other}"),
    ]


def _thinned(label: str, x: Array, y: Array, position: int) -> Curve:
    """Points spread evenly along the line; of a rare class nearly all lie in one corner."""
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    chosen = np.searchsorted(length, np.linspace(0, length[-1], MOST_POINTS))
    chosen = np.unique([0, *chosen.clip(max=len(x) - 1), len(x) - 1])
    return Curve(label, x[chosen].tolist(), y[chosen].tolist(), series(position))


def _unit(
    title: str,
    lines: Sequence[Curve],
    x_label: str,
    y_label: str,
    note: str = "",
    diagonal: bool = False,
    dots: bool = False,
) -> Chart:
    """Lines between 0 and 1 on both axes; ``diagonal``: with a dotted one."""
    with drawing((_SIDE, _SIDE * 0.92)) as figure:
        axes = figure.add_subplot()
        plain(axes)
        if diagonal:
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        for line in lines:
            look: dict[str, Any] = {
                "color": SERIES[line.colour - 1],
                "linestyle": dashes(line.dash),
            }
            mark: dict[str, Any] = {"marker": "o", "markersize": 4.5} if dots else {}
            axes.plot(line.x, line.y, label=line.label, linewidth=1.8, **look, **mark)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
        ticks = [0, 0.25, 0.5, 0.75, 1]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    words = f"{title}: {y_label} against {x_label} of " + ", ".join(line.label for line in lines)
    return Chart(title, figure, words, tuple(lines), note.strip())


def calibration(share_N: Array, right_N: Array, x_label: str) -> Chart:
    """How often answers of a stated probability are right, in ten bins of equal width."""
    from sklearn.calibration import calibration_curve

    right_B, share_B = calibration_curve(right_N, share_N, n_bins=BINS)
    bin_N = np.minimum((share_N * BINS).astype(int), BINS - 1)
    gaps = [
        abs(right_N[bin_N == b].mean() - share_N[bin_N == b].mean()) * (bin_N == b).mean()
        for b in np.unique(bin_N)
    ]
    off = number(float(sum(gaps)), 3)
    line = Curve("answers", share_B.tolist(), right_B.tolist(), 1)
    note = (
        f"Dotted: probabilities that are what they say. On average they are off by {off}. Below "
        "the line the model is too sure."
    )
    made = _unit("Calibration", [line], x_label, "share that is right", note, True, True)
    return Chart(made.title, made.figure, made.words, (), note)


def _labels(
    prediction: Array, y: Array, classes: Sequence[str], trained_K: Sequence[int]
) -> Quality:
    """Several 0/1 labels a sample; unknown ones (NaN) are left out."""
    from scipy.special import expit
    from sklearn.metrics import average_precision_score

    share_NK = expit(prediction.astype(np.float64))
    names = [class_name(label, classes) for label in range(y.shape[1])]
    heads = ["label", "test samples", "predicted", "precision", "recall", "average precision"]
    rows = []
    for k, name in enumerate(names):
        known_N = np.isfinite(y[:, k])
        truth, said = y[known_N, k].astype(int), share_NK[known_N, k] > 0.5
        both = len(np.unique(truth)) == 2
        mean = average_precision_score(truth, share_NK[known_N, k]) if both else None
        right = int((said & (truth == 1)).sum())
        found = [
            number(right / count if count else None, 3) for count in (int(said.sum()), truth.sum())
        ]
        rows.append(
            [name, number(int(truth.sum())), number(int(said.sum())), *found,
             number(None if mean is None else float(mean), 3)]
        )  # fmt: skip
    known_NK = np.isfinite(y)
    charts = _separation(y, share_NK, names, _most(np.nansum(y, axis=0)))
    if known_NK.any():
        charts.append(calibration(share_NK[known_NK], y[known_NK] > 0.5, "probability of a label"))
    return Quality(charts, (_with(heads, trained_K), _with(rows, trained_K)))


# --- numbers ---


def _numbers(prediction: Array, y: Array, columns: Sequence[str]) -> Quality:
    """Predicted against true, and how far off, for each output."""
    y, prediction = y.reshape(len(y), -1), prediction.reshape(len(y), -1)
    charts = []
    for k in range(min(MOST_OUTPUTS, y.shape[1])):
        name = columns[k] if k < len(columns) else "" if y.shape[1] == 1 else f"output {k + 1}"
        known_N = np.isfinite(y[:, k])
        if known_N.sum() > 1:
            charts += _output(prediction[known_N, k], y[known_N, k], name)
    return Quality(_of_the_first(charts, MOST_OUTPUTS, y.shape[1]))


def _of_the_first(charts: Sequence[Chart], shown: int, outputs: int) -> list[Chart]:
    """Charts that say so if they show only the first of the outputs."""
    if outputs <= shown:
        return list(charts)
    more = f"Of {outputs} outputs, this page shows the first {shown if shown > 1 else 'one'}"
    return [replace(chart, note=f"{chart.note} {more}.".strip()) for chart in charts]


def _output(said_N: Array, truth_N: Array, name: str) -> list[Chart]:
    from sklearn.metrics import mean_absolute_error, r2_score

    of, label = (f" of {name}", name) if name else ("", "value")
    chosen = np.linspace(0, len(truth_N) - 1, min(MOST_DOTS, len(truth_N))).round().astype(int)
    error_N = said_N - truth_N
    share = number(float(r2_score(truth_N, said_N)), 3)
    typical = number(float(mean_absolute_error(truth_N, said_N)), 3)
    with drawing((_SIDE + 0.4, _SIDE)) as figure:
        axes = figure.add_subplot()
        plain(axes)
        ends = [float(truth_N.min()), float(truth_N.max())]
        axes.plot(ends, ends, color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        look: dict[str, Any] = {"color": SERIES[0], "alpha": 0.55, "markeredgewidth": 0}
        axes.plot(truth_N[chosen], said_N[chosen], "o", markersize=4, **look)
        axes.set(xlabel=f"true {label}", ylabel=f"predicted {label}")
        _few_ticks(axes)
    note = f"Dotted: perfect. R² is {share}; the mean absolute error {typical}."
    words = f"Predicted against true{of}: {len(truth_N)} samples, R² {share}"
    against = Chart(f"Predicted against true{of}", figure, words, note=note)
    with drawing((_SIDE + 0.4, _SIDE)) as figure:
        axes = figure.add_subplot()
        plain(axes)
        bins = min(40, max(8, math.ceil(math.sqrt(len(error_N)))))
        axes.hist(error_N, bins=bins, color=SERIES[0], alpha=0.75)
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        axes.set(xlabel=f"predicted − true {label}", ylabel="test samples")
        _few_ticks(axes)
    low, high = (number(float(v), 3) for v in np.quantile(error_N, [0.05, 0.95]))
    mean = number(float(error_N.mean()), 3)
    note = f"Nine of ten errors are between {low} and {high}; their mean is {mean}."
    words = f"Residuals{of}: nine of ten between {low} and {high}"
    return [against, Chart(f"Residuals{of}", figure, words, note=note)]


def _few_ticks(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))


# --- fields ---


def _fields(prediction: Array, y: Array) -> Quality:
    """Where on a field the error is, and on which scales; the first output."""
    said, truth = prediction[:, 0].astype(np.float64), y[:, 0].astype(np.float64)
    unit = float(np.nanmax(np.abs(truth))) or 1.0  # squares of 1e200 are infinite
    off = (said - truth) / unit
    with np.errstate(invalid="ignore"):
        known = np.isfinite(off)
        counts = np.maximum(known.sum(axis=0), 1)
        error = unit * np.sqrt(np.where(known, off, 0.0).__pow__(2).sum(axis=0) / counts)
    error = np.where(known.any(axis=0), error, np.nan)
    if not known.any():
        return Quality([])
    charts = [error_map(error) if truth.ndim == 3 else _error_line(error)]
    if known.all():
        charts.append(spectrum(truth / unit, off))
    return Quality(_of_the_first(charts, 1, y.shape[1]))


def error_map(error_HW: Array) -> Chart:
    """The root mean square error at each place, over all test samples."""
    row, column = np.unravel_index(int(np.nanargmax(error_HW)), error_HW.shape)
    high = float(error_HW[row, column]) or 1.0
    step = max(1, math.ceil(max(error_HW.shape) / MAX_SIDE))
    # What is drawn smaller shows the largest of its places.
    sides = [-(-side // step) for side in error_HW.shape]
    more = [(0, small * step - side) for small, side in zip(sides, error_HW.shape, strict=True)]
    padded = np.pad(error_HW, more, constant_values=np.nan)
    values = np.fmax.reduce(padded.reshape(sides[0], step, sides[1], step), axis=(1, 3))
    with drawing((_SIDE + 0.3, _SIDE), layout=None) as figure:
        axes = figure.add_axes((0.02, 0.03, 0.74, 0.94))
        axes.imshow(np.ma.masked_invalid(values), cmap=ERROR, vmin=0, vmax=high)
        without_ticks(axes)
        bar = figure.add_axes((0.8, 0.12, 0.05, 0.76))
        bar.imshow(np.linspace(1, 0, 128)[:, None], cmap=ERROR, aspect="auto", extent=(0, 1, 0, 1))
        bar.set_xticks([])
        ends = [0, 0.5, 1]
        bar.set_yticks(ends, [number(high * end, 2) for end in ends])
        bar.yaxis.tick_right()
    note = f"Root mean square over all test samples; the largest is {number(high, 3)}."
    words = f"Error map: the largest error, {number(high, 3)}, is in row {row + 1}"
    return Chart("Where the error is", figure, f"{words}, column {column + 1}", note=note)


def _error_line(error_L: Array) -> Chart:
    places = list(range(len(error_L)))
    line = Curve("error", places, error_L.tolist(), 1)
    note = "Root mean square over all test samples."
    return curves("Where the error is", [line], x_label="position", note=note)


def spectrum(truth: Array, off: Array) -> Chart:
    """The mean power of truths and of errors ``[N, (H,) W]`` by wavenumber."""
    lines = []
    for label, values, colour in (("truth", truth, 0), ("error", off, 1)):
        wave_B, power_B = power(values)
        good = power_B > 0
        lines.append(Curve(label, wave_B[good].tolist(), power_B[good].tolist(), colour))
    note = (
        "Mean power by the number of waves over a side. Where the error meets the truth, nothing "
        "of that size is learned."
    )
    return curves("Error by scale", lines, x_label="waves over a side", note=note, height=2.8)


def power(values: Array) -> tuple[Array, Array]:
    """Wavenumbers from 1 up, and the mean power of fields ``[N, (H,) W]`` in rings of width 1."""
    axes = tuple(range(1, values.ndim))
    sides = values.shape[1:]
    power_N = np.abs(np.fft.fftn(values, axes=axes) / math.prod(sides)) ** 2
    mesh = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in sides), indexing="ij")
    ring = np.sqrt(sum(own**2 for own in mesh)).round().astype(int)
    most = min(sides) // 2
    total = np.bincount(ring.ravel(), weights=power_N.mean(axis=0).ravel())
    wave_B = np.arange(1, most + 1)
    return wave_B, total[1 : most + 1]
