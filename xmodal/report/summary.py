"""The page of several runs on one task: the verdict first, then curves, predictions and each run.

It orders runs; it makes no claim that a difference is more than chance. That needs seeds and tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.report import facts as words
from xmodal.report import history
from xmodal.report.charts import Chart, Line, curves, dots, series
from xmodal.report.page import write_page
from xmodal.report.pictures import ERROR, INPUT, field, scale_of
from xmodal.report.samples import MapRow, Maps, Shown, as_array, inputs, relative_error, shown
from xmodal.report.text import number
from xmodal.report.tokens import Mixing, mixing
from xmodal.runs import Run

COMPARED_SAMPLES = 2


@dataclass(frozen=True)
class Entry:
    """One run as the page needs it; ``colour`` is its series everywhere on the page."""

    label: str
    colour: int
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: dict[str, Any]
    facts: dict[str, Any]
    classes: list[str]
    state: str

    @property
    def score(self) -> float | None:
        """The test metric, if there is a result."""
        return float(self.result["test"]["metric"]) if self.result else None


def write_summary(runs: Sequence[tuple[str, Run]], path: Path, title: str) -> Path:
    """Write one page about ``runs``, given as ``(method, run)``, and return its path.

    Unfinished runs are listed with their state. Raises ValueError without runs, DataError for a
    damaged file.
    """
    if not runs:
        raise ValueError("a summary needs at least one run")
    entries = [_entry(label, run, i) for i, (label, run) in enumerate(runs)]
    done = ranked(entries)
    first = done[0].result if done else {}
    context = {
        "title": title,
        "task": first.get("task") or entries[0].facts.get("task", {}).get("name", ""),
        "verdict": verdict(done),
        "caution": _caution(done),
        "optimistic": _optimistic(done),
        "split": _split(done),
        "rows": [_row(entry, done) for entry in [*done, *_others(entries, done)]],
        "metric": first.get("metric", "metric"),
        "better": first.get("better", ""),
        "dots": _dots(done),
        "curves": _curves(entries, first),
        "side_by_side": side_by_side(done),
        "setting": words.setting(entries[0].facts),
        "details": [_detail(i, entry) for i, entry in enumerate(entries)],
    }
    return write_page(path, "summary.html.jinja", context)


def _entry(label: str, run: Run, position: int) -> Entry:
    manifest = run.read("manifest.json")
    result = run.read("result.json")
    return Entry(
        label=label,
        colour=series(position),
        result=result,
        metrics=run.metrics(),
        samples=words.kept_samples(run),
        facts=manifest.get("facts", {}),
        classes=manifest.get("classes", []),
        state="done" if result else run.state,
    )


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Finished runs, best first; a score that is not a number comes last."""
    done = [entry for entry in entries if entry.result]
    sign = -1.0 if done and done[0].result["better"] == "higher" else 1.0

    def key(entry: Entry) -> tuple[bool, float]:
        score = entry.score
        bad = score is None or score != score
        return (bad, 0.0 if bad else sign * score)  # type: ignore[operator]

    return sorted(done, key=key)


def _others(entries: Sequence[Entry], done: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry not in done]


def verdict(done: Sequence[Entry]) -> str:
    """One sentence: which method scored best and how far the next one is."""
    if not done:
        return "No run has finished yet."
    best = done[0]
    metric = best.result["metric"]
    sentence = f"{best.label} has the best test {metric}: {number(best.score)}"
    if len(done) == 1 or best.score is None or done[1].score is None:
        return sentence + "."
    gap = _relative(done[1].score, best.score)
    return f"{sentence}. Next is {done[1].label} with {number(done[1].score)}{gap}."


def _relative(score: float, best: float) -> str:
    return f" ({100 * (score - best) / abs(best):+.3g}\u00a0%)".replace("-", "−") if best else ""


def _caution(done: Sequence[Entry]) -> str:
    """What the numbers do not say."""
    if len({entry.result["metric"] for entry in done}) > 1:
        return (
            "These runs were scored by different metrics and cannot be ranked against each other."
        )
    if len({entry.result["task"] for entry in done}) > 1:
        return "These runs belong to different tasks and cannot be ranked against each other."
    if len({entry.label for entry in done}) < len(done):
        return "Each row is one run; the order says nothing about statistical significance."
    return "One run a method: the order says nothing about statistical significance."


def _optimistic(done: Sequence[Entry]) -> str:
    """Which scores were chosen by looking at the test split."""
    names = [entry.label for entry in done if entry.result["selected_on"] == "test"]
    if not names:
        return ""
    return f"Epoch chosen on the test split itself, hence optimistic: {', '.join(names)}."


def _split(entries: Sequence[Entry]) -> str:
    """What to call the split that chose the epochs."""
    chosen = {entry.result["selected_on"] for entry in entries if entry.result}
    return "Selection" if "test" in chosen else "Validation"


def _row(entry: Entry, done: Sequence[Entry]) -> dict[str, Any]:
    best = done[0] if done else None
    gap = ""
    if best is not None and best is not entry and entry.score is not None and best.score:
        gap = _relative(entry.score, best.score).strip(" ()")
    return {
        "entry": entry,
        "best": entry is best,
        "gap": gap,
        "trained": words.trained(entry.result["parameters"]) if entry.result else "",
        "replaced": history.replaced(entry.metrics),
        "epochs": len(entry.metrics),
    }


def _dots(done: Sequence[Entry]) -> Chart | None:
    if not done:
        return None
    result = done[0].result
    rows = [
        (e.label, float(e.score or 0.0), e.result["validation"]["metric"], e.colour) for e in done
    ]
    axis = f"{result['metric']} ({result['better']} is better)"
    note = "Filled: the test split. Hollow: the split that selected the epoch."
    return dots("Test score", rows, axis, note)


def _curves(entries: Sequence[Entry], first: dict[str, Any]) -> list[Chart]:
    """Validation metric and training loss of all runs, each on one axis."""
    trained = [entry for entry in entries if entry.metrics]
    if not trained:
        return []
    name = f"{_split(trained)} {first.get('metric', 'metric')}"
    longest = max(len(entry.metrics) for entry in trained)
    lines = [_scores(entry, longest) for entry in trained]
    note = "Ring: the epoch that was kept."
    if any(line.mark is None for line in lines):
        note += " Level lines: methods fitted in one go."
    charts = [curves(name, lines, note=note)]
    found = [history.of_train(e.metrics, history.LOSS, e.label, e.colour) for e in trained]
    losses = [line for line in found if line is not None]
    if losses:
        note = "Methods with further loss terms have larger losses; compare shapes, not heights."
        charts.append(curves("Training loss", losses, note=note))
    return charts


def _scores(entry: Entry, epochs: int) -> Line:
    """Validation scores over epochs; a method with a single one is a level line to compare with."""
    line = history.of_validation(entry.metrics, entry.label, entry.colour)
    if len(line.x) > 1 or epochs == 1:
        return line
    return Line(entry.label, [1, epochs], [line.y[0]] * 2, entry.colour)


def side_by_side(done: Sequence[Entry]) -> list[Maps]:
    """For 2-D fields: every method's prediction and error of the same test samples, one scale."""
    fields = [e for e in done if "test" in e.samples and e.samples["test"]["y"].ndim == 4]
    if len(fields) < 2:
        return []
    tests = [{k: as_array(v) for k, v in e.samples["test"].items()} for e in fields]
    if any(not np.array_equal(t["y"], tests[0]["y"], equal_nan=True) for t in tests):
        return []
    images = fields[0].samples.get("images", {})
    labels = [entry.label for entry in fields]
    return [_compared(i, labels, tests, images) for i in range(len(tests[0]["y"]))][
        :COMPARED_SAMPLES
    ]


def _compared(
    i: int, labels: Sequence[str], tests: Sequence[dict[str, Any]], images: dict[str, int]
) -> Maps:
    truth = tests[0]["y"][i, 0]
    predictions = [test["prediction"][i, 0] for test in tests]
    errors = [np.abs(prediction - truth) for prediction in predictions]
    values, error = scale_of([truth, *predictions]), scale_of(errors, ERROR, zero=True)
    title, channel = inputs(tests[0]["x"], images)[0]
    given = scale_of([channel[i]], INPUT)
    sample = f"test sample {i + 1}"
    above = [(field(channel[i], given), f"{title} of {sample}")]
    above += [(field(truth, values), f"Truth of {sample}")]
    above += [
        (field(p, values), f"Prediction of {label} for {sample}")
        for label, p in zip(labels, predictions, strict=True)
    ]
    below = [("", ""), ("", "")]
    below += [
        (field(e, error), f"Absolute error of {label} for {sample}")
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
    return Maps(heads, rows, [(given, 1), (values, 1), (error, 1)], note + ".")


def _detail(position: int, entry: Entry) -> dict[str, Any]:
    pictures: Shown = shown(entry.samples, entry.facts, entry.classes)
    mixed: Mixing | None = mixing(entry.samples, entry.facts, prefix=f"r{position}")
    return {
        "entry": entry,
        "selection": words.selection(entry.result),
        "measured": words.measured(entry.result),
        "shown": pictures,
        "mixing": mixed,
    }
