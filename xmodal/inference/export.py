"""Exports a trained model into a folder: the exporter's files, a model card, and facts as JSON.

The folder appears when it is complete and agrees with the model; a failed export leaves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal._version import __version__
from xmodal.data import fetching
from xmodal.data.store import Store
from xmodal.engine.memory import device_errors
from xmodal.errors import DataError, UsageError, XModalError, file_errors
from xmodal.files import as_json, atomically, below, read_json
from xmodal.inference.model import Ensemble, TrainedModel
from xmodal.interfaces import Context, Exported, Exporter
from xmodal.plugins import Registry
from xmodal.recipe.choice import chosen
from xmodal.settings import Use
from xmodal.text import markdown, shortlist

FACTS = "xmodal.json"


@file_errors()
@fetching.doing("use")
def export_trained(
    trained: TrainedModel,
    to: str,
    out: Path,
    registry: Registry,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Exported:
    """Write ``trained`` into the new folder ``out`` with the exporter ``to``.

    Raises UsageError if the exporter or the folder cannot be used, and DataError if the model
    cannot be exported or what was written does not agree with it.
    """
    out = out.absolute()
    use = exporter_for(to, out, registry, settings, force)
    _check_traceable(trained, to)
    exporter = use.build(Context.outside(Store(), "exporter"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomically(out) as folder:
        folder.mkdir()
        try:
            with device_errors():
                exported = exporter.export(trained, folder)
        except (XModalError, OSError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"{trained.run.path} cannot be exported to '{to}': {_parts(trained)}: "
                f"{type(error).__name__}: {reason}"
            ) from error
        facts = described(trained) | {"exporter": to, "difference": exported.difference}
        (folder / "README.md").write_text(card(trained, facts, exported), encoding="utf-8")
        facts["files"] = sorted({*below(folder), FACTS})
        (folder / FACTS).write_text(as_json(facts, indent=1) + "\n", encoding="utf-8")
    return exported


def exporter_for(
    to: str,
    out: Path,
    registry: Registry,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Use[Exporter]:
    """The exporter, once everything that it needs is there; to be asked before a model is loaded.

    Raises UsageError for a missing package or a folder that cannot be used.
    """
    use: Use[Exporter] = chosen("exporter", to, registry, "--to", settings)
    for line in use.component.missing(use.config, Store()):
        raise UsageError(line)
    _check(out.absolute(), force)
    return use


def default_folder(run: Path, to: str) -> Path:
    """Where an export goes if nothing is said: beside the run, named by the format."""
    return run.parent / f"{run.name}-{to}"


def _check_traceable(trained: TrainedModel, to: str) -> None:
    """Raise DataError, with what works instead, for a model that is none of torch."""
    if isinstance(trained, Ensemble):
        members = shortlist(str(member.run.path) for member in trained.members)
        raise DataError(
            f"{trained.run.path} is an ensemble, which cannot be exported as one: use it with "
            f"xmodal predict {trained.run.path} FILE, or export its members: {members}"
        )
    predictor = trained.model.predictor
    if not predictor.traceable:
        raise DataError(
            f"{trained.run.path} cannot be exported to '{to}': predictor "
            f"'{trained.recipe.predictor.name}' computes with a library or a solver of its own, of "
            "which torch cannot make a graph. Use the run itself: "
            f"xmodal predict {trained.run.path} FILE. Networks, linear models and kernels can be "
            "exported"
        )


def _check(out: Path, force: bool) -> None:
    """Raise UsageError unless ``out`` is new, empty, or an earlier export to be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    facts = read_json(out / FACTS)
    if "exporter" not in facts:
        raise UsageError(f"--out {out} exists and is no export; name a new folder")
    if not force:
        raise UsageError(f"{out} exists; --force replaces it")
    # Exports of earlier versions do not list their files.
    foreign = below(out).keys() - facts.get("files", below(out).keys())
    if foreign:
        raise UsageError(
            f"{out} also holds files that are not of the export: {shortlist(sorted(foreign))}. "
            "Nothing was changed; move them away, or name a new folder"
        )


def _parts(trained: TrainedModel) -> str:
    recipe = trained.recipe
    return (
        f"embedder '{recipe.embedder.name}', backbone '{recipe.backbone.name}', predictor "
        f"'{recipe.predictor.name}'"
    )


def described(trained: TrainedModel) -> dict[str, Any]:
    """Inputs, outputs and origin of a trained model, as plain values."""
    raw, recipe, target = trained.raw, trained.recipe, trained.facts.task.target
    result = trained.run.read("result.json")
    return {
        "task": trained.facts.task.name,
        "input": {
            "shape": list(raw.shape),
            "column_names": list(raw.columns),
            "categories": {
                name: list(levels)
                for name, levels in zip(raw.columns, raw.levels, strict=False)
                if levels
            },
            "missing": raw.missing,
            "standardised": raw.mean is not None,
        },
        "output": {
            "kind": target.kind,
            "shape": [target.size, *target.shape],
            "dtype": "float32" if raw.label_scale is None else "float64",
        },
        "classes": list(trained.classes),
        "hash": trained.run.read("manifest.json").get("hash"),
        "seed": recipe.seed,
        "precision": recipe.precision,
        "recipe": recipe.description,
        "test": result.get("test"),
        "validation": result.get("validation"),
        "metric": recipe.task.config.metric.name,
        "better": result.get("better"),
        "backbone": recipe.backbone.dump(),
        "licence of the weights": recipe.backbone.component.licence,
        "xmodal": __version__,
    }


_OUTPUTS = {
    "classification": "a logit for each class: softmax gives probabilities, the largest wins",
    "multi-label": "log-odds for each label: above 0 means yes, the sigmoid is the probability",
    "regression": "numbers in the unit of the labels",
    "dense": "a field in the unit of the labels (0/1 fields trained with bce: log-odds)",
}


def card(trained: TrainedModel, facts: Mapping[str, Any], exported: Exported) -> str:
    """The model card ``README.md``."""
    given, output = facts["input"], facts["output"]
    shape = ", ".join(map(str, given["shape"]))
    lines = [
        f"# {markdown(facts['task'])}",
        "",
        markdown(facts["recipe"] or ""),
        "",
        "## Input",
        "",
    ]
    lines += [f"`x`: `[n, {shape}]`, as in the user's files."]
    if given["standardised"]:
        lines += ["Means and deviations of the training samples are part of the model."]
    if given["missing"]:
        lines += ["A missing value is NaN."]
    if given["column_names"]:
        lines += ["", "| column | values |", "|---|---|"]
        for name in given["column_names"]:
            codes = given["categories"].get(name, ())
            values = ", ".join(f"{code} = {markdown(value)}" for code, value in enumerate(codes))
            lines += [f"| {markdown(name)} | {values or 'a number'} |"]
    if given["categories"]:
        lines += ["", "A number that is none of a category's codes counts as missing, like NaN."]
    lines += ["", "## Output", ""]
    sizes = ", ".join(map(str, output["shape"]))
    lines += [f"`[n, {sizes}]`, {output['dtype']}: {_OUTPUTS[output['kind']]}."]
    if trained.classes:
        named = ", ".join(
            f"{index} = {markdown(name)}" for index, name in enumerate(trained.classes)
        )
        lines += ["", f"Classes: {named}."]
    lines += ["", exported.usage.strip(), "", "## Agreement", ""]
    lines += [
        f"Largest difference from the trained model on {exported.samples} test samples, in batches "
        f"of several sizes: {exported.difference:.2g}."
    ]
    lines += [f"- {note}" for note in exported.notes]
    lines += ["", "## Origin", "", "| | |", "|---|---|"]
    test, validation = facts["test"] or {}, facts["validation"] or {}
    rows = {
        f"test {facts['metric']} ({facts['better']} is better)": test.get("metric"),
        f"validation {facts['metric']}": validation.get("metric"),
        "recipe": _parts(trained),
        "seed": facts["seed"],
        "hash of the run": facts["hash"],
        "licence of the pretrained weights": facts["licence of the weights"],
        "made with": f"xmodal {facts['xmodal']}",
    }
    lines += [f"| {key} | {markdown(value)} |" for key, value in rows.items() if value is not None]
    return "\n".join(lines) + "\n"
