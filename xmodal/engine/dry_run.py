"""What ``--dry-run`` shows: shapes at every interface, what trains, token norms, and the time that
a step takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Subset

from xmodal.batch import Batch, Progress, View
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import Training
from xmodal.engine.plan import Plan
from xmodal.engine.result import peak_memory
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.interfaces import Pair, Task, TaskData
from xmodal.text import duration, size

SAMPLES = 2
GENERATED = 32
"""Samples that are generated for a look, at about."""


def describe(plan: Plan, store: Store, note: Callable[[str], None]) -> dict[str, dict[str, str]]:
    """Load everything, take two steps in memory, and return sections of (name, text) rows.

    Of data that are generated only a few samples are made; sizes and times are those of all.
    """
    use = plan.recipe.task
    few = use.component.few(use.config, GENERATED)
    builder = Builder(plan, store, note, {} if few == use.config else {"task": _of_few(few)})
    data = builder.data()
    session = builder.session(data)
    for stage in session.stages:
        if stage.optimizer([]) is None:
            # A predictor in closed form has no shapes before it is fitted.
            stage.begin(session)
    sections = {"data": _data(plan, session), "shapes": _shapes(session)}
    sections["token norms"] = {
        "source (what the backbone was trained on)": _norm(session.source_norm),
        "target (after calibration)": _norm(session.target_norm),
    }
    sections["cost"] = _cost(session)
    sections["parameters"] = _parameters(session)
    return sections


def _of_few(few: Any) -> Callable[[type[Task]], type[Task]]:
    """Makes a class of task one that generates what ``few`` says, repeated up to its own size."""

    def of(component: type[Task]) -> type[Task]:
        class OfFew(component):  # type: ignore[misc, valid-type]
            def load(self, seed: int) -> TaskData:
                data = component(few, self.context).load(seed)
                whole = component.describe(self.config, self.store).samples
                note = "only a few samples are generated, and repeated; sizes and times are of all"
                return replace(_repeated(data, whole), notes=(f"dry run: {note}", *data.notes))

        return OfFew

    return of


def _repeated(data: TaskData, samples: Mapping[str, int]) -> TaskData:
    """Data whose splits have so many samples: their own, again and again."""
    rows = {
        split: torch.arange(count) % loader.count(getattr(data, split))
        for split, count in samples.items()
    }

    def part(split: str) -> Subset[Pair]:
        return Subset(getattr(data, split), rows[split].tolist())

    return replace(
        data,
        train=part("train"),
        validation=part("validation"),
        test=part("test"),
        groups={split: groups_N[rows[split]] for split, groups_N in data.groups.items()},
        weights={split: weight_N[rows[split]] for split, weight_N in data.weights.items()},
    )


def _norm(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(str(side) for side in tensor.shape)


def _data(plan: Plan, session: RunSession) -> dict[str, str]:
    x, y = loader.first(session.data.train, 1)
    y = session.data.in_unit(y)
    samples = ", ".join(f"{split} {n}" for split, n in plan.facts.task.samples.items())
    finite = x[x.isfinite()].float()
    return {
        "task": f"{plan.facts.task.name}: {samples}",
        "first sample": f"x {_shape(x[0])}, mean {finite.mean():.3g}, sd {finite.std():.3g}",
        "its label": str(y[0].item()) if y[0].numel() == 1 else _shape(y[0]),
        "source": "none" if session.source is None else f"{loader.count(session.source)} samples",
    }


@torch.no_grad()
def _shapes(session: RunSession) -> dict[str, str]:
    model = session.model.eval()
    x, y = session.first(session.data.train, SAMPLES)
    batch = Batch(x, y, *session.partners(len(x)))
    rows = {"target input": _shape(x)}
    if batch.source is not None:
        tokens = model.embed_source(batch.source[0])
        rows["source input"] = _shape(batch.source[0])
        rows["source tokens"] = f"{_shape(tokens.x_BND)}, grid {tokens.grid}"
    tokens = model.embedder(x)
    rows["target tokens"] = f"{_shape(tokens.x_BND)}, grid {tokens.grid}"
    stage = session.stages[-1]
    last = len(session.stages) - 1
    at = Progress(last, 0, stage.epochs, 0, stage.steps_per_epoch(session))
    views = model.views(batch, at)
    for number, (view, features) in enumerate(zip(views, model.encode(views), strict=True)):
        rows[f"view {number}"] = f"{_terms(view)} -> features {_shape(features.x_BND)}"
    rows["prediction"] = _shape(model.predict(x))
    return rows


def _terms(view: View) -> str:
    terms = " + ".join(f"{t.weight:.3g} x {t.head} loss" for t in view.terms)
    log = ", ".join(f"{name} {value:.3g}" for name, value in view.log.items())
    return terms + (f" ({log})" if log else "")


def _cost(session: RunSession) -> dict[str, str]:
    """Measure the second optimizer step of every stage (the first one warms up)."""
    rows: dict[str, str] = {}
    total = 0.0
    for index, stage in enumerate(session.stages):
        begun = time.perf_counter()
        step = _second_step(session, index)
        if step is None:
            rows[f"stage {index}"] = duration(time.perf_counter() - begun)
            continue
        steps = stage.steps_per_epoch(session) * stage.epochs
        total += step * steps
        rows[f"stage {index}"] = f"{steps} steps of {duration(step)}"
    rows["training, about"] = f"{duration(total)} (without evaluation)"
    rows["memory"] = size(peak_memory(session.device))
    return rows


def _second_step(session: RunSession, stage: int) -> float | None:
    """The seconds of a stage's second step, or of its only one; None if it takes none."""
    training = Training(session)
    training.snapshot.stage = stage
    taken: list[float] = []
    for record in training.run():
        if not isinstance(record, StepRecord):
            if taken or record.progress.steps == 0:
                break
            continue
        if record.progress.stage != stage:
            break
        taken.append(record.seconds)
        if len(taken) == 2:
            break
    return taken[-1] if taken else None


def _parameters(session: RunSession) -> dict[str, str]:
    rows: dict[str, str] = {}
    for number, stage in enumerate(session.stages):
        chosen = session.model.select_trainable(stage.train)
        chosen += session.model.select_helper(number)
        parts: dict[str, int] = {}
        for name, parameter in chosen:
            part = name.split(".")[0]
            parts[part] = parts.get(part, 0) + parameter.numel()
        shown = ", ".join(f"{part} {n:,}" for part, n in parts.items()) or "nothing"
        rows[f"trains in stage {number}"] = shown
    rows["total"] = f"{sum(p.numel() for p in session.model.parameters()):,}"
    return rows
