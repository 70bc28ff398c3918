"""The page of one run: its numbers, learning curves, predictions and mixed samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xmodal import text
from xmodal.data.preparation import RawForm
from xmodal.engine import checkpoint
from xmodal.errors import DataError, file_errors
from xmodal.files import write_atomically
from xmodal.report.charts import Chart, Curve, curves, save, series
from xmodal.report.looking import columns_that_matter, looking
from xmodal.report.markdown import run_markdown
from xmodal.report.page import write_page
from xmodal.report.pictures import mixing
from xmodal.report.quality import Quality, quality
from xmodal.report.samples import ShownInputs, ShownSamples, shown
from xmodal.runs import PREDICTIONS, Run

FILE, MARKDOWN, FIGURES = "report.html", "report.md", "figures"
LOSS, RATE, NORM, REPLACED = "loss", "lr", "gradient_norm", "k"
_PART = re.compile(r"view(\d+)/(.+)")
_MAX_OTHERS = 4

Lines = Sequence[Mapping[str, Any]]
Words = list[tuple[str, str]]


@file_errors()
def write_report(run: Run, figures_folder: Path | None = None) -> Path:
    """Write ``report.html`` and ``report.md`` into a run directory; return the page's path.

    Reads only the run directory, and leaves out what the run has not produced (yet). Every chart
    is written as SVG and PDF into the folder ``figures`` beside the page, or into
    ``figures_folder``. Raises DataError for a damaged file.
    """
    manifest, result = run.read("manifest.json"), run.read("result.json")
    facts, classes = manifest.get("facts", {}), manifest.get("classes", [])
    metrics, samples = run.metrics(), kept_samples(run)
    raw = kept_form(run)
    inputs = ShownInputs(raw, columns_that_matter(samples, facts))
    predicted = kept_predictions(run)
    seen = quality_of(predicted, facts, classes, result, raw)
    charts, detailed = history_charts(metrics, result)
    looked = looking(samples, facts, inputs)
    groups = sample_groups(samples, facts, classes, inputs)
    notes = result.get("notes", [])
    drawn = [*seen.charts, *([looked] if looked else []), *charts, *detailed]
    drawn += [line for _, _, shown_ in groups for line in shown_.lines]
    files = save_all(drawn, figures_folder or run.path / FIGURES)
    context = {
        "name": manifest.get("name") or run.path.name,
        "banner": manifest.get("banner", ""),
        "task": result.get("task") or facts.get("task", {}).get("name", ""),
        "result": result,
        "verdict": verdict(result),
        "interval": interval(result),
        "against": against(result),
        "advice": result.get("advice", []),
        "selection": selection(result),
        "measured": essentials(result),
        "details": details(result),
        "setting": setting(facts),
        "notes": [line for line in notes if not is_jargon(line)],
        "quieter": [line for line in notes if is_jargon(line)],
        "quality": seen,
        "tested": text.number(len(predicted.get("label", ()))),
        "looking": looked,
        "groups": groups,
        "units": units(raw),
        "charts": charts,
        "detailed": detailed,
        "files": files,
        "standardised": raw is not None and raw.label_scale is not None,
        "numbers": history_table(metrics) if metrics else None,
        "mixing": mixing(samples, facts),
        "recipe": recipe_text(run),
        "environment": environment(manifest),
    }
    write_atomically(run.path / MARKDOWN, run_markdown(context))
    return write_page(run.path / FILE, "run.html.jinja", context)


def save_all(charts: Sequence[Chart], folder: Path) -> str:
    """Write charts as SVG and PDF into a folder of their own; returns its name."""
    for chart in charts:
        _ = chart.svg  # measures every text for its layout, which need not be done again
        chart.figure.set_layout_engine(None)
        for kind in ("svg", "pdf"):
            save(chart.figure, folder / f"{chart.file}.{kind}")
    return folder.name


# --- what a run has kept ---


def kept_samples(run: Run) -> dict[str, Any]:
    """The samples that a run kept for pictures; empty if it kept none or they are damaged."""
    try:
        return checkpoint.load(run.path / "samples")
    except DataError:
        return {}


def kept_form(run: Run) -> RawForm | None:
    """How the run prepared raw samples; None if it does not say."""
    try:
        raw = checkpoint.load(run.path / "inputs").get("raw")
        return None if raw is None else RawForm.of(raw)
    except (DataError, LookupError, TypeError, ValueError, AttributeError):
        return None


def kept_predictions(run: Run) -> dict[str, Any]:
    """All test predictions and labels; those of the few samples if there were too many to keep."""
    from safetensors.torch import load_file

    file = run.path / PREDICTIONS
    try:
        return load_file(file) if file.is_file() else {}
    except (OSError, SafetensorError):
        return {}


def quality_of(
    predicted: Mapping[str, Any],
    facts: Mapping[str, Any],
    classes: Sequence[str],
    result: Mapping[str, Any],
    raw: RawForm | None,
) -> Quality:
    """The figures of all predictions; none without them."""
    if not predicted:
        return Quality()
    counts = result.get("test", {}).get("class_counts", [])
    target = facts["task"]["target"]
    if result.get("log_odds"):
        predicted = {**predicted, "prediction": predicted["prediction"].double().sigmoid()}
    return quality(predicted, target, classes, counts, raw.label_columns if raw else ())


def sample_groups(
    samples: Mapping[str, Any],
    facts: Mapping[str, Any],
    classes: Sequence[str],
    inputs: ShownInputs,
) -> list[tuple[str, str, ShownSamples]]:
    """The worst, the typical and the first test samples: a title, what they are, the pictures."""
    kinds = (
        ("worst", "The worst", "The largest errors of the test split, worst first."),
        ("typical", "Typical ones", "Those about the median error."),
        ("test", "The first", "The first samples of the test split, without selection."),
    )
    found = [(title, words, shown(samples, facts, classes, which, inputs))
             for which, title, words in kinds]  # fmt: skip
    return [one for one in found if one[2].drawn]


# --- what it says in words ---


def verdict(result: Mapping[str, Any]) -> str:
    """The verdict as a sentence, with its full stop."""
    said = str(result.get("test", {}).get("verdict", ""))
    return f"{said}." if said else ""


def interval(result: Mapping[str, Any]) -> str:
    """``95 % interval: 0.17 to 0.26, over 300 samples``; empty without one."""
    found = result.get("test", {}).get("interval")
    if found is None:
        return ""
    low, high = (text.number(found[end], 3) for end in ("low", "high"))
    over = found.get("over", "samples")
    return f"95\u00a0% interval: {low} to {high}, over {text.number(found['units'])} {over}"


def against(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """This model and the cheap answers, by score: heads and rows; None without any."""
    others = result.get("test", {}).get("against", [])
    if not others:
        return None
    rows = [("this model", result["test"]["metric"])]
    rows += [(one["words"], one["metric"]) for one in others]
    sign = -1 if result["better"] == "higher" else 1
    rows.sort(key=lambda row: (row[1] is None, sign * (row[1] or 0)))
    return ["answer", f"test {result['metric']}"], [[n, text.number(v)] for n, v in rows]


def units(raw: RawForm | None) -> str:
    """In which units inputs, labels and predictions are shown."""
    own = raw is not None and (raw.mean is not None or bool(raw.columns))
    said = "Inputs are in their own units" if own else "Inputs are shown as the model reads them"
    if raw is not None and raw.label_scale is not None:
        said += ", labels and predictions in the unit of the labels"
    return f"{said}."


_JARGON = re.compile(
    r"tokens?\b|patches|lambda|missing, \d+ unexpected|CUDA graph|\bk\b|view ?\d|parameters"
)


def is_jargon(note: str) -> bool:
    """Whether a note speaks of the method's inside, and stands under the details."""
    return bool(_JARGON.search(note))


def recipe_text(run: Run) -> str:
    """The resolved recipe, as the run wrote it."""
    file = run.path / "resolved.yaml"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def selection(result: Mapping[str, Any]) -> str:
    """One sentence: which weights were tested, and how they were chosen."""
    if not result:
        return "This run has no result yet."
    at = result["validation"]["at"]
    epoch = f" epoch {at[1] + 1}" if at else " the last epoch"
    stage = f" of stage {at[0] + 1}" if at and at[0] else ""
    split, _, loss = result["selected_on"].partition(" ")
    chosen = f"Protocol {result['protocol']}: the weights of{epoch}{stage} were chosen"
    why = f", because {result['metric']} was not a number in any epoch" if loss else ""
    if split == "test":
        return (
            f"{chosen} by their {loss or 'score'} on the test split itself{why}, so this number is "
            "optimistic."
        )
    by = f"by the loss on the {split} split{why}," if loss else f"on the {split} split"
    return f"{chosen} {by} and scored on the test split once."


def measured(result: Mapping[str, Any]) -> Words:
    """All numbers next to the test score."""
    return [*essentials(result), *details(result)]


def essentials(result: Mapping[str, Any]) -> Words:
    """What a user wants to know next to the score."""
    if not result:
        return []
    split, _, loss = result["selected_on"].partition(" ")
    validation = result["validation"]
    return [
        (f"Best {split} {loss or result['metric']}", text.number(validation[loss or "metric"])),
        ("Training took", text.duration(result["seconds"]["training"])),
        ("Device", str(result["device"])),
        ("Seed", str(result["seed"])),
    ]


def details(result: Mapping[str, Any]) -> Words:
    """Further numbers, for those who know the method."""
    if not result:
        return []
    parameters, norms = result["parameters"], result.get("token_norm", {})
    words = [
        ("Test loss", text.number(result["test"]["loss"])),
        ("Optimizer steps", text.number(result["steps"])),
        ("Samples through the encoder", text.number(result.get("encoded_samples"))),
        ("Whole process took", text.duration(result["seconds"]["this_process"])),
        ("Peak memory", text.size(result["memory_bytes"])),
        ("Trained parameters", trained(parameters)),
    ]
    if norms.get("target") is not None:
        pair = f"{text.number(norms['target'], 3)} target"
        if norms.get("source") is not None:
            pair += f", {text.number(norms['source'], 3)} source"
        words.append(("Mean token norm at start", pair))
    return words


def trained(parameters: Mapping[str, int]) -> str:
    """``0.3 M of 27.5 M (1.1 %)``."""
    part, total = parameters["trainable"], parameters["total"]
    if not total:
        return "none"
    share = f" ({100 * part / total:.3g}\u00a0%)"
    return f"{text.count(part)} of {text.count(total)}{share}"


def setting(facts: Mapping[str, Any]) -> Words:
    """Task, source and backbone as text."""
    words: Words = []
    task, source, backbone = (facts.get(name) or {} for name in ("task", "source", "backbone"))
    if task:
        target = task["target"]
        label = f"{target['kind']}, {text.plural(target['size'], 'output')}"
        if target["shape"]:
            label += f" on {_sides(target['shape'])}"
        counts = ", ".join(f"{text.number(n)} {name}" for name, n in task["samples"].items())
        words += [("Sample", _sides(task["shape"])), ("Label", label), ("Samples", counts)]
    if facts.get("grid"):
        words.append(("Target tokens", _sides(facts["grid"])))
    if backbone:
        words.append(
            ("Backbone", f"{backbone['name']} ({backbone['modality']}, width {backbone['width']})")
        )
    if source:
        words.append(("Source", f"{source['name']} ({source['modality']})"))
    return words


def environment(manifest: Mapping[str, Any]) -> Words:
    """Versions, hashes and the machine."""
    words: Words = [
        (name, str(manifest[key]))
        for name, key in (
            ("xmodal", "xmodal"),
            ("Python", "python"),
            ("Platform", "platform"),
            ("Processor", "processor"),
            ("Processor cores", "cores"),
            ("Graphics processor", "gpu"),
            ("Content hash", "hash"),
        )
        if key in manifest
    ]
    words += [(f"Data: {name}", str(value)) for name, value in manifest.get("data", {}).items()]
    words += [(name, str(value)) for name, value in manifest.get("libraries", {}).items()]
    components = manifest.get("components", {})
    words += [(name.replace(":", " "), str(value)) for name, value in components.items()]
    return words


def _sides(shape: Any) -> str:
    return " × ".join(text.number(int(side)) for side in shape) or "single"


# --- learning curves, one chart a quantity, one line a part ---


def history_charts(metrics: Lines, result: Mapping[str, Any]) -> tuple[list[Chart], list[Chart]]:
    """Loss and validation metric; for the details: parts of the loss, k, learning rate and others.

    A single epoch is not a curve, so it gives no chart.
    """
    if len(metrics) < 2:
        return [], []
    borders = stage_borders(metrics)
    names = sorted({name for line in metrics for name in line["train"]})
    parts = [name for name in names if _PART.fullmatch(name)]
    plain = [_losses(metrics, [], borders), _validation(metrics, result, borders)]
    drawn = [_losses(metrics, parts, borders)] if len(parts) > 1 else []
    titles = {REPLACED: "Tokens replaced, k", RATE: "Learning rate", NORM: "Gradient norm"}
    others = [n for n in names if n not in {LOSS, *titles, *parts}][:_MAX_OTHERS]
    for name in [*titles, *others]:
        line = train_curve(metrics, name)
        if line is not None:
            drawn.append(curves(titles.get(name, name), [line], borders=borders))
    return [c for c in plain if c is not None], [c for c in drawn if c is not None]


def train_curve(metrics: Lines, name: str, label: str = "", colour: int = 1) -> Curve | None:
    """A training mean over the epochs of all stages; None if it was never logged."""
    values = [(i + 1, m["train"].get(name)) for i, m in enumerate(metrics)]
    points = [(i, float(value)) for i, value in values if value is not None]
    if not points:
        return None
    return Curve(label or name, [x for x, _ in points], [y for _, y in points], colour)


def validation_curve(metrics: Lines, label: str, colour: int = 1) -> Curve:
    """The validation metric over epochs, with the best epoch marked."""
    scored = [
        (i + 1, float(m["validation"]["metric"]))
        for i, m in enumerate(metrics)
        if m["validation"]["metric"] is not None
    ]
    best = [i + 1 for i, m in enumerate(metrics) if m.get("best")]
    # Where the metric is undefined in every epoch, the loss chose the best one.
    mark = (float(best[-1]), dict(scored)[best[-1]]) if best and best[-1] in dict(scored) else None
    return Curve(label, [x for x, _ in scored], [y for _, y in scored], colour, mark)


def stage_borders(metrics: Lines) -> list[float]:
    """Where a new stage begins, between two epochs."""
    pairs = enumerate(pairwise(metrics))
    return [i + 1.5 for i, (before, after) in pairs if before["stage"] != after["stage"]]


def history_table(metrics: Lines) -> tuple[list[str], list[list[str]]]:
    """The same numbers as text: column names and one row per epoch."""
    names = sorted({name for line in metrics for name in line["train"]})
    head = ["epoch", "validation metric", "validation loss", "seconds", *names]
    rows = []
    for position, line in enumerate(metrics):
        scores = line["validation"]
        cells = [scores["metric"], scores["loss"], line["seconds"]]
        cells += [line["train"].get(name) for name in names]
        best = " (best so far)" if line.get("best") else ""
        rows.append([f"{position + 1}{best}", *(text.number(cell) for cell in cells)])
    return head, rows


def _losses(metrics: Lines, parts: Sequence[str], borders: Sequence[float]) -> Chart | None:
    total = train_curve(metrics, LOSS, "total", colour=0)
    lines = [] if total is None else [total]
    for position, name in enumerate(parts):
        match = _PART.fullmatch(name)
        assert match is not None
        line = train_curve(metrics, name, f"view {match[1]}, {match[2]} head", series(position + 1))
        assert line is not None
        lines.append(line)
    if not lines:
        return None
    note = "Parts are shown before weighting, so they need not add up to the total."
    title = "Parts of the training loss" if parts else "Training loss"
    return curves(title, lines, borders=borders, note=note if parts else "")


def _validation(metrics: Lines, result: Mapping[str, Any], borders: Sequence[float]) -> Chart:
    name = result.get("metric", "metric")
    split = str(result.get("selected_on", "validation")).partition(" ")[0].capitalize()
    line = validation_curve(metrics, f"{split} {name}", series(0))
    note = ""
    if line.mark is not None:
        note = f"Ring: the best epoch, {int(line.mark[0])}, at {text.number(line.mark[1])}."
    better = f"{str(result['better']).capitalize()} is better. " if "better" in result else ""
    return curves(f"{split} {name}", [line], borders=borders, note=better + note)
