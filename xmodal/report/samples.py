"""A model's predictions for a few test samples, ready to draw: maps, curves, cards or a table.

The form depends on the task's labels and the shape of a sample, never on the method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xmodal.data.preparation import RawForm
from xmodal.report.charts import Chart, Curve, curves, series
from xmodal.report.pictures import (
    ERROR,
    INPUT,
    Array,
    ColourScale,
    as_array,
    digits_of,
    drawn_channels,
    photo,
    scale_of,
)
from xmodal.report.pictures import field as draw_field
from xmodal.text import number, visible

MAX_BARS, MAX_FEATURES, MAX_POINTS = 5, 6, 400
COMPARED = 2


@dataclass(frozen=True)
class MapRow:
    """One sample: its name, its relative error, and ``(picture, description)`` per column."""

    name: str
    note: str
    pictures: list[tuple[str, str]]


@dataclass(frozen=True)
class FieldMaps:
    """Fields side by side. ``bars``: each scale, and how many columns share it."""

    heads: list[str]
    rows: list[MapRow]
    bars: list[tuple[ColourScale, int]]
    note: str = ""


@dataclass(frozen=True)
class ClassShare:
    """One class: its share in [0, 1], and whether it is the true class."""

    label: str
    share: float
    true: bool


@dataclass(frozen=True)
class SampleCard:
    """One sample: a picture or chart of its input, and the prediction."""

    name: str
    right: bool | None
    picture: str = ""
    chart: Chart | None = None
    bars: list[ClassShare] = field(default_factory=list)
    values: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class ShownSamples:
    """The pictures of a run; forms that do not apply are empty."""

    maps: FieldMaps | None = None
    lines: list[Chart] = field(default_factory=list)
    cards: list[SampleCard] = field(default_factory=list)
    table: tuple[list[str], list[list[str]]] | None = None
    note: str = ""

    @property
    def drawn(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.maps or self.lines or self.cards or self.table)


@dataclass(frozen=True)
class ShownInputs:
    """How inputs are shown: in their own units and under their names, where ``raw`` tells them.

    ``first``: columns in the order in which they matter, if that is known.
    """

    raw: RawForm | None = None
    first: Sequence[int] = ()

    def restored(self, x: Array) -> Array:
        """Prepared samples ``[n, C, ...]`` in the unit of the user's files, channels in front."""
        raw = self.raw
        if raw is None or raw.mean is None or raw.scale is None:
            return x
        own = np.asarray(x[:, : raw.laid[0]], dtype=np.float64)
        mean, scale = as_array(raw.mean), as_array(raw.scale)
        with np.errstate(invalid="ignore"):
            restored = np.where(np.isinf(scale), 0.0, own * np.where(np.isinf(scale), 1, scale))
        return np.concatenate([restored + mean, x[:, raw.laid[0] :]], axis=1)

    def column(self, index: int) -> str:
        """The name of a column of a table."""
        names = () if self.raw is None else self.raw.columns
        return names[index] if index < len(names) else f"feature {index + 1}"

    def cell(self, value: float, column: int) -> str:
        """A value of a column: a number, the name of a category, or a dash for a missing one."""
        if math.isnan(value):
            return number(None)
        levels = () if self.raw is None or not self.raw.levels else self.raw.levels[column]
        return levels[int(value)] if 0 <= value < len(levels) else number(float(value), 3)


def shown(
    samples: Mapping[str, Any],
    facts: Mapping[str, Any],
    classes: Sequence[str],
    which: str = "test",
    inputs: ShownInputs | None = None,
) -> ShownSamples:
    """The pictures of ``samples[which]`` for the task in ``facts``; empty without samples."""
    test, inputs = samples.get(which), inputs or ShownInputs()
    task = facts.get("task", {})
    if test is None or not len(test["x"]):
        return ShownSamples()
    x, y, prediction = (as_array(test[name]) for name in ("x", "y", "prediction"))
    index = as_array(test["index"]).tolist() if "index" in test else range(len(x))
    names = [f"Test sample {number(i + 1)}" for i in index]
    x, target, images = inputs.restored(x), task["target"], samples.get("images", {})
    if target["shape"] and y.ndim == 4:
        return ShownSamples(maps=maps(x, y, prediction, images, names))
    if target["shape"]:
        return ShownSamples(lines=_dense_lines(y, prediction, names))
    if x.ndim == 2:
        return _rows(x, y, prediction, classes, names, inputs)
    return ShownSamples(cards=_cards(x, y, prediction, classes, images, names))


def relative_error(prediction: Array, y: Array) -> float:
    """The Euclidean norm of the error, divided by that of the truth."""
    good = np.isfinite(y)
    largest = np.abs(y[good]).max(initial=0.0) or 1.0  # squares of 1e200 are infinite
    size = float(np.linalg.norm(y[good] / largest))
    return float(np.linalg.norm((prediction - y)[good] / largest)) / (size or 1.0)


def maps(
    x: Array, y: Array, prediction: Array, images: Mapping[str, int], labels: Sequence[str]
) -> FieldMaps:
    """Input, prediction, truth and absolute error of every sample; all samples share scales."""
    columns = drawn_channels(x, images)
    error = np.abs(prediction - y)
    values = scale_of([prediction[:, 0], y[:, 0]])
    errors = scale_of([error[:, 0]], ERROR, zero=True)
    scales = [scale_of([channel], INPUT) for _, channel in columns]
    rows = []
    for i, name in enumerate(labels):
        pairs = [(channel[i], s) for (_, channel), s in zip(columns, scales, strict=True)]
        pairs += [(prediction[i, 0], values), (y[i, 0], values), (error[i, 0], errors)]
        names = [*(title for title, _ in columns), "prediction", "truth", "absolute error"]
        pictures = [
            (draw_field(a, s), f"{what} of {name.lower()}")
            for (a, s), what in zip(pairs, names, strict=True)
        ]
        note = f"relative L² error {number(relative_error(prediction[i], y[i]), 3)}"
        rows.append(MapRow(name, note, pictures))
    heads = [*(title for title, _ in columns), "Prediction", "Truth", "|Error|"]
    bars = [(s, 1) for s in scales] + [(values, 2), (errors, 1)]
    note = f"Output channel 1 of {y.shape[1]} is shown." if y.shape[1] > 1 else ""
    return FieldMaps(heads, rows, bars, note)


def side_by_side(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[FieldMaps]:
    """For 2-D fields: every method's prediction and error for the same test samples, on one scale.

    ``runs`` are pairs of a label and kept samples. The result is empty for fewer than two runs, or
    if their truths differ.
    """
    fields = [(name, s) for name, s in runs if "test" in s and s["test"]["y"].ndim == 4]
    if len(fields) < 2:
        return []
    tests = [{k: as_array(v) for k, v in s["test"].items()} for _, s in fields]
    if any(not np.array_equal(t["y"], tests[0]["y"], equal_nan=True) for t in tests):
        return []
    images, labels = fields[0][1].get("images", {}), [name for name, _ in fields]
    count = min(COMPARED, len(tests[0]["y"]))
    return [_compared(i, labels, tests, images) for i in range(count)]


def _compared(
    i: int, labels: Sequence[str], tests: Sequence[dict[str, Any]], images: dict[str, int]
) -> FieldMaps:
    truth = tests[0]["y"][i, 0]
    predictions = [test["prediction"][i, 0] for test in tests]
    errors = [np.abs(prediction - truth) for prediction in predictions]
    values, error = scale_of([truth, *predictions]), scale_of(errors, ERROR, zero=True)
    title, channel = drawn_channels(tests[0]["x"], images)[0]
    given = scale_of([channel[i]], INPUT)
    sample = f"test sample {i + 1}"
    above = [(draw_field(channel[i], given), f"{title} of {sample}")]
    above += [(draw_field(truth, values), f"Truth of {sample}")]
    above += [
        (draw_field(p, values), f"Prediction of {label} for {sample}")
        for label, p in zip(labels, predictions, strict=True)
    ]
    below = [("", ""), ("", "")]
    below += [
        (draw_field(e, error), f"Absolute error of {label} for {sample}")
        for label, e in zip(labels, errors, strict=True)
    ]
    parts = [number(relative_error(p, truth), 3) for p in predictions]
    heads = [title, "Truth", *labels]
    note = "Relative L² error: " + ", ".join(
        f"{label} {part}" for label, part in zip(labels, parts, strict=True)
    )
    rows = [
        MapRow(f"Test sample {i + 1}", "prediction", above),
        MapRow("", "absolute error", below),
    ]
    return FieldMaps(heads, rows, [(given, 1), (values, 1), (error, 1)], note + ".")


def _dense_lines(y: Array, prediction: Array, names: Sequence[str]) -> list[Chart]:
    drawn = []
    for i, name in enumerate(names):
        lines = [_line("truth", y[i, 0], 0), _line("prediction", prediction[i, 0], series(1))]
        note = f"Relative L² error {number(relative_error(prediction[i], y[i]), 3)}."
        drawn.append(curves(name, lines, x_label="position", note=note))
    return drawn


def _line(label: str, values: Array, colour: int) -> Curve:
    step = max(1, len(values) // MAX_POINTS)
    points = [float(v) for v in values[::step]]
    return Curve(label, [i * step for i in range(len(points))], points, colour)


def _cards(
    x: Array,
    y: Array,
    prediction: Array,
    classes: Sequence[str],
    images: Mapping[str, int],
    names: Sequence[str],
) -> list[SampleCard]:
    cards = []
    digits = _digits(y)
    for i, name in enumerate(names):
        picture, chart = "", None
        if x.ndim == 4:
            rgb = x.shape[1] == 3 and not images
            picture = photo(x[i] if rgb else drawn_channels(x, images)[0][1][i])
        elif x.ndim == 3:
            channels = [_line(f"channel {c + 1}", x[i, c], series(c)) for c in range(len(x[i]))[:3]]
            chart = curves(f"Input of {name.lower()}", channels, x_label="position", height=1.7)
        bars, right = _bars(y[i], prediction[i], classes)
        values = [] if bars else _values(y[i], prediction[i], digits)
        cards.append(SampleCard(name, right, picture, chart, bars, values))
    return cards


def _bars(y: Array, scores: Array, classes: Sequence[str]) -> tuple[list[ClassShare], bool | None]:
    """The most likely classes and the true classes; empty for regression."""
    single = np.issubdtype(y.dtype, np.integer)
    if not single and not (y.size > 1 and np.isin(y, (0.0, 1.0)).all()):
        return [], None
    true = {int(y)} if single else {int(c) for c in np.flatnonzero(y)}
    shares = probabilities(scores, single)
    order = [int(c) for c in np.argsort(-shares, kind="stable")]
    chosen = order[:MAX_BARS]
    chosen += [c for c in sorted(true)[:MAX_BARS] if c not in chosen and c < len(shares)]
    bars = [ClassShare(class_name(c, classes), float(shares[c]), c in true) for c in chosen]
    return bars, (order[0] in true if single else None)


def probabilities(scores: Array, single: bool) -> Array:
    """Scores of one sample as shares in [0, 1]; a probability distribution is not changed."""
    scores = np.nan_to_num(np.asarray(scores, dtype=np.float64).ravel())
    if not single:
        return np.asarray(1 / (1 + np.exp(-np.clip(scores, -50, 50))))
    if (scores >= 0).all() and abs(float(scores.sum()) - 1) < 1e-3:
        return scores
    exponents = np.exp(scores - scores.max())
    return np.asarray(exponents / exponents.sum())


def class_name(label: int, classes: Sequence[str]) -> str:
    """The name of a class on one line, or its number if the task has no class names."""
    if not 0 <= label < len(classes):
        return f"class {label}"
    return visible(str(classes[label]), line_breaks=False)


def _digits(y: Array) -> list[int]:
    """For each output, the digits that tell the shown labels apart."""
    return [digits_of(column) for column in y.reshape(len(y), -1).T[:MAX_BARS]]


def _values(y: Array, prediction: Array, digits: Sequence[int]) -> list[tuple[str, str, str]]:
    pairs = zip(prediction.ravel(), y.ravel(), digits, strict=False)
    return [
        (str(i + 1), number(float(p), n), number(float(t), n)) for i, (p, t, n) in enumerate(pairs)
    ]


def _rows(
    x: Array,
    y: Array,
    prediction: Array,
    classes: Sequence[str],
    names: Sequence[str],
    inputs: ShownInputs,
) -> ShownSamples:
    """Samples of a table: a few features, the truth, the prediction."""
    columns = list(inputs.first or range(x.shape[1]))[:MAX_FEATURES]
    head = ["sample", "truth", "prediction", *(inputs.column(c) for c in columns)]
    rows = []
    digits = _digits(y)[0]
    for i, name in enumerate(names):
        bars, right = _bars(y[i], prediction[i], classes)
        truth = number(float(y[i].ravel()[0]), digits)
        said = number(float(prediction[i].ravel()[0]), digits)
        if bars:
            truth = ", ".join(bar.label for bar in bars if bar.true) or "no class"
            mark = {True: " ✓", False: " ✗", None: ""}[right]
            said = f"{bars[0].label} ({bars[0].share:.0%}){mark}"
        cells = [inputs.cell(float(x[i, c]), c) for c in columns]
        rows.append([name.removeprefix("Test sample "), truth, said, *cells])
    hidden = x.shape[1] - len(columns)
    note = f"{hidden} more features are not shown." if hidden else ""
    if hidden and inputs.first:
        note = f"The columns that matter most; {note}"
    return ShownSamples(table=(head, rows), note=note)
