"""What a page says about a run in words: what was measured, how, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xmodal.engine import checkpoint
from xmodal.errors import DataError
from xmodal.report import text
from xmodal.runs import Run

Words = list[tuple[str, str]]


def kept_samples(run: Run) -> dict[str, Any]:
    """The samples a run kept for pictures; nothing if it kept none or they are damaged."""
    try:
        return checkpoint.load(run.path / "samples")
    except DataError:
        return {}


def recipe_text(run: Run) -> str:
    """The resolved recipe, as it was written."""
    file = run.path / "resolved.yaml"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def selection(result: Mapping[str, Any]) -> str:
    """One sentence: which weights were tested, and what chose them."""
    if not result:
        return "This run has no result yet."
    at = result["validation"]["at"]
    epoch = f" epoch {at[1] + 1}" if at else " the last epoch"
    stage = f" of stage {at[0] + 1}" if at and at[0] else ""
    if result["selected_on"] == "test":
        return (
            f"Protocol {result['protocol']}: the weights of{epoch}{stage} were chosen by their "
            "score on the test split itself, so this number is optimistic."
        )
    return (
        f"Protocol {result['protocol']}: the weights of{epoch}{stage} were chosen on the "
        f"{result['selected_on']} split and scored on the test split once."
    )


def measured(result: Mapping[str, Any]) -> Words:
    """The numbers beside the test score."""
    if not result:
        return []
    parameters, norms = result["parameters"], result.get("token_norm", {})
    split = result["selected_on"]
    words = [
        ("Test loss", text.number(result["test"]["loss"])),
        (f"Best {split} {result['metric']}", text.number(result["validation"]["metric"])),
        ("Optimizer steps", text.number(result["steps"])),
        ("Samples through the encoder", text.number(result.get("encoded_samples"))),
        ("Training steps took", text.duration(result["seconds"]["training"])),
        ("Whole process took", text.duration(result["seconds"]["this_process"])),
        ("Peak memory", text.size(result["memory_bytes"])),
        ("Trained parameters", trained(parameters)),
        ("Device", str(result["device"])),
        ("Seed", str(result["seed"])),
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
    """Task, source and backbone in words."""
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
    """Versions, hashes and machine."""
    words: Words = [
        (name, str(manifest[key]))
        for name, key in (
            ("xmodal", "xmodal"),
            ("Python", "python"),
            ("Platform", "platform"),
            ("Processor cores", "cores"),
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
