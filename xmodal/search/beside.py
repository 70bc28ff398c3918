"""The cheap answers beside a run of the user's own data, and the best of them in its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xmodal import runs
from xmodal.data.store import Store
from xmodal.engine.plan import Plan, compose_plan, missing_files
from xmodal.engine.run import Outcome, RunOrder
from xmodal.engine.together import Result, Work, execute_together
from xmodal.errors import XModalError
from xmodal.plugins import Registry
from xmodal.recipe.cheap import METHODS, TRIVIAL, cheap_methods
from xmodal.recipe.own_data import OwnData
from xmodal.search.last import ZERO_LINE, judged
from xmodal.search.pooled import Pool, predicted
from xmodal.search.space import as_overrides
from xmodal.text import duration, number

SHARED = ("seed", "fraction", "labelled", "augment", "precision", "device")
"""What of a recipe, beside its task, decides the samples of a run and how they are computed."""
BEST = "the best cheap answer"
Say = Callable[[str], None]


def hold(
    run: runs.Run, plan: Plan, own: OwnData, registry: Registry, store: Store, root: Path, say: Say
) -> bool:
    """Fit the cheap answers to the samples of a finished run, and write how it stands.

    They are runs of their own below ``root``, done once. The best of them on validation joins
    ``test`` of the run's result. Returns whether the result was changed; where there is nothing to
    hold, ``say`` is told why.
    """
    result, mine = run.read("result.json"), predicted([run.path])
    if plan.recipe.role == TRIVIAL:
        return False
    if str(result["selected_on"]).startswith("test") or not (run.path / runs.VALIDATED).exists():
        say("not held against cheap answers: no validation samples chose the epoch")
        return False
    if mine is None:
        say("not held against cheap answers: its predictions are too many to be kept")
        return False
    name, best = _best(_fitted(plan, own, registry, store, root, say), plan)
    theirs = None if best is None else predicted([best.path])
    if theirs is None or not theirs.matches(mine):
        return False
    test = result["test"]
    known = [one for one in test.get("against", ()) if not one["words"].startswith(BEST)]
    answers = {f"{BEST}, {name}": theirs.prediction}
    found = judged(Pool(plan, plan.recipe.seed), run, mine, answers, known)
    entries = {"against": [asdict(one) for one in found.against], "verdict": found.sentence}
    if all(test.get(key) == value for key, value in entries.items()):
        return False
    result["test"] = {**test, **entries}
    with run.lock():
        run.write("result.json", result)
    return True


def _fitted(
    made: Plan, own: OwnData, registry: Registry, store: Store, root: Path, say: Say
) -> dict[str, Outcome]:
    """By name, the runs of the cheap answers; the majority's stands in every result anyway."""
    kept = {name: getattr(made.recipe, name) for name in SHARED}
    shared = as_overrides({"task": made.recipe.task.dump(), **kept})
    found: dict[str, Outcome] = {}

    def told(name: str) -> Callable[[Result], None]:
        def tell(result: Result) -> None:
            if isinstance(result, Outcome):
                found[name] = result
                score, took = result.result["validation"]["metric"], result.result["seconds"]
                done = duration(took["training"]) if result.fresh else "done before"
                say(f"cheap answer {name}: {_number(score)} on validation, {done}")
            elif not isinstance(result, KeyboardInterrupt):
                lines = str(result).splitlines() or [type(result).__name__]
                say(f"cheap answer {name} is left out: {lines[0]}")

        return tell

    works = []
    for method in cheap_methods(registry, made.facts.task):
        name = method.removeprefix(METHODS)
        order = RunOrder(runs.valid_name(f"{name}_{own.label}") or name, root, looks=False)
        try:
            plan = compose_plan((method, own.recipe), registry, store, shared)
            lacking = missing_files(plan, store)
        except XModalError as error:
            lacking = [str(error).splitlines()[0]]
        if lacking:
            say(f"cheap answer {name} is left out: {lacking[0]}")
        elif method != ZERO_LINE:
            works.append(Work(plan, order, ended=told(name)))
    say(f"holding it against cheap answers: {len(works)} to fit")
    try:
        execute_together(works, registry, store)
    except KeyboardInterrupt:
        say("interrupted: the run is done, its cheap answers are not; the same command goes on")
        found.clear()
    return found


def _best(found: Mapping[str, Outcome], plan: Plan) -> tuple[str, runs.Run | None]:
    """The best one on validation, and its name; None if none has a score."""
    sign = -1 if plan.recipe.task.config.metric.component.better == "higher" else 1
    scores = {name: one.result["validation"]["metric"] for name, one in found.items()}
    known = {name: sign * score for name, score in scores.items() if score is not None}
    best = min(known, key=lambda name: known[name], default="")
    return best, found[best].run if best else None


def _number(score: Any) -> str:
    return "no number" if score is None else number(score)
