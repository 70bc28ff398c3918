"""What was asked for: names, a suite and options become one request, and the command for it."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xmodal.compare import suites
from xmodal.compare.cells import Cell, Contender, Request
from xmodal.compare.suites import Published
from xmodal.errors import RecipeError, UsageError, did_you_mean
from xmodal.interfaces import Launcher, Settings
from xmodal.plugins import Registry
from xmodal.recipe import library
from xmodal.recipe.explain import explain
from xmodal.recipe.use import Use
from xmodal.recipe.yaml import Origin, Path_, parse_value, read

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
    named = None if wanted.suite is None else suites.find(wanted.suite, registry)
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
    name = _name(request, None if named is None else named.name)
    extra = trivial_method(registry) if wanted.trivial else None
    if extra is not None and extra.reference not in {
        contender.reference.removeprefix("methods/") for contender in contenders
    }:
        request = replace(request, methods=(*request.methods, extra))
    published = suite.published if suite else {}
    return Requested(request, wanted.command, name, wanted.against, published)


def _name(request: Request, suite: str | None) -> str:
    """Says what is compared; more seeds of the same comparison replace its report."""
    digest = hashlib.sha256(repr(replace(request, seeds=0)).encode()).hexdigest()[:6]
    labels = [m.label or Path(m.reference).stem for m in request.methods if not isinstance(m, str)]
    text = suite or "-".join(labels)
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', text)[:MAX_NAME].strip('-')}_{digest}"


def trivial_method(registry: Registry) -> Contender | None:
    """The installed method that says it is the trivial answer; the first, if there are several."""
    for found in library.all_recipes(registry):
        if found.name.startswith("methods/") and read(found.path).data.get("role") == TRIVIAL:
            return Contender(found.name.removeprefix("methods/"), varied=False)
    return None


# --- the launcher ------------------------------------------------------------------------------


class _Where(Settings):
    launcher: Use[Launcher]


def launcher_block(
    text: str, extra: Mapping[str, Any], registry: Registry
) -> tuple[type[Launcher], Any]:
    """The class and settings of a launcher, given as a name, a block ``{use: ...}`` or its file.

    ``extra`` settings are added. Raises RecipeError with every problem.
    """
    where = "--launcher"
    value = parse_value(text, where)
    origins: dict[Path_, Origin] = {}
    if isinstance(value, str) and library.looks_like_path(value):
        document = read(Path(value).expanduser())
        where, value = value, document.data
        origins = {("launcher", *path): origin for path, origin in document.origins.items()}
    if isinstance(value, str):
        value = {"use": value}
    if isinstance(value, dict):
        value = {**value, **extra}
    data = {"launcher": value}
    try:
        chosen = _Where.model_validate(data, context={"registry": registry}).launcher
    except ValidationError as error:
        raise RecipeError(explain(error, data, origins, [where])) from None
    return chosen.component, chosen.config
