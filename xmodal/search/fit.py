"""``fit``: the best model for a data file, in the time that there is, and how good it is.

The folder of a search holds ``fit.json`` (everything), ``trials/`` (ordinary runs, which no test
sample has reached) and ``model-NN/``, the run of the chosen model, fitted on all training samples
and tested once. The same command continues a search that was interrupted, or goes on with more
time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal import plugins, runs
from xmodal.comparison.run import default_launcher
from xmodal.data.datasets import cores
from xmodal.data.store import Store
from xmodal.engine.identity import identity
from xmodal.engine.plan import Plan, compose_plan
from xmodal.errors import UsageError, file_errors
from xmodal.files import claim, write_json
from xmodal.recipe.cheap import cheap_methods
from xmodal.recipe.choice import choose
from xmodal.recipe.own_data import own_data
from xmodal.search.clock import Clock
from xmodal.search.search import Search
from xmodal.search.space import RUNGS, as_overrides, cheap, fine_tuning, rungs, space_of
from xmodal.search.trials import RECIPE, Maker, Trial, TrialRun

if TYPE_CHECKING:
    from xmodal.interfaces import Launcher

ROOT = Path("fits")
KIND = "fit"
"""The kind of folder that a search is; see ``xmodal.files.claim``."""
RECORD = "fit.json"
FEW = 500
"""Below so many samples to train and validate, selection is by repeated cross-validation."""
FOLDS, REPETITIONS = 5, 2
ZERO_LINE = "methods/majority"
"""Fits data of every form, so planning it tells what the data are."""


@dataclass(frozen=True)
class Line:
    """A line of the leaderboard. ``score``: on the validation samples; None if it has no number."""

    name: str
    cheap: bool
    rung: int | None
    score: float | None
    seconds: float
    parameters: int
    directories: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """What a search found.

    ``entries``: trials that could be chosen, best first. ``others``: those on lower rungs.
    ``model``: the run of the chosen one, whose ``test`` is its metric on the test samples, which
    have been looked at ``looks`` times. ``left_out``: why what was not tried was not.
    """

    folder: Path
    metric: str
    better: str
    entries: tuple[Line, ...]
    others: tuple[Line, ...]
    model: Path
    test: float | None
    samples: Mapping[str, int]
    looks: int
    seconds: float
    left_out: Mapping[str, str]

    @property
    def chosen(self) -> Line:
        """The best one on validation."""
        return self.entries[0]

    @property
    def best_cheap(self) -> Line | None:
        """The best cheap answer."""
        return next((entry for entry in self.entries if entry.cheap), None)


@file_errors()
def fit(
    data: str | Path,
    *,
    test: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    seconds: float | None = None,
    trials: int | None = None,
    seed: int = 0,
    space: str = "",
    jobs: int | None = None,
    launcher: str = "",
    root: str | Path = ROOT,
    plugin_files: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """Search for the best model of ``data`` within ``seconds``, or with so many ``trials``.

    ``data``: a file or folder as task ``arrays`` reads it, with ``settings`` of that task (``y``,
    ``group``, ``metric``, ...). ``test``: a file of test samples; otherwise some are set apart.
    ``overrides``: settings ``key=value`` of the trials that train, and of all if they are of the
    task. ``space``: what to search, a name or a file; default: that of the form of the data.
    ``jobs``: runs at a time. ``launcher``: where they run, as in ``xmodal.compare``. Raises
    UsageError, DataError and RecipeError.
    """
    if (seconds is None) == (trials is None):
        raise UsageError("say either how much time there is, or how many trials to make")
    clock = Clock(seconds)
    registry, store = plugins.registry(tuple(plugin_files)), Store()
    asked = {**(settings or {}), **({} if test is None else {"test": str(Path(test).absolute())})}
    given = (*as_overrides({f"task.{key}": value for key, value in asked.items()}), *overrides)
    own = own_data(str(data), registry, given)
    if own is None:
        raise UsageError(f"{data} is not a data file that an installed plugin reads")
    of_task = tuple(override for override in given if override.startswith("task."))
    shared = (*own.overrides, *of_task)
    plan = compose_plan((ZERO_LINE, own.recipe), registry, store, shared)
    facts = plan.facts.task
    chosen_space = space_of(space or facts.form, registry)
    folder = Path(root) / _folder_name(data, plan, registry, store, seed, (*overrides, space))
    claim(folder, KIND)
    samples = sum(count for name, count in facts.samples.items() if name != "test")
    few = samples < FEW and getattr(plan.recipe.task.config, "validation", None) is None
    maker = Maker(
        registry,
        store,
        folder / "trials",
        own.recipe,
        (*shared, f"seed={seed}", "saving.keep=1"),
        tuple(other for other in overrides if other not in of_task),
        FOLDS if few else None,
    )
    runner, jobs = _launcher(launcher, jobs, registry, store)
    metric = plan.recipe.task.config.metric
    say(f"{facts.name}: {_told(facts.samples)}, {'cross-validated' if few else 'one split'}")
    search = Search(
        maker,
        runner,
        jobs,
        clock,
        metric.component.better,
        _folds(few),
        say,
        trials,
    )
    answers = cheap(chosen_space, cheap_methods(registry, facts))
    ladder = rungs(chosen_space, facts.samples["train"])
    search.run(answers, fine_tuning(chosen_space, seed), ladder, chosen_space.width)
    found = search.eligible()
    if not found:
        raise UsageError(_nothing(search.left_out))
    say(f"chosen: {found[0].name}; fitting it on all training samples")
    part = _last(maker, folder, found[0])
    if not part.done:
        search.last_fit(found[0], part)
    looks = len([one for one in folder.glob("model-*") if runs.Run(one).state == "done"])
    fitted = Fitted(
        folder,
        metric.name,
        search.better,
        tuple(map(_entry, found)),
        tuple(_entry(trial) for trial in search.trials if trial.done and trial not in found),
        part.directory,
        part.result["test"]["metric"],
        dict(facts.samples),
        looks,
        clock.spent(),
        dict(search.left_out),
    )
    _record(fitted, shared, seed, seconds, trials)
    return fitted


def _launcher(
    name: str, jobs: int | None, registry: plugins.Registry, store: Store
) -> tuple[Launcher, int]:
    """What runs the trials, and how many of them at a time."""
    if jobs is None and not name:
        jobs = cores()
    here, extra = name or default_launcher(registry), {} if jobs is None else {"jobs": jobs}
    use = choose("launcher", here, registry, "--launcher", extra)
    from xmodal.interfaces import Context  # imports torch, which wrong settings do not wait for

    made: Launcher = use.build(Context.outside(store, "launcher"))
    return made, jobs or made.slots


def _folder_name(
    data: str | Path,
    plan: Plan,
    registry: plugins.Registry,
    store: Store,
    seed: int,
    overrides: Sequence[str],
) -> str:
    """The name of a search: the same for the same data, settings and seed."""
    found = identity(plan.recipe, registry, store).hash
    digest = hashlib.sha256(repr((found, seed, tuple(overrides))).encode()).hexdigest()[:6]
    return f"{runs.valid_name(Path(data).stem) or 'data'}-{digest}"


def _told(samples: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} to {name}" for name, count in zip(
        ("train", "validate", "test"), samples.values(), strict=False
    ))  # fmt: skip


def _folds(few: bool) -> list[range]:
    """The folds of every rung: a lower rung of cross-validation makes do with some of them."""
    if not few:
        return [range(1)] * RUNGS
    return [range(2), range(FOLDS), range(FOLDS * REPETITIONS)]


def _last(maker: Maker, folder: Path, trial: Trial) -> TrialRun:
    """The run of the chosen model: one that is there already, if it is the same, or a new one."""
    taken = sorted(folder.glob("model-*"))
    planned = maker.last(trial, folder / f"model-{len(taken):02}")
    for directory in taken:
        recipe = directory / RECIPE
        if recipe.exists() and recipe.read_text(encoding="utf-8") == planned.text():
            return TrialRun(directory, planned.recipe)
    return planned


def _nothing(left_out: Mapping[str, str]) -> str:
    reasons = "\n".join(f"{name}: {why.splitlines()[0]}" for name, why in left_out.items())
    return f"no trial was finished, so there is nothing to choose\n{reasons}"


def _entry(trial: Trial) -> Line:
    return Line(
        trial.name,
        trial.answer.cheap,
        trial.rung,
        trial.score(),
        trial.seconds(),
        trial.parameters(),
        tuple(str(part.directory) for part in trial.parts),
    )


def _record(
    fitted: Fitted, task: Sequence[str], seed: int, seconds: float | None, trials: int | None
) -> None:
    content = {
        "task": task,
        "seed": seed,
        "limit": {"seconds": seconds, "trials": trials},
        "metric": fitted.metric,
        "better": fitted.better,
        "samples": fitted.samples,
        "leaderboard": [vars(entry) for entry in fitted.entries],
        "lower_rungs": [vars(entry) for entry in fitted.others],
        "model": str(fitted.model),
        "test": fitted.test,
        "looks_at_the_test_split": fitted.looks,
        "seconds": fitted.seconds,
        "left_out": fitted.left_out,
    }
    write_json(fitted.folder / RECORD, json.loads(json.dumps(content, default=str)))
