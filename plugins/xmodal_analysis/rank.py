"""``xmodal sources rank``: which source suits a task, by cheap scores and one epoch of training.

Bures-OTDD and s-OTDD (lower is better) compare source and target points in the backbone: means over
tokens, as at the start of a run. LogME, H-score and GBC (higher is better) use only the source and
measure how well the backbone already knows its labels. The probe is the validation score after the
first epoch of an actual run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xmodal import workbench
from xmodal.data import Store
from xmodal.errors import DataError, RecipeError, UsageError, did_you_mean
from xmodal.text import MOST_KNOWN, shortlist
from xmodal.workbench import Plan, Registry
from xmodal_analysis import distances, scores
from xmodal_analysis.clouds import FEATURES, Cloud, Clouds
from xmodal_analysis.restore import untrained
from xmodal_analysis.watch import SILENT, Watch

GAUSSIAN_OTDD = "{use: otdd, labels: gaussian}"
LOWER = {"bures_otdd": True, "s_otdd": True, "log_me": False, "h_score": False, "gbc": False}
PROBE = "probe"


@dataclass
class Candidate:
    """One source: its scores, or the reason why it has none."""

    source: str
    scores: dict[str, float | None] = field(default_factory=dict)
    absent: str = ""
    final: float | None = None
    runs: int = 0


@dataclass(frozen=True)
class Question:
    """The task, given by recipes and overrides, and how to measure."""

    recipes: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    scale: str | None = None
    samples: int = 200
    space: str = FEATURES
    probe: bool = True


def candidates(question: Question, registry: Registry, wanted: Sequence[str]) -> list[str]:
    """The sources to rank: those named, or else all of the backbone's modality.

    Raises UsageError for an unknown name.
    """
    known = registry.names("source")
    for name in wanted:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(
                f"unknown source '{name}'{hint}\ninstalled: {shortlist(known, MOST_KNOWN)}"
            )
    return list(wanted) or known


def rank(
    question: Question, registry: Registry, wanted: Sequence[str] = (), watch: Watch = SILENT
) -> tuple[list[Candidate], Plan | None]:
    """Score every candidate; sorted best first, with unscored candidates last.

    Sources of another modality than the backbone's are left out unless the user named them.
    """
    found, plan = [], None
    for name in candidates(question, registry, wanted):
        one = Candidate(name)
        try:
            made = _plan(question, name, registry)
        except RecipeError as error:
            one.absent = _reason(error)
            if _wrong_anyway(error):
                raise
            if wanted or "holds" not in one.absent:
                found.append(one)
            continue
        except DataError as error:
            one.absent = str(error)
            found.append(one)
            continue
        one.absent = "; ".join(workbench.missing_files(made, Store())) or _unfit(made)
        found.append(one)
        if not one.absent:
            watch.say(f"scoring {name}")
            plan = made
            try:
                one.scores = _score(question, made, registry, watch)
            except DataError as error:
                one.absent = str(error)
    return found, plan


def _wrong_anyway(error: RecipeError) -> bool:
    """Whether a recipe is wrong for every source: none of its problems is about the source."""
    return not any("source" in problem.key for problem in error.problems)


def _reason(error: RecipeError) -> str:
    return "; ".join(f"{p.key} {p.message}" for p in error.problems if "source" in p.key) or str(
        error
    )


def _unfit(plan: Plan) -> str:
    """Why no head for the source's labels can be built, for cases that the plan misses."""
    label = plan.source_target
    if (
        label is not None
        and label.kind == "dense"
        and not label.shape
        and workbench.needs_source_head(plan.recipe)
    ):
        return f"its labels are dense, but those of task '{plan.facts.task.name}' are not"
    return ""


def _plan(question: Question, source: str, registry: Registry) -> Plan:
    overrides = [f"source={source}", *question.overrides]
    return workbench.plan(question.recipes, registry, Store(), overrides, question.scale)


def _score(
    question: Question, plan: Plan, registry: Registry, watch: Watch
) -> dict[str, float | None]:
    opened = untrained(plan)
    clouds = Clouds(opened, question.samples, watch)
    source, target = clouds.source(), clouds.target()
    found: dict[str, float | None] = {}
    use = workbench.choose("distance", GAUSSIAN_OTDD, registry, "Bures-OTDD")
    points = source.points(question.space), target.points(question.space)
    far = distances.measure(use, plan.facts, Store(), opened.session.seed, *points)
    found["bures_otdd"] = far
    found["s_otdd"] = scores.sliced_otdd(*_labelled(source, question), *_labelled(target, question))
    found.update(_of_labels(source, question))
    found[PROBE] = _probe(plan, watch) if question.probe else None
    return {
        name: value if value is None or math.isfinite(value) else None
        for name, value in found.items()
    }


def _labelled(cloud: Cloud, question: Question) -> tuple[Any, Any]:
    """Points and classes; a single class if the labels are not classes."""
    x_ND = cloud.points(question.space).x_ND.double().numpy()
    known = cloud.classes_N
    return x_ND, np.zeros(len(x_ND), dtype=np.int64) if known is None else known.numpy()


def _of_labels(source: Cloud, question: Question) -> dict[str, float | None]:
    """Scores of the source's labels; None if they are not classes."""
    x_ND, y_N = _labelled(source, question)
    if len(np.unique(y_N)) < 2:
        return {"log_me": None, "h_score": None, "gbc": None}
    functions: Mapping[str, Callable[[Any, Any], float]] = {
        "log_me": scores.log_me,
        "h_score": scores.h_score,
        "gbc": scores.gbc,
    }
    return {name: function(x_ND, y_N) for name, function in functions.items()}


def _probe(plan: Plan, watch: Watch) -> float | None:
    """The validation score after the first scored epoch of the run."""
    opened = workbench.open_plan(plan)
    training = workbench.train(opened)
    steps = opened.session.stages[0].steps_per_epoch(opened.session)
    try:
        for record in watch.steps("one epoch of training", training, steps + 1):
            if isinstance(record, workbench.EpochRecord) and record.metric is not None:
                return record.metric
    finally:
        training.close()
    return None


def with_finished(found: Sequence[Candidate], plan: Plan, root: Path) -> None:
    """Fill in the mean test scores of finished runs of this task, by source.

    Uses the runs under ``root`` with the same task, samples, backbone and mixer.
    """
    mixer = f"mixer:{plan.recipe.mixer.name}"
    by_source: dict[str, list[float]] = {}
    for file in sorted(root.glob("*/*/result.json")):
        run = workbench.Run(file.parent)
        if run.older:
            continue  # its score is not one of this version
        manifest, facts = run.read("manifest.json"), run.read("manifest.json").get("facts", {})
        source, task = facts.get("source") or {}, facts.get("task") or {}
        alike = (
            task.get("name") == plan.facts.task.name
            and task.get("samples") == dict(plan.facts.task.samples)
            and (facts.get("backbone") or {}).get("name") == plan.facts.backbone.name
            and mixer in manifest.get("components", {})
            and run.state == "done"
        )
        if alike:
            names = [
                key.removeprefix("source:")
                for key in manifest["components"]
                if key.startswith("source:")
            ]
            score = run.read("result.json")["test"]["metric"]
            if score is not None:  # None: the metric is undefined on this test split
                name = names[0] if names else source.get("name", "")
                by_source.setdefault(name, []).append(score)
    for one in found:
        reached = by_source.get(one.source, [])
        one.runs, one.final = len(reached), float(np.mean(reached)) if reached else None


def correlations(found: Sequence[Candidate], better: str) -> dict[str, float]:
    """Spearman's rank correlation of every score with the final error, both "lower is better".

    A value of 1 means that the score ranks the sources as their runs do. Needs at least three
    sources with runs.
    """
    from scipy.stats import spearmanr

    result = {}
    for name in (*LOWER, PROBE):
        pairs = [
            (v, one.final)
            for one in found
            if one.final is not None and (v := one.scores.get(name)) is not None
        ]
        if len(pairs) < 3:
            continue
        values, finals = zip(*pairs, strict=True)
        sign = _sign(name, better) * (1 if better == "lower" else -1)
        if len(set(values)) > 1 and len(set(finals)) > 1:
            result[name] = float(sign * spearmanr(values, finals).statistic)
    return result


def _sign(name: str, better: str) -> int:
    low = LOWER.get(name, better == "lower")
    return 1 if low else -1


def ordered(found: Sequence[Candidate], by: str, better: str) -> list[Candidate]:
    """Best first by one score; candidates without it last."""

    def key(one: Candidate) -> tuple[bool, float]:
        value = one.scores.get(by)
        return (value is None, 0.0 if value is None else _sign(by, better) * value)

    return sorted(found, key=key)
