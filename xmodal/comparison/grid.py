"""What is compared: names, a suite and options become a grid of cells.

Cells are methods × settings × tasks × seeds, each one run of its own. A cell is planned like any
run, so what cannot work or lacks files is known before anything starts. Its directory is named by
the hash of its resolved recipe: two comparisons share what they share.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator

from xmodal import files, runs
from xmodal.data.store import Store
from xmodal.engine.plan import compose_plan, missing_files
from xmodal.errors import DataError, PluginError, RecipeError, UsageError, did_you_mean
from xmodal.plugins import Registry
from xmodal.recipe.compose import SUITES, all_recipes, all_suites, find_recipe, looks_like_path
from xmodal.recipe.messages import explain
from xmodal.recipe.yaml import parse_value, read
from xmodal.settings import Kind, Settings

if TYPE_CHECKING:
    from xmodal.interfaces import Launcher
else:  # the interfaces import torch; names and options are checked without it
    Launcher = Kind("launcher")


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
class _Resolved:
    label: str
    reference: str


def grid(request: Request, registry: Registry, store: Store, root: Path) -> list[Cell]:
    """Every cell, seeds first, so that a grid that is cut short has compared everything once.

    Raises UsageError for names that do not exist, whatever else is right.
    """
    known = {recipe.name for recipe in all_recipes(registry)}
    tasks = [_resolved_name(name, "tasks", known, registry) for name in request.tasks]
    tasks = list(dict.fromkeys(tasks))
    variants: list[tuple[Contender, tuple[str, ...]]] = []
    for method in request.methods:
        contender = method if isinstance(method, Contender) else Contender(method)
        named = _resolved_name(contender.reference, "methods", known, registry)
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


def _resolved_name(name: str, folder: str, known: set[str], registry: Registry) -> _Resolved:
    """A method or task, given by short name, full name or path."""
    if looks_like_path(name):
        find_recipe(name, registry)
        return _Resolved(Path(name).stem, name)
    short = name.removeprefix(f"{folder}/")
    if f"{folder}/{short}" in known:
        return _Resolved(short, f"{folder}/{short}")
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
    task: _Resolved,
    known: set[str],
) -> Cell:
    """The cell of seed 0 before it is known whether it can run."""
    overrides = [*contender.overrides, *setting]
    if request.fraction is not None:
        overrides.append(f"fraction={request.fraction}")
    references: tuple[str, ...] = (contender.reference, task.reference)
    # A recipe that was written for this pair says more than the two do together; a file is meant.
    written = f"{Path(contender.reference).stem}_{task.label}"
    if written in known and not any(map(looks_like_path, references)):
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
    from xmodal.engine.directory import versions

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


class Variant(Settings):
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


class Published(Settings):
    """Numbers that somebody else reports for a task; shown apart from ours, never weighed."""

    source: str = Field(description="Where they stand.")
    metric: str = Field(description="What they are.")
    errors: dict[str, float] = Field(description="The error of each method, as printed.")


class Suite(Settings):
    """A grid of runs."""

    description: str = Field("", description="One line for people.")
    methods: tuple[str | Variant, ...] = Field(min_length=1, description="What is compared.")
    tasks: tuple[str, ...] = Field(min_length=1, description="On what.")
    seeds: int = Field(3, ge=1, description="Seeds of every cell, from 0.")
    set: tuple[str, ...] = Field((), description="key=value,value: each value makes a variant.")
    scale: str | None = Field(None, description="A scale layer, put last.")
    fraction: float | None = Field(None, gt=0, le=1, description="Share of the training samples.")
    published: dict[str, Published] = Field(
        default_factory=dict, description="Published numbers, per task."
    )

    def contenders(self) -> tuple[Contender, ...]:
        """The methods."""
        return tuple(
            Contender(method)
            if isinstance(method, str)
            else Contender(method.use, method.label, method.set)
            for method in self.methods
        )


@dataclass(frozen=True)
class NamedSuite:
    """A suite and what it is called."""

    name: str
    suite: Suite


def find_suite(reference: str, registry: Registry) -> NamedSuite:
    """Read a suite, given by name (``table4``) or by file.

    Raises UsageError for a name that does not exist, RecipeError for what is wrong inside.
    """
    if looks_like_path(reference):
        path, name = Path(reference).expanduser(), Path(reference).stem
        if not path.is_file():
            raise UsageError(f"no file '{reference}'")
    else:
        name = reference.removeprefix(SUITES)
        known = {f.name.removeprefix(SUITES): f for f in all_suites(registry)}
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"no suite '{name}'{hint}\nsuites: {', '.join(known) or 'none'}")
        path = known[name].path
    document = read(path)
    try:
        return NamedSuite(name, Suite.model_validate(document.data))
    except ValidationError as error:
        files = [str(path)]
        raise RecipeError(explain(error, document.data, document.origins, files)) from None


METHOD, CONTROL, TRIVIAL = "method", "control", "trivial"
SEEDS = 3
MAX_NAME = 60


@dataclass(frozen=True)
class Wanted:
    """The words of a comparison. What is None or empty is left to the suite, or to a default."""

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    suite: str | None = None
    seeds: int | None = None
    settings: tuple[str, ...] = ()
    scale: str | None = None
    fraction: float | None = None
    trivial: bool = True
    against: str | None = None
    root: str = ""
    plugin_files: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What to type to get the same comparison."""
        words = ["xmodal", "compare", *self.methods]
        if self.suite is not None:
            words += ["--suite", self.suite]
        if self.tasks:
            words += ["--task", *self.tasks]
        if self.settings:
            words += ["--set", *self.settings]
        options = {
            "--seeds": self.seeds,
            "--scale": self.scale,
            "--fraction": self.fraction,
            "--against": self.against,
            "--root": self.root or None,
        }
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        for file in self.plugin_files:
            words += ["--plugin", file]
        return shlex.join(words if self.trivial else [*words, "--no-trivial"])

    def check(self) -> None:
        """Raise UsageError for numbers that mean nothing."""
        if self.seeds is not None and self.seeds < 1:
            raise UsageError(f"seeds: {self.seeds}, and one is the least")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(f"fraction: {self.fraction:g}; it lies above 0 and up to 1")


@dataclass(frozen=True)
class Requested:
    """A request, ready for its cells. ``name`` is that of the folder of its report."""

    request: Request
    command: str
    name: str
    against: str | None = None
    published: Mapping[str, Published] = field(default_factory=dict)

    def check_against(self, cells: Sequence[Cell]) -> None:
        """Raise UsageError, before anything runs, if ``against`` is none of the methods."""
        known = list(dict.fromkeys(cell.method for cell in cells))
        if self.against is not None and self.against not in known:
            hint = did_you_mean(self.against, known)
            raise UsageError(
                f"--against: '{self.against}' is not compared here{hint}\n"
                f"methods: {', '.join(known)}"
            )


def requested(wanted: Wanted, registry: Registry) -> Requested:
    """Fill what is not said from the suite and from defaults.

    Raises UsageError if nothing says which methods or tasks, RecipeError for a wrong suite.
    """
    wanted.check()
    named = None if wanted.suite is None else find_suite(wanted.suite, registry)
    suite = None if named is None else named.suite
    methods: tuple[str | Contender, ...] = wanted.methods or (suite.contenders() if suite else ())
    tasks = wanted.tasks or (suite.tasks if suite else ())
    if not methods:
        raise UsageError("name the methods to compare, or a suite of them with --suite")
    if not tasks:
        raise UsageError("name tasks to compare on: --task NAME NAME ...")
    contenders = tuple(m if isinstance(m, Contender) else Contender(m) for m in methods)
    seeds = wanted.seeds or (suite.seeds if suite else SEEDS)
    request = Request(
        methods=contenders,
        tasks=tasks,
        settings=wanted.settings or (suite.set if suite else ()),
        seeds=seeds,
        scale=wanted.scale or (suite.scale if suite else None),
        fraction=wanted.fraction or (suite.fraction if suite else None),
        plugin_files=wanted.plugin_files,
    )
    name = _report_name(request, None if named is None else named.name)
    extra = trivial_method(registry) if wanted.trivial else None
    if extra is not None and extra.reference not in {
        contender.reference.removeprefix("methods/") for contender in contenders
    }:
        request = replace(request, methods=(*request.methods, extra))
    published = suite.published if suite else {}
    return Requested(request, wanted.command, name, wanted.against, published)


def _report_name(request: Request, suite: str | None) -> str:
    """Says what is compared; more seeds of the same comparison replace its report."""
    digest = hashlib.sha256(repr(replace(request, seeds=0)).encode()).hexdigest()[:6]
    labels = [m.label or Path(m.reference).stem for m in request.methods if not isinstance(m, str)]
    text = suite or "-".join(labels)
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', text)[:MAX_NAME].strip('-')}_{digest}"


def trivial_method(registry: Registry) -> Contender | None:
    """The installed method that says it is the trivial answer; the first, if there are several."""
    for found in all_recipes(registry):
        if found.name.startswith("methods/") and read(found.path).data.get("role") == TRIVIAL:
            return Contender(found.name.removeprefix("methods/"), varied=False)
    return None
