"""What is compared: names, a suite and options become a grid of cells.

Cells are methods × settings × tasks × seeds, each one run of its own. A cell is planned like any
run, so what cannot work or lacks files is known before anything starts. Its directory is named by
the hash of its resolved recipe: two comparisons share the cells that they have in common.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from xmodal import runs
from xmodal.comparison.published import Published, PublishedNumber, published_numbers
from xmodal.data.store import Store
from xmodal.engine.identity import RunIdentity, identity
from xmodal.engine.plan import compose_plan, fetch_small, missing_files
from xmodal.errors import DataError, PluginError, RecipeError, UsageError, did_you_mean
from xmodal.facts import Facts
from xmodal.plugins import Registry, as_options
from xmodal.recipe.cheap import TRIVIAL, cheap_methods
from xmodal.recipe.lookup import (
    SUITES,
    all_recipes,
    all_suites,
    expanded,
    find_recipe,
    from_anywhere,
    looks_like_path,
)
from xmodal.recipe.messages import explain
from xmodal.recipe.own_data import own_data
from xmodal.recipe.yaml import parse_value, read
from xmodal.settings import Settings
from xmodal.text import MOST_KNOWN, shortlist

METHOD, RIVAL, CONTROL = "method", "rival", "control"
ROLES = (METHOD, RIVAL, CONTROL, TRIVIAL)
MAX_NAME = 60
_OF_TASK = "task."
ALIKE = ("augment", "fraction", "labelled", "protocol")
"""Settings of a comparison that the cheap answers it adds get, too, beside those of the task."""


# --- what is asked for -------------------------------------------------------------------------


class Contender(Settings):
    """A method with settings of its own."""

    use: str = Field(description="The method's recipe.")
    label: str = Field("", description="What to call it; default: the recipe's name.")
    set: tuple[str, ...] = Field((), description="Settings, each key=value.")

    @field_validator("set")
    @classmethod
    def _assignments(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not all(part.strip() for part in (text.partition("=")[0], text.partition("=")[2])):
                raise ValueError(f"'{text}' is not of the form key=value")
        return texts


class Suite(Settings):
    """A grid of runs."""

    description: str = Field("", description="One line for people.")
    methods: tuple[str | Contender, ...] = Field(min_length=1, description="What is compared.")
    tasks: tuple[str, ...] = Field(min_length=1, description="On what.")
    seeds: int = Field(3, ge=1, description="Seeds of every cell.")
    first_seed: int = Field(0, ge=0, description="The first of them, for fresh ones.")
    set: tuple[str, ...] = Field((), description="key=value,value: each value makes a variant.")
    scale: str | None = Field(None, description="A scale layer, put last.")
    fraction: float | None = Field(None, gt=0, le=1, description="Share of the training samples.")
    published: dict[str, Published] = Field(
        default_factory=dict, description="Published numbers, per task."
    )
    published_tables: tuple[str, ...] = Field(
        (),
        description="Files of published numbers to show (recipes/published/*.csv, without .csv); "
        "all that know a task, if there is neither this nor 'published'.",
    )

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The methods, those that are given by name alone included."""
        return tuple(Contender(use=m) if isinstance(m, str) else m for m in self.methods)


@dataclass(frozen=True)
class Request:
    """A comparison that is asked for: a suite, after options have had their say.

    ``command`` repeats it, and ``name`` is that of the folder of its report. Verdicts are asked
    ``against`` one method, or of all pairs. ``trivial``: also run the cheap answers that fit each
    task, which the settings of the suite do not multiply. ``published`` stands beside what is
    measured.
    """

    suite: Suite
    command: str = ""
    name: str = ""
    against: str | None = None
    trivial: bool = False
    plugin_files: tuple[str, ...] = ()
    published: tuple[PublishedNumber, ...] = ()

    def check_against(self, cells: Sequence[Cell]) -> None:
        """Raise UsageError, before anything runs, if ``against`` is none of the methods."""
        known = list(dict.fromkeys(cell.method for cell in cells))
        if self.against is not None and self.against not in known:
            hint = did_you_mean(self.against, known)
            raise UsageError(
                f"--against: '{self.against}' is not compared here{hint}\n"
                f"methods: {shortlist(known, MOST_KNOWN)}"
            )


def requested(
    registry: Registry,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    *,
    suite: str | None = None,
    seeds: int | None = None,
    first_seed: int | None = None,
    settings: Sequence[str] = (),
    scale: str | None = None,
    fraction: float | None = None,
    trivial: bool = True,
    against: str | None = None,
    root: str = "",
    plugin_files: Sequence[str] = (),
) -> Request:
    """A request in the words of the command line; what is not said comes from the suite.

    Raises UsageError if nothing says which methods or tasks, RecipeError for a wrong suite.
    """
    for what, asked, least in (("seeds", seeds, 1), ("first_seed", first_seed, 0)):
        if asked is not None and asked < least:
            raise UsageError(f"{what}: {asked}, and {least} is the least")
    if fraction is not None and not 0 < fraction <= 1:
        raise UsageError(f"fraction: {fraction:g}; it lies above 0 and up to 1")
    none = ("", Suite.model_construct(methods=(), tasks=()))
    name, chosen = none if suite is None else find_suite(suite, registry)
    plain = {"seeds": seeds, "first_seed": first_seed, "scale": scale, "fraction": fraction}
    said = {
        "methods": tuple(dict.fromkeys(methods)),
        "tasks": tuple(dict.fromkeys(tasks)),
        "set": tuple(settings),
        **plain,
    }
    chosen = chosen.model_copy(update={k: v for k, v in said.items() if v or v == 0})
    if not chosen.methods:
        raise UsageError("name the methods to compare, or a suite of them with --suite")
    if not chosen.tasks:
        raise UsageError("name tasks to compare on: --task NAME NAME ...")
    options = {**plain, "against": against, "root": os.path.abspath(root) if root else None}
    words = ["xmodal", "compare", *map(from_anywhere, dict.fromkeys(methods))]
    words += [] if suite is None else ["--suite", from_anywhere(suite)]
    words += ["--task", *map(from_anywhere, dict.fromkeys(tasks))] if tasks else []
    words += ["--set", *settings] if settings else []
    for option, value in options.items():
        words += [] if value is None else [f"--{option.replace('_', '-')}", str(value)]
    words += as_options(plugin_files)
    words += [] if trivial else ["--no-trivial"]
    return Request(
        suite=chosen,
        command=shlex.join(words),
        name=_report_name(chosen, name, tuple(plugin_files)),
        against=against,
        trivial=trivial,
        plugin_files=tuple(plugin_files),
        published=_published(chosen, registry),
    )


def _published(suite: Suite, registry: Registry) -> tuple[PublishedNumber, ...]:
    own = tuple(n for task, one in suite.published.items() for n in one.numbers(task))
    tasks = [task.removeprefix("tasks/") for task in suite.tasks]
    tables = suite.published_tables
    if own and not tables:
        return own
    return own + published_numbers(registry, tasks, tables or None)


def find_suite(reference: str, registry: Registry) -> tuple[str, Suite]:
    """Read a suite, given by name (``table4``) or by file; returns what it is called, too.

    Raises UsageError for a name that does not exist, RecipeError for what is wrong inside.
    """
    if looks_like_path(reference):
        path, name = expanded(reference), Path(reference).stem
        if not os.path.isfile(path):
            raise UsageError(f"no file '{reference}'")
    else:
        name = reference.removeprefix(SUITES)
        known = {f.name.removeprefix(SUITES): f for f in all_suites(registry)}
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(
                f"no suite '{name}'{hint}\nsuites: {shortlist(known, MOST_KNOWN) or 'none'}"
            )
        path = known[name].path
    document = read(path)
    try:
        suite = Suite.model_validate(document.data)
    except ValidationError as error:
        sources = [str(path)]
        raise RecipeError(explain(error, document.data, document.origins, sources)) from None
    return name, _beside(path, suite)


def _beside(file: Path, suite: Suite) -> Suite:
    """The suite with recipes that lie beside its file by their absolute path."""

    def found(recipe: str) -> str:
        path = file.absolute().parent / expanded(recipe)
        return str(path) if looks_like_path(recipe) and os.path.isfile(path) else recipe

    methods = [
        found(one) if isinstance(one, str) else one.model_copy(update={"use": found(one.use)})
        for one in suite.methods
    ]
    tasks = tuple(found(task) for task in suite.tasks)
    return suite.model_copy(update={"methods": tuple(methods), "tasks": tasks})


def _report_name(suite: Suite, name: str, plugin_files: tuple[str, ...]) -> str:
    """Says what is compared; more seeds of the same comparison replace its report."""
    compared = suite.model_dump(exclude={"seeds", "description", "published", "published_tables"})
    digest = hashlib.sha256(repr((compared, plugin_files)).encode()).hexdigest()[:6]
    text = name or "-".join(one.label or Path(one.use).stem for one in suite.contenders)
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', text)[:MAX_NAME].strip('-')}_{digest}"


# --- the cells ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One run of a comparison. ``skipped`` says why it cannot run; then it has no directory.
    ``absent`` says the same, item by item, where it lacks files of the user.

    ``setting`` is what makes it one of several variants of its method. ``epochs`` (of all stages)
    and ``learning_rate`` (of the last stage that has one) are what its stages say they will take.
    ``added``: nobody named its method; it is a cheap answer that the comparison added. ``notes``:
    what was said of its plan.
    """

    method: str
    task: str
    seed: int
    references: tuple[str, ...]
    overrides: tuple[str, ...]
    scale: str | None = None
    setting: tuple[str, ...] = ()
    resolved: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    skipped: str = ""
    absent: tuple[str, ...] = ()
    plugin_files: tuple[str, ...] = ()
    epochs: int = 0
    learning_rate: float | None = None
    added: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the cell is called in messages."""
        return f"{self.method} on {self.task}, seed {self.seed}"

    @property
    def run(self) -> runs.Run:
        """The cell's run; only of cells that are not skipped."""
        assert self.directory is not None
        return runs.Run(self.directory)


@dataclass(frozen=True)
class _Named:
    """A method or a task: what tables call it, its recipe, and what is set.

    ``setting``: which of that makes a method one of several variants.
    """

    label: str
    reference: str
    overrides: tuple[str, ...] = ()
    setting: tuple[str, ...] = ()


def grid(
    request: Request, registry: Registry, store: Store, root: Path, fetch: bool = False
) -> list[Cell]:
    """Every cell, seeds first, so that a grid that is cut short has compared everything once.

    ``fetch``: get small data sets that are missing. Raises UsageError for names that do not exist,
    whatever else is right.
    """
    failed: dict[str, str] | None = {} if fetch else None
    suite = request.suite
    known = {recipe.name for recipe in all_recipes(registry)}
    given = [text for text in suite.set if text.startswith(_OF_TASK) and len(_values(text)) == 1]
    tasks = list(dict.fromkeys(_task(name, known, registry, given) for name in suite.tasks))
    methods: list[_Named] = []
    for contender in suite.contenders:
        for setting in _settings(suite.set):
            methods.append(_method(contender, setting, known, registry))
    methods = list(dict.fromkeys(methods))
    seeds = range(suite.first_seed, suite.first_seed + suite.seeds)
    _check_labels("tasks", tasks)
    _check_labels("methods", methods)
    cells = []
    for task in tasks:

        def planned(method: _Named, task: _Named = task) -> _Planned:
            return _planned(_unplanned(request, method, task, known), registry, store, failed)

        found = [planned(method) for method in methods]
        facts = next((one.facts for one in found if one.facts), None)
        if request.trivial and facts:
            cheap = [
                _method(Contender(use=name), setting, known, registry)
                for name in cheap_methods(registry, facts.task)
                for setting in dict.fromkeys(map(_alike, _settings(suite.set)))
            ]
            cheap = [one for one in cheap if one.reference not in {m.reference for m in methods}]
            _check_labels("methods", [*methods, *cheap])
            added = map(planned, cheap)
            found += [one._replace(cell=replace(one.cell, added=True)) for one in added]
        cells += [_seeded(*one[:2], seed, root) for one in found for seed in seeds]
    return sorted(cells, key=lambda cell: cell.seed)


def _alike(setting: tuple[str, ...]) -> tuple[str, ...]:
    """What of the settings concerns the cheap answers too: training samples, not training."""
    return tuple(t for t in setting if t.partition("=")[0] in ALIKE or t.startswith(_OF_TASK))


def _method(
    contender: Contender, setting: tuple[str, ...], known: set[str], registry: Registry
) -> _Named:
    """A method with one choice of the settings."""
    named = _named(contender.use, "methods", known, registry)
    label = contender.label or named.label
    if setting:
        label = f"{label} [{', '.join(setting)}]"
    return _Named(label, named.reference, (*contender.set, *setting), setting)


def _task(name: str, known: set[str], registry: Registry, given: Sequence[str]) -> _Named:
    """A task, or a data file of the user's own, of which ``given`` says more."""
    own = None if f"tasks/{name}" in known else own_data(name, registry, given)
    if own is None:
        return _named(name, "tasks", known, registry)
    return _Named(own.label, own.recipe, own.overrides)


def _named(name: str, folder: str, known: set[str], registry: Registry) -> _Named:
    """A method or task, given by short name, full name or path."""
    if looks_like_path(name):
        find_recipe(name, registry)
        return _Named(Path(name).stem, name)
    short = name.removeprefix(f"{folder}/")
    if f"{folder}/{short}" in known:
        return _Named(short, f"{folder}/{short}")
    # A recipe below another one is a layer of it.
    own = (n for n in known if n.startswith(f"{folder}/") and n.rpartition("/")[0] not in known)
    offered = sorted(n.removeprefix(f"{folder}/") for n in own if "/scales/" not in n)
    hint = did_you_mean(short, offered)
    listed = f"xmodal recipes list '{folder}/*'" if hint else shortlist(offered, MOST_KNOWN)
    raise UsageError(f"no {folder[:-1]} '{short}'{hint}\n{folder}: {listed}")


def _check_labels(what: str, named: Iterable[_Named]) -> None:
    """Raise UsageError where two would be one in every table and verdict."""
    for label, number in Counter(one.label for one in named).items():
        if number > 1:
            raise UsageError(
                f"{number} {what} are called '{label}', and no table could tell them apart\n"
                "ways out: rename a file, or give a method a label of its own in a suite"
            )


def _settings(texts: Iterable[str]) -> Iterable[tuple[str, ...]]:
    """The product of all values: ``["a=1,2", "b=x"]`` gives (a=1, b=x) and (a=2, b=x)."""
    choices = []
    for text in texts:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip() or not raw.strip():
            raise UsageError(f"--set '{text}' is not of the form key=value,value")
        for value in _values(text):
            parse_value(value, f"--set '{text}'")
        choices.append([f"{key.strip()}={value}" for value in _values(text)])
    return itertools.product(*choices)


def _values(text: str) -> list[str]:
    """The values of ``key=value,value`` as the text they were, so that 1e-4 is shown as 1e-4."""
    return [part.strip() for part in _split(text.partition("=")[2])]


def _split(raw: str) -> list[str]:
    """Split at the commas outside brackets and braces."""
    parts, depth = [""], 0
    for character in raw:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _unplanned(request: Request, method: _Named, task: _Named, known: set[str]) -> Cell:
    """The cell of seed 0 before it is known whether it can run."""
    suite, overrides = request.suite, (*task.overrides, *method.overrides)
    if suite.fraction is not None:
        overrides = (*overrides, f"fraction={suite.fraction}")
    references: tuple[str, ...] = (method.reference, task.reference)
    # A recipe written for this very pair goes before the two together, unless files are given.
    written = f"{Path(method.reference).stem}_{task.label}"
    named = task.reference.startswith("tasks/")  # not a file of that name
    if named and written in known and not any(map(looks_like_path, references)):
        references = (written,)
    return Cell(
        method.label,
        task.label,
        0,
        references,
        overrides,
        suite.scale,
        method.setting,
        plugin_files=request.plugin_files,
    )


class _Planned(NamedTuple):
    """The cell with its recipe, what its run is, and its facts; or with why it cannot run."""

    cell: Cell
    identity: RunIdentity | None = None
    facts: Facts | None = None


def _planned(
    cell: Cell, registry: Registry, store: Store, failed: dict[str, str] | None
) -> _Planned:
    """Plan a cell. ``failed``: why data sets could not be fetched; None: do not try."""
    try:
        plan = compose_plan(cell.references, registry, store, cell.overrides, cell.scale)
        tried = [] if failed is None else fetch_small(plan, store, failed)
        absent = missing_files(plan, store)
        if absent:
            lacks = (*tried, *absent)
            lacking = replace(cell, skipped="\n".join(lacks), absent=lacks)
            return _Planned(lacking, None, plan.facts)
        found = identity(plan.recipe, registry, store)
    except RecipeError as error:
        first = error.problems[0]
        return _Planned(replace(cell, skipped=f"{first.key}: {first.message}"))
    except (DataError, PluginError) as error:
        return _Planned(replace(cell, skipped=str(error)))
    resolved = plan.recipe.model_dump(mode="json") | {"method": cell.method}
    cell = replace(
        cell,
        resolved=resolved,
        epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        notes=plan.notes,
    )
    return _Planned(cell, found, plan.facts)


def _seeded(cell: Cell, found: RunIdentity | None, seed: int, root: Path) -> Cell:
    """The cell of a seed; with a directory, if it can run."""
    cell = replace(cell, seed=seed, overrides=(*cell.overrides, f"seed={seed}"))
    if found is None:
        return cell
    method = cell.method.split(" [")[0]
    name = f"seed{seed}-{found.at(seed).hash[:10]}"
    folder = root / _file_name(cell.task) / _file_name(method) / name
    return replace(cell, resolved={**cell.resolved, "seed": seed}, directory=folder)


def _file_name(label: str) -> str:
    """The name of a folder inside of the root, without spaces: scripts of clusters hold it."""
    return runs.valid_name(re.sub(r"[^\w.+-]+", "-", label)) or "unnamed"
