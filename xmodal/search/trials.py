"""A trial: one answer on one rung, as the ordinary runs of its folds.

A trial is known by its recipes, so one that an earlier search of the same data has made is not made
again. What it has done stands in its run directories alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

from ruamel.yaml import YAML

from xmodal import runs
from xmodal.data.store import Store
from xmodal.engine import checkpoint
from xmodal.engine.identity import identity
from xmodal.engine.plan import compose_plan, missing_files
from xmodal.errors import DataError
from xmodal.files import claim, write_atomically
from xmodal.interfaces import FittedPredictor
from xmodal.plugins import Registry
from xmodal.search.space import Answer, Rung, as_overrides, training

RECIPE = "cell.yaml"
TRIALS, MODELS = "trials", "models"
"""The folders of a search: runs that are judged, and last fits."""


@dataclass(frozen=True)
class TrialRun:
    """One run of a trial: that of one fold.

    ``recipe``: the resolved one. ``tokens``: how many a sample has.
    """

    directory: Path
    recipe: Mapping[str, Any]
    tokens: int = 1

    @property
    def run(self) -> runs.Run:
        """The run."""
        return runs.Run(self.directory)

    @property
    def done(self) -> bool:
        """Whether the run has its result."""
        return self.run.state == "done"

    @property
    def result(self) -> Mapping[str, Any]:
        """The result of the run; only of one that is done."""
        return self.run.read("result.json")

    def prepare(self) -> None:
        """Make the directory, with the recipe to run."""
        claim(self.directory, runs.KIND)
        write_atomically(self.directory / RECIPE, self.text())

    def text(self) -> str:
        """The recipe as YAML."""
        text = StringIO()
        YAML().dump(dict(self.recipe), text)
        return text.getvalue()


@dataclass(frozen=True)
class Trial:
    """An answer on a rung. ``rung``: None for a cheap answer, which has nothing to shorten."""

    answer: Answer
    rung: int | None
    steps: Rung | None
    parts: tuple[TrialRun, ...]

    @property
    def name(self) -> str:
        """What people call it."""
        return self.answer.name if self.steps is None else f"{self.answer.name}, {self.work}"

    @property
    def key(self) -> str:
        """What tells it from all other trials."""
        return "\n".join(str(part.directory) for part in self.parts)

    @property
    def work(self) -> str:
        """The steps of its rung in words."""
        return "" if self.steps is None else f"{self.steps.total} steps"

    @property
    def done(self) -> bool:
        """Whether all its runs are done."""
        return all(part.done for part in self.parts)

    @property
    def cost(self) -> float:
        """Work of one of its runs: tokens of all steps; 0 for a cheap answer: not known."""
        return 0.0 if self.steps is None else self.work_of(self.steps)

    def work_of(self, rung: Rung) -> float:
        """Work of a run of the same answer on a rung."""
        return float(rung.total * rung.batch * self.parts[0].tokens)

    def score(self) -> float | None:
        """The mean validation metric of its folds; None if it has no number in one of them."""
        found = [part.result["validation"]["metric"] for part in self.parts]
        return None if any(one is None for one in found) else fmean(found)

    def seconds(self) -> float:
        """What its runs took; of one that was resumed at least all of its training."""
        return float(sum(took(part.result["seconds"]) for part in self.parts))

    def size(self) -> int:
        """Bytes of the model on disk."""
        return size_of(self.parts[0])

    def latency(self) -> float | None:
        """Seconds to predict a sample, in batches, as measured; of its slowest run."""
        found = [part.result["seconds"].get("test_sample") for part in self.parts]
        return None if any(one is None for one in found) else max(found)

    def memory(self) -> int:
        """Bytes that its largest run took at most, the program itself and its data included."""
        return max(int(part.result["memory_bytes"]) for part in self.parts)

    def chosen(self) -> dict[str, Any] | None:
        """What its predictor chose on validation, the middle over the folds; None: unsaid."""
        found = [one for one in (p.result.get("chosen") for p in self.parts) if one is not None]
        if len(found) < len(self.parts):
            return None
        return {name: median_low(one[name] for one in found) for name in found[0]}

    def epochs(self) -> int:
        """The epochs that were best, on average over the folds; for a last fit of a rung."""
        at = [part.result["validation"]["at"] for part in self.parts]
        return max(1, math.ceil(fmean(place[-1] + 1 if place else 1 for place in at)))


def took(seconds: Mapping[str, float]) -> float:
    """What a run took, by the times in its result."""
    return max(seconds["this_process"], seconds["training"])


def size_of(part: TrialRun) -> int:
    """Bytes of the best weights of a run on disk; 0 if there are none."""
    found = checkpoint.complete(part.run.checkpoints, checkpoint.BEST)
    return sum(p.stat().st_size for p in found[0].rglob("*") if p.is_file()) if found else 0


@dataclass(frozen=True)
class Maker:
    """Makes trials of one data file: plans their recipes and gives them directories.

    ``root``: the folder of the search; trials are below ``trials``, last fits below ``models``.
    ``recipe`` reads the data. ``common``: settings ``key=value`` that all share; ``tuning``: those
    of trials that train. ``folds``: None, or how many there are.
    """

    registry: Registry
    store: Store
    root: Path
    recipe: str
    common: tuple[str, ...]
    tuning: tuple[str, ...]
    folds: int | None

    def trial(
        self, answer: Answer, rung: int | None, steps: Rung | None, folds: Iterable[int]
    ) -> Trial:
        """The trial of an answer. Raises an XModalError if it cannot run."""
        parts = []
        for fold in folds:
            cut = {} if self.folds is None else {"folds": self.folds, "fold": fold}
            settings = training(steps) if steps is not None else {}
            parts.append(self._part(answer, settings, {**cut, "test_apart": True}))
        return Trial(answer, rung, steps, tuple(parts))

    def last(self, trial: Trial) -> TrialRun:
        """The last fit of a trial, on all samples but those for testing, and its test.

        What the trial has chosen on validation, such as when trees stop, is given to it. One that
        cannot say what it chose keeps its validation samples: it would choose on its own training
        samples otherwise.
        """
        settings = {} if trial.steps is None else training(trial.steps, trial.epochs())
        predictor = self.registry.load("predictor", trial.parts[0].recipe["predictor"]["use"])
        keeps = predictor.reads_samples
        if issubclass(predictor, FittedPredictor):
            chosen = trial.chosen()
            keeps = chosen is None
            settings |= {f"predictor.{name}": value for name, value in (chosen or {}).items()}
        return self._part(trial.answer, settings, {"refit": not keeps}, MODELS)

    def _part(
        self,
        answer: Answer,
        settings: Mapping[str, Any],
        task: Mapping[str, Any],
        below: str = TRIALS,
    ) -> TrialRun:
        own = {f"task.{key}": value for key, value in task.items()}
        mine = () if answer.cheap else self.tuning
        overrides = (
            *as_overrides(own), *as_overrides(settings), *answer.overrides, *mine, *self.common,
        )  # fmt: skip
        # The data's own layers come first: a method's "always" has to win over them.
        plan = compose_plan((*answer.recipes, self.recipe), self.registry, self.store, overrides)
        lacking = missing_files(plan, self.store)
        if lacking:
            raise DataError("\n".join(lacking))
        predictor = plan.recipe.predictor.component
        if issubclass(predictor, FittedPredictor) and predictor.keeps_predictions:
            raise DataError(f"{answer.name} cannot predict new samples, so it cannot be chosen")
        found = identity(plan.recipe, self.registry, self.store)
        name = runs.valid_name(answer.name.split(" ")[0]) or "trial"
        directory = self.root / below / f"{name}-{found.hash[:10]}"
        tokens = plan.facts.num_tokens or 1
        recipe = plan.recipe.model_dump(mode="json") | {"method": answer.name}
        return TrialRun(directory, recipe, tokens)


def best(trials: Sequence[Trial], better: str) -> list[Trial]:
    """Trials with a score, best first; of equal ones cheap answers, then earlier ones."""
    scored = [(trial, trial.score()) for trial in trials]
    sign = -1 if better == "higher" else 1
    known = [(sign * score, not trial.answer.cheap, trial) for trial, score in scored
             if score is not None]  # fmt: skip
    return [trial for *_, trial in sorted(known, key=lambda one: one[:2])]
