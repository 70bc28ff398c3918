"""The cells of a comparison: methods × settings × tasks × seeds, each one run of its own.

A cell is planned like any run, so what cannot work or lacks files is known before anything starts.
Its directory is named by the hash of its resolved recipe: two comparisons share what they share.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from xmodal import runs
from xmodal.data import files
from xmodal.data.store import Store
from xmodal.engine.directory import versions
from xmodal.engine.plan import compose_plan, missing_files
from xmodal.errors import DataError, PluginError, RecipeError, UsageError, did_you_mean
from xmodal.plugins import Registry
from xmodal.recipe import library
from xmodal.recipe.yaml import parse_value


@dataclass(frozen=True)
class Contender:
    """A method of a comparison: a recipe, and ``key=value`` texts that make it what it is.

    ``label`` is how it is called, by default the recipe's name. Not ``varied``: the settings of the
    request make no variants of it.
    """

    reference: str
    label: str = ""
    overrides: tuple[str, ...] = ()
    varied: bool = True


@dataclass(frozen=True)
class Request:
    """What to compare. ``settings`` holds ``key=value,value`` texts; their product is taken."""

    methods: tuple[str | Contender, ...]
    tasks: tuple[str, ...]
    settings: tuple[str, ...] = ()
    seeds: int = 3
    scale: str | None = None
    fraction: float | None = None
    plugin_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a comparison. ``skipped`` says why it cannot run; then it has no directory.

    ``setting`` is what makes it one of several variants of its method.
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
    plugin_files: tuple[str, ...] = ()

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
    label: str
    reference: str


def grid(request: Request, registry: Registry, store: Store, root: Path) -> list[Cell]:
    """Every cell, seeds first, so that a grid that is cut short has compared everything once.

    Raises UsageError for names that do not exist, whatever else is right.
    """
    known = {recipe.name for recipe in library.all_recipes(registry)}
    tasks = [_named(name, "tasks", known, registry) for name in request.tasks]
    tasks = list(dict.fromkeys(tasks))
    variants: list[tuple[Contender, tuple[str, ...]]] = []
    for method in request.methods:
        contender = method if isinstance(method, Contender) else Contender(method)
        named = _named(contender.reference, "methods", known, registry)
        label = contender.label or named.label
        contender = replace(contender, reference=named.reference, label=label)
        settings = _settings(request.settings) if contender.varied else [()]
        variants += [(contender, setting) for setting in settings]
    variants = list(dict.fromkeys(variants))
    _told_apart("tasks", (task.label for task in tasks))
    _told_apart("methods", (_label(*variant) for variant in variants))
    contents = cache(files.contents)  # several methods read the data of one task
    cells = []
    for task, variant in itertools.product(tasks, variants):
        cell = _wanted(request, *variant, task, known)
        plan = _plan(cell, registry, store, contents)
        cells += [_seeded(cell, plan, seed, root) for seed in range(request.seeds)]
    return sorted(cells, key=lambda cell: cell.seed)


def _told_apart(what: str, labels: Iterable[str]) -> None:
    """Raise UsageError where two would be one in every table and verdict."""
    for label, number in Counter(labels).items():
        if number > 1:
            raise UsageError(
                f"{number} {what} are called '{label}', and no table could tell them apart\n"
                "ways out: rename a file, or give a method a label of its own in a suite"
            )


def _named(name: str, folder: str, known: set[str], registry: Registry) -> _Named:
    """A method or task, given by short name, full name or path."""
    if library.looks_like_path(name):
        library.find(name, registry)
        return _Named(Path(name).stem, name)
    short = name.removeprefix(f"{folder}/")
    if f"{folder}/{short}" in known:
        return _Named(short, f"{folder}/{short}")
    offered = sorted(n.removeprefix(f"{folder}/") for n in known if n.startswith(f"{folder}/"))
    hint = did_you_mean(short, offered)
    raise UsageError(f"no {folder[:-1]} '{short}'{hint}\n{folder}: {', '.join(offered)}")


def _settings(texts: Iterable[str]) -> Iterable[tuple[str, ...]]:
    """The product of all values: ``["a=1,2", "b=x"]`` gives (a=1, b=x) and (a=2, b=x)."""
    choices = []
    for text in texts:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip() or not raw.strip():
            raise UsageError(f"--set '{text}' is not of the form key=value,value")
        # The values stay the text they were, so that 1e-4 is shown as 1e-4.
        values = [part.strip() for part in _split(raw)]
        for value in values:
            parse_value(value, f"--set '{text}'")
        choices.append([f"{key.strip()}={value}" for value in values])
    return itertools.product(*choices)


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


def _wanted(
    request: Request,
    contender: Contender,
    setting: tuple[str, ...],
    task: _Named,
    known: set[str],
) -> Cell:
    """The cell of seed 0 before it is known whether it can run."""
    overrides = [*contender.overrides, *setting]
    if request.fraction is not None:
        overrides.append(f"fraction={request.fraction}")
    references: tuple[str, ...] = (contender.reference, task.reference)
    # A recipe that was written for this pair says more than the two do together; a file is meant.
    written = f"{Path(contender.reference).stem}_{task.label}"
    if written in known and not any(map(library.looks_like_path, references)):
        references = (written,)
    return Cell(
        _label(contender, setting),
        task.label,
        0,
        references,
        tuple(overrides),
        request.scale,
        setting,
        plugin_files=request.plugin_files,
    )


def _label(contender: Contender, setting: tuple[str, ...]) -> str:
    return f"{contender.label} [{', '.join(setting)}]" if setting else contender.label


@dataclass(frozen=True)
class _Plan:
    """What the cells of a method and a task share, whatever their seed, or why they cannot run."""

    skipped: str = ""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    components: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)


def _plan(cell: Cell, registry: Registry, store: Store, contents: Callable[[Path], str]) -> _Plan:
    try:
        made = compose_plan(cell.references, registry, store, cell.overrides, cell.scale)
        absent = missing_files(made, store)
    except RecipeError as error:
        first = error.problems[0]
        return _Plan(f"{first.key}: {first.message}")
    except (DataError, PluginError) as error:
        return _Plan(str(error))
    if absent:
        return _Plan("\n".join(absent))
    data = {key: contents(path) for key, path in _paths(made.recipe.task.config.model_dump())}
    return _Plan("", made.recipe.model_dump(mode="json"), versions(made, registry), data)


def _seeded(cell: Cell, plan: _Plan, seed: int, root: Path) -> Cell:
    """The cell of a seed with its resolved recipe and directory, or why it cannot run."""
    cell = replace(cell, seed=seed, overrides=(*cell.overrides, f"seed={seed}"))
    if plan.skipped:
        return replace(cell, skipped=plan.skipped)
    resolved = {**plan.resolved, "seed": seed}
    digest = runs.content_hash(resolved, plan.components, plan.data)
    method = cell.method.split(" [")[0]
    folder = root / _file_name(cell.task) / _file_name(method) / f"seed{seed}-{digest[:10]}"
    return replace(cell, resolved=resolved, directory=folder)


def _paths(settings: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The user's own files and folders that settings of a task name."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", path) for inner, path in _paths(value))
        elif isinstance(value, Path) or (key == "path" and value):
            yield key, Path(value).expanduser()


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label)
