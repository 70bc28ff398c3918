"""``fit``: the best model for a data file, in the time that there is, and how good it is.

The folder of a search holds ``fit.json`` (everything), ``trials/`` (ordinary runs, which no test
sample has reached) and ``models/``: the chosen model, fitted on all training samples and tested
once, and the cheap answer that it is held against. The same command continues a search that was
interrupted, or goes on with more time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal import plugins, runs
from xmodal.advice import Advice, muted, of_a_search
from xmodal.assess import Against, Judgement
from xmodal.comparison.run import default_launcher
from xmodal.data.datasets import cores
from xmodal.data.store import Store
from xmodal.engine.build import Builder, multiplies_bf16
from xmodal.engine.identity import data_of, identity
from xmodal.engine.plan import Plan, compose_plan
from xmodal.errors import DataError, UsageError, file_errors
from xmodal.files import claim, write_json
from xmodal.recipe.cheap import cheap_methods
from xmodal.recipe.choice import choose
from xmodal.recipe.own_data import own_data
from xmodal.search.board import Line, leaderboard, line, verdict
from xmodal.search.clock import Clock
from xmodal.search.last import ZERO_LINE, LastFits, looks, looks_elsewhere
from xmodal.search.mixture import Mixture, mixture
from xmodal.search.pooled import Pool
from xmodal.search.search import TOO_LATE, Limits, Search
from xmodal.search.space import (
    RUNGS,
    Space,
    as_overrides,
    cheap,
    fine_tuning,
    preset_of,
    rungs,
    space_of,
)
from xmodal.search.trials import MODELS, Maker, Trial

if TYPE_CHECKING:
    from xmodal.interfaces import Launcher

ROOT = Path("fits")
KIND = "fit"
"""The kind of folder that a search is; see ``xmodal.files.claim``."""
FEW = 500
"""Below so many samples to train and validate, selection is by repeated cross-validation."""
FOLDS = 5
USUAL = "good"
"""The preset, if none is named."""
SPARE = 3
"""Last fits that time is kept for, where an ensemble may be chosen."""
PRECISION = "precision"
RATE = "training.optimizer.lr"
"""The setting that a space gives learning rates under."""
EXPORTS = (
    "any of what is tried can predict; only networks, linear models and kernels can be exported, "
    "and no ensemble"
)


@dataclass(frozen=True)
class Fitted:
    """What a search found.

    ``entries``: what could be chosen, best first: an ensemble, if one is better than every trial,
    and trials. ``others``: trials on lower rungs. ``verdict``: in words, on the validation samples;
    ``lead`` is what it rests on. ``model``: the folder of the chosen one, a run or an ensemble.
    ``tested``: its score on the test samples, with its interval and how it stands against cheap
    answers. The test samples have been looked at by ``looks`` runs; those of other searches of the
    same data beside this one by ``looks_elsewhere`` more. ``left_out``: why what was not tried was
    not.
    """

    folder: Path
    metric: str
    better: str
    entries: tuple[Line, ...]
    others: tuple[Line, ...]
    verdict: str
    lead: Against | None
    model: Path
    tested: Judgement
    samples: Mapping[str, int]
    looks: int
    seconds: float
    left_out: Mapping[str, str]
    advice: tuple[Advice, ...] = ()
    looks_elsewhere: int = 0

    @property
    def looked(self) -> str:
        """How often the test samples were looked at, in words."""
        words = "once" if self.looks == 1 else f"by {self.looks} runs"
        if self.looks_elsewhere:
            words += f", and by {self.looks_elsewhere} of other searches of these data"
        return words

    @property
    def chosen(self) -> Line:
        """The best one on validation."""
        return self.entries[0]

    @property
    def best_cheap(self) -> Line | None:
        """The best cheap answer."""
        return next((entry for entry in self.entries if entry.cheap), None)

    @property
    def test(self) -> float | None:
        """The score on the test samples."""
        return self.tested.metric


@file_errors()
def fit(
    data: str | Path,
    *,
    test: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    common: Sequence[str] = (),
    seconds: float | None = None,
    trials: int | None = None,
    seed: int = 0,
    space: str = "",
    jobs: int | None = None,
    launcher: str = "",
    memory: int | None = None,
    latency: float | None = None,
    ensemble: bool = True,
    preset: str = USUAL,
    root: str | Path = ROOT,
    begun: float | None = None,
    plugin_files: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """Search for the best model of ``data`` within ``seconds``, or with so many ``trials``.

    ``data``: a file or folder as task ``arrays`` reads it, with ``settings`` of that task (``y``,
    ``group``, ``metric``, ...). ``test``: a file of test samples; otherwise some are set apart.
    ``overrides``: settings ``key=value`` of the trials that train, and of all if they are of the
    task. ``common``: settings of all trials. ``space``: what to search, a name or a file; default:
    that of the form of the data. ``preset``: how thorough to be, a name or a file. ``jobs``: runs
    at a time. ``launcher``: where they run, as in ``xmodal.compare``. ``memory``: the most bytes
    that a run may take, and ``latency`` the most seconds to predict a sample, of what is chosen.
    ``ensemble``: whether several trials together may be chosen. ``begun``: when the time began, by
    ``time.monotonic``; default: now. Raises UsageError, DataError and RecipeError.
    """
    if (seconds is None) == (trials is None):
        raise UsageError("say either how much time there is, or how many trials to make")
    clock = Clock(seconds) if begun is None else Clock(seconds, begun)
    registry, store = plugins.registry(tuple(plugin_files)), Store()
    if seconds is not None and _faster_in_bf16(launcher, (*overrides, *common)):
        # Of the cheap answers too: features of a frozen backbone take longest of them.
        common = (*common, f"{PRECISION}=bf16")
        say("networks compute in bf16, which is faster here; precision=fp32 turns it off")
    asked = {**(settings or {}), **({} if test is None else {"test": str(Path(test).absolute())})}
    given = (*as_overrides({f"task.{key}": value for key, value in asked.items()}), *overrides)
    own = own_data(str(data), registry, given)
    if own is None:
        raise UsageError(f"{data} is not a data file that an installed plugin reads")
    of_task = tuple(override for override in given if override.startswith("task."))
    shared = (*own.overrides, *of_task, *common)
    plan = compose_plan((ZERO_LINE, own.recipe), registry, store, shared)
    facts = plan.facts.task
    how = preset_of(preset, registry)
    chosen_space = how.over(space_of(space or facts.form, registry)).without(overrides)
    ensemble = ensemble and how.ensemble
    folder = Path(root) / _folder_name(data, plan, registry, store, seed, (*overrides, space))
    samples = sum(count for name, count in facts.samples.items() if name != "test")
    task = plan.recipe.task.config
    if getattr(task, "validation", None) is None and getattr(task, "split", (0, 1))[1] == 0:
        raise UsageError("task.split leaves no validation samples, which a search is judged on")
    in_time = getattr(task, "time", None) is not None
    data_digest = data_of(plan.recipe, store)
    folds = _possible_folds((ZERO_LINE, own.recipe), registry, store, shared, samples, say)
    claim(folder, KIND)
    maker = Maker(
        registry,
        store,
        folder,
        own.recipe,
        (*shared, f"seed={seed}", "saving.keep=1"),
        tuple(other for other in overrides if other not in of_task),
        folds,
    )
    runner, jobs = _launcher(launcher, jobs, registry, store)
    metric = task.metric
    how_judged = "one split" if folds is None else "cross-validated"
    say(f"{facts.name}: {_told(facts.samples)}, {how_judged}")
    say(EXPORTS)
    search = Search(
        maker,
        runner,
        jobs,
        clock,
        metric.component.better,
        _folds(maker.folds, in_time, how.repetitions),
        say,
        trials,
        Limits(memory, latency),
        SPARE if ensemble else 1,
        tuple(map(str, plugin_files)),
    )
    # The zero line comes first: it takes no time, and even the shortest search has an answer.
    trivial = sorted(cheap_methods(registry, facts), key=lambda name: name != ZERO_LINE)
    answers = cheap(chosen_space, trivial)
    ladder = rungs(chosen_space, facts.samples["train"])
    search.run(answers, fine_tuning(chosen_space, seed), ladder, chosen_space.width)
    found = search.eligible()
    if not found:
        raise UsageError(_nothing(search.left_out))
    pool = Pool(plan, seed)
    mixed = _mixture(search, pool, found, seed) if ensemble else None
    entries = leaderboard(pool, found, mixed)
    tried = len({trial.answer.name for trial in search.trials if not trial.answer.cheap})
    said = verdict(pool, found, mixed, metric.name, tried)
    say(f"chosen: {entries[0].name}; fitting it on all training samples")
    last = LastFits(search, pool, folder / MODELS)
    model, tested = last.tested(found, mixed)
    fitted = Fitted(
        folder,
        metric.name,
        search.better,
        entries,
        tuple(line(trial) for trial in search.trials if trial.done and trial not in found),
        said.words,
        said.lead,
        model,
        tested,
        dict(facts.samples),
        looks(folder / MODELS),
        clock.spent(),
        dict(search.left_out),
        tuple(_advice(search, found[0], chosen_space, seconds, plan.recipe.ignore)),
        looks_elsewhere(folder, data_digest),
    )
    _record(fitted, shared, seed, seconds, trials, data_digest)
    return fitted


def _faster_in_bf16(launcher: str, overrides: Sequence[str]) -> bool:
    """Whether trials run on this machine, which has bf16, and the user has not chosen."""
    import torch

    chosen = {text.partition("=")[0].strip() for text in overrides} & {PRECISION, "device"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return not launcher and not chosen and multiplies_bf16(device)


def _mixture(search: Search, pool: Pool, found: Sequence[Trial], seed: int) -> Mixture | None:
    """An ensemble, if one is better than all trials and there is time to fit its members."""
    made = mixture(pool, found, seed)
    if made is None:
        return None
    waits = [trial.latency() for trial, _ in made.members]
    most = search.limits.latency
    if most is not None and sum(wait or 0.0 for wait in waits) > most:
        search.left_out[made.name] = "it takes longer than --max-latency allows"
        return None
    if not search.in_time([trial for trial, _ in made.members]):
        search.left_out[made.name] = TOO_LATE
        return None
    return made


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
    words = {"train": "to train", "validation": "to validate", "test": "to test"}
    return ", ".join(f"{samples[name]:,} {said}" for name, said in words.items() if name in samples)


def _possible_folds(
    recipes: Sequence[str],
    registry: plugins.Registry,
    store: Store,
    shared: Sequence[str],
    samples: int,
    say: Callable[[str], None],
) -> int | None:
    """How many folds cross-validate few samples; None for many, and where a fold cannot train.

    Groups, an order in time or rare classes can leave a fold without what it needs, and there is
    nothing to fold beside a validation file.
    """
    if samples >= FEW:
        return None
    most, why = min(FOLDS, max(2, samples // 2)), ""
    for folds in range(most, 1, -1):
        try:
            for fold in range(folds):
                cut = {"task.folds": folds, "task.fold": fold, "task.test_apart": True}
                made = compose_plan(recipes, registry, store, (*as_overrides(cut), *shared))
                Builder(made, store, lambda line: None).data()
        except DataError as error:
            why = why or str(error).splitlines()[0]
            continue
        return folds
    say(f"no cross-validation: {why}")
    return None


def _folds(folds: int | None, in_time: bool, repetitions: int) -> list[Sequence[int]]:
    """The folds of every rung: a lower rung of cross-validation makes do with some of them."""
    if folds is None:
        return [range(1)] * RUNGS
    if in_time:  # the last folds have the most to train on; their order cannot be drawn anew
        return [range(folds - 2, folds), range(folds), range(folds)]
    return [range(2), range(folds), range(folds * repetitions)]


def _nothing(left_out: Mapping[str, str]) -> str:
    reasons = "\n".join(f"{name}: {why.splitlines()[0]}" for name, why in left_out.items())
    return f"no trial was finished, so there is nothing to choose\n{reasons}"


def _advice(
    search: Search,
    chosen: Trial,
    space: Space,
    seconds: float | None,
    ignored: Sequence[str],
) -> list[Advice]:
    """What the search suggests to do next."""
    rates = [float(rate) for rate in space.choices.get(RATE, ())]
    rate = None if chosen.answer.cheap else chosen.answer.settings.get(RATE)
    late = [name for name, why in search.left_out.items() if why == TOO_LATE]
    found = of_a_search(late, None if rate is None else float(rate), rates, seconds)
    return muted(found, ignored)


def _record(
    fitted: Fitted,
    task: Sequence[str],
    seed: int,
    seconds: float | None,
    trials: int | None,
    data: str,
) -> None:
    content = {
        "data": data,
        "task": task,
        "seed": seed,
        "limit": {"seconds": seconds, "trials": trials},
        "metric": fitted.metric,
        "better": fitted.better,
        "samples": fitted.samples,
        "leaderboard": [entry.plain() for entry in fitted.entries],
        "lower_rungs": [entry.plain() for entry in fitted.others],
        "verdict": fitted.verdict,
        "lead": None if fitted.lead is None else asdict(fitted.lead),
        "model": fitted.model.relative_to(fitted.folder).as_posix(),
        "test": asdict(fitted.tested),
        "looks_at_the_test_split": fitted.looks,
        "looks_of_other_searches": fitted.looks_elsewhere,
        "seconds": fitted.seconds,
        "left_out": fitted.left_out,
        "advice": [vars(one) for one in fitted.advice],
    }
    write_json(fitted.folder / runs.SEARCH, json.loads(json.dumps(content, default=str)))
