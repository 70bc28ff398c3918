"""The cheap answers beside a run of the user's own data, and the best of them in its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xmodal import runs
from xmodal.data.store import Store
from xmodal.engine.plan import Plan, compose_plan, missing_files
from xmodal.engine.run import Interrupted, RunOrder, execute
from xmodal.errors import XModalError
from xmodal.plugins import Registry
from xmodal.recipe.cheap import METHODS, cheap_methods
from xmodal.recipe.own_data import OwnData
from xmodal.search.last import ZERO_LINE, judged
from xmodal.search.pooled import Pool, predicted
from xmodal.search.space import as_overrides
from xmodal.text import duration, number

SHARED = ("seed", "fraction", "labelled", "augment", "precision", "device")
"""What of a recipe decides the samples of a run, and how they are computed with."""
BEST = "the best cheap answer"


@dataclass(frozen=True)
class Cheap:
    """A cheap answer, its run, and its score on validation."""

    name: str
    run: runs.Run
    score: float


def cheap_runs(
    made: Plan,
    own: OwnData,
    settings: Sequence[str],
    registry: Registry,
    store: Store,
    root: Path,
    say: Callable[[str], None],
) -> list[Cheap]:
    """Fit the cheap answers to the samples of ``made``, as runs below ``root``; best first.

    ``settings``: those ``key=value`` of the task that were given beside the data file. What cannot
    be fitted is said and passed over. The majority answer is left out: any run has its like.
    """
    kept = {name: getattr(made.recipe, name) for name in SHARED}
    shared = (*own.overrides, *settings, *as_overrides(kept))
    metric = made.recipe.task.config.metric
    found = []
    for method in cheap_methods(registry, made.facts.task):
        if method == ZERO_LINE:
            continue
        name = method.removeprefix(METHODS)
        order = RunOrder(runs.valid_name(f"{name}_{own.label}") or name, root)
        try:
            plan = compose_plan((method, own.recipe), registry, store, shared)
            if lacking := missing_files(plan, store):
                say(f"{name} is left out: {lacking[0]}")
                continue
            done = execute(plan, order, registry, store)
        except Interrupted:
            raise
        except XModalError as error:
            say(f"{name} is left out: {str(error).splitlines()[0]}")
            continue
        score = done.result["validation"]["metric"]
        if score is not None:
            found.append(Cheap(name, done.run, score))
            took = duration(done.result["seconds"]["training"])
            say(f"cheap answer {name}: {number(score)} on validation, {took}")
    sign = -1 if metric.component.better == "higher" else 1
    return sorted(found, key=lambda one: sign * one.score)


def hold(run: runs.Run, plan: Plan, cheap: Sequence[Cheap]) -> None:
    """Write into the result of a run how it stands against the best of cheap answers, best first.

    Nothing is written where the test split has chosen the epoch, or predictions were not kept.
    """
    result, own = run.read("result.json"), predicted([run.path])
    if not cheap or own is None or str(result["selected_on"]).startswith("test"):
        return
    theirs = predicted([cheap[0].run.path])
    if theirs is None or not theirs.matches(own):
        return
    answers = {f"{BEST}, {cheap[0].name}": theirs.prediction}
    found = judged(Pool(plan, plan.recipe.seed), run, own, answers)
    against = [asdict(one) for one in found.against]
    result["test"] |= {"against": against, "verdict": found.sentence}
    run.write("result.json", result)


def is_held(result: Mapping[str, Any]) -> bool:
    """Whether a result stands against a cheap answer already."""
    return any(one["words"].startswith(BEST) for one in result["test"].get("against", ()))
