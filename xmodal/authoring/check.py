"""Checks a plugin package from end to end, and tells for every failure what to fix.

A part is tried in a method that uses its kind, on a small task that needs no files.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from xmodal import plugins
from xmodal.errors import PluginError, UsageError, XModalError, did_you_mean
from xmodal.plugins import Entry, LoadedPlugin, Registry

PLAIN, MIXING, ALIGNING = "methods/nft", "methods/pare", "methods/orca"
TRIALS: Mapping[str, tuple[str, str]] = {
    "mixer": (MIXING, "mixer={name}"),
    "selector": (MIXING, "selector={name}"),
    "scheduler": (MIXING, "scheduler={name}"),
    "source": (MIXING, "source={name}"),
    "distance": (ALIGNING, "stages.0.distance={name}"),
    "embedder": (PLAIN, "embedder={name}"),
    "predictor": (PLAIN, "predictor={name}"),
    "backbone": (PLAIN, "backbone={name}"),
    "adapter": (PLAIN, "adapter={name}"),
    "stage": (PLAIN, "stages=[{name}]"),
    "loss": (PLAIN, "task.loss={name}"),
    "metric": (PLAIN, "task.metric={name}"),
    "tracker": (PLAIN, "trackers=[{name}]"),
    "task": (PLAIN, "task={name}"),
}
"""For each kind of part: a method that uses it, and the override that inserts the part."""
TASKS = ("tasks/darcy", "tasks/openml/balance-scale")
SEQUENCES = "arrays/sequence"
"""A recipe that reads sequences from a file, which this module writes."""
SCALE = "smoke"


@dataclass(frozen=True)
class Step:
    """One check: ``run`` raises ``Skip`` to skip it, or any other error if it fails.

    It may return what is worth knowing though nothing has to be mended.
    """

    label: str
    run: Callable[[], str | None]


class Skip(Exception):
    """Raised by a step that cannot be run, with the reason."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step; ``line`` tells what to know, why it was skipped or what to fix."""

    state: Literal["ok", "skipped", "mend"]
    line: str = ""


@dataclass(frozen=True)
class Package:
    """The package to check: its plugins, their components and recipes, and its test folder."""

    name: str
    registry: Registry
    loaded: tuple[LoadedPlugin, ...] = ()
    entries: tuple[Entry, ...] = ()
    broken: tuple[str, ...] = ()
    folder: Path | None = None
    files: tuple[str, ...] = ()


def taken(step: Step) -> StepResult:
    """Run a step, and discard its printed output."""
    try:
        with redirect_stdout(StringIO()):
            remark = step.run()
    except Skip as reason:
        return StepResult("skipped", str(reason))
    except Exception as error:
        return StepResult("mend", what_to_mend(error))
    return StepResult("ok", remark or "")


def what_to_mend(error: BaseException) -> str:
    """One line for a failure: the sentence of a check, or the error and the line of its origin."""
    text = " ".join(str(error).split())
    if isinstance(error, XModalError) or (isinstance(error, AssertionError) and text):
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"


def steps(package: Package) -> Iterator[Step]:
    """All checks, in order. A failed check does not stop the others."""
    yield Step("table of contents", partial(_contents, package))
    for entry in package.entries:
        yield Step(f"contract of {entry.kind} {entry.name}", partial(_contract, package, entry))
    yield Step("its own tests", partial(_tests, package))
    used: set[tuple[str, str]] = set()
    for name, path in _recipes(package):
        used |= set(_named(path, package))
        yield Step(f"recipe {name}, two epochs", partial(_recipe, package, name, path))
    for entry in package.entries:
        if (entry.kind, entry.name) not in used:
            label = f"{entry.kind} {entry.name} in a run of two epochs"
            yield Step(label, partial(_trial, package, entry))


# --- which package ---------------------------------------------------------------------------


def find(reference: str) -> Package:
    """The package for a reference: a folder, plugin file, distribution, package or plugin.

    Raises UsageError with the nearest name if nothing matches.
    """
    path = Path(reference)
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".py":
        return _loaded(reference, plugins.registry((reference,)), (reference,), path.name)
    return _loaded(reference, plugins.registry(), (), reference)


def _in_folder(folder: Path) -> Package:
    """The package whose source is in a folder; checks this source, installed or not."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{folder} has no pyproject.toml, so it is not a package") from error
    except tomllib.TOMLDecodeError as error:
        raise PluginError(f"{folder / 'pyproject.toml'}: {error}") from error
    points = project.get("project", {}).get("entry-points", {}).get(plugins.GROUP, {})
    if not points:
        raise PluginError(
            f"{folder / 'pyproject.toml'} declares no plugin: it needs "
            f'[project.entry-points.{plugins.GROUP}] with a line such as name = "package.plugin"'
        )
    root = (folder / "src" if (folder / "src").is_dir() else folder).resolve()
    sys.path.insert(0, str(root))
    tops = {target.partition(".")[0] for target in points.values()}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        # The module was imported at the start of the command, perhaps from its installed copy.
        del sys.modules[name]
    importlib.invalidate_caches()
    found = plugins.registry()
    if all(any(p.plugin == name for p in found.plugins) for name in points):
        return _loaded(str(folder), found, (), *points, folder=folder)
    files = [root / (target.replace(".", "/") + ".py") for target in points.values()]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise PluginError(f"the entry point names {missing[0]}, which does not exist")
    named = tuple(map(str, files))
    return _loaded(
        str(folder), plugins.registry(named), named, *(f.name for f in files), folder=folder
    )


def _loaded(
    reference: str,
    registry: Registry,
    files: tuple[str, ...],
    *names: str,
    folder: Path | None = None,
) -> Package:
    """The plugins of a registry that have one of the names."""
    wanted = {_plain(name) for name in names}

    def meant(plugin: str, distribution: str, module: str = "") -> bool:
        package = module.partition(".")[0]
        return bool(wanted & {_plain(plugin), _plain(distribution), _plain(package)})

    loaded = [p for p in registry.plugins if meant(p.plugin, p.distribution, p.module.__name__)]
    broken = [b for b in registry.broken if meant(b.plugin, b.distribution)]
    if not loaded and not broken:
        known = {p.distribution for p in registry.plugins} | {b.plugin for b in registry.broken}
        known |= {p.module.__name__.partition(".")[0] for p in registry.plugins}
        raise UsageError(
            f"no plugin package '{reference}' is installed{did_you_mean(reference, known)}\n"
            "name an installed distribution or package, or a folder or file"
        )
    origins = {(p.plugin, p.distribution) for p in loaded}
    rivals = [
        f"{kind} '{name}' is claimed by {' and '.join(e.origin for e in entries)}; choose another"
        for (kind, name), entries in sorted(registry.collisions.items())
        if any((e.plugin, e.distribution) in origins for e in entries)
    ]
    return Package(
        reference,
        registry,
        tuple(loaded),
        tuple(e for e in registry.entries.values() if (e.plugin, e.distribution) in origins),
        (*(f"plugin '{b.plugin}': {b.reason}" for b in broken), *rivals),
        folder,
        files,
    )


def _plain(name: str) -> str:
    """A name in the normal form that package installers compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


# --- the steps -------------------------------------------------------------------------------


def _contents(package: Package) -> None:
    if package.broken:
        raise PluginError("; ".join(package.broken))
    for entry in package.entries:
        package.registry.load(entry.kind, entry.name)
    if not package.entries and not list(_recipes(package)):
        raise PluginError("it registers no component and no recipe: is a hook missing?")


def _contract(package: Package, entry: Entry) -> str | None:
    import torch
    from pydantic import ValidationError

    from xmodal.data.store import Store
    from xmodal.testing import check_host_inputs, contract

    component: Any = package.registry.load(entry.kind, entry.name)
    try:
        config = component.Config()
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip().lower()
        raise Skip(f"needs settings ({what}); check it in your own test") from error
    missing = next(iter(component.missing(config, Store())), None)
    if missing is not None:
        raise Skip(f"needs files: {' '.join(missing.split())}")
    with torch.random.fork_rng(devices=[]):
        contract.check(component)
        if entry.kind in ("mixer", "selector"):
            try:
                check_host_inputs(component)
            except AssertionError as why:
                return f"kept, but it is slower on a GPU than it could be: {what_to_mend(why)}"
    return None


def _tests(package: Package) -> None:
    tests = package.folder / "tests" if package.folder else None
    if tests is None or not tests.is_dir():
        raise Skip("no tests folder here; to run the tests, name the folder of the package")
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command,
        cwd=package.folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise PluginError((failed or lines)[-1])


def _recipes(package: Package) -> Iterator[tuple[str, Path]]:
    """The recipes that the package ships, by name, without layers that others have for a task."""
    from xmodal.recipe.lookup import all_recipes

    answers = [package.registry.call("xmodal_recipes", plugin) for plugin in package.loaded]
    folders = [Path(str(answer)).resolve() for answer in answers if answer is not None]
    known = {found.name: found.path.resolve() for found in all_recipes(package.registry)}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).as_posix().removesuffix(".yaml")
            above = {parent.as_posix() for parent in PurePosixPath(name).parents}
            if name in known and not above & known.keys():
                yield name, path


def _named(path: Path, package: Package) -> Iterator[tuple[str, str]]:
    """The parts of the package that one of its recipes names directly."""
    from xmodal.authoring.describe import choices
    from xmodal.recipe.yaml import read

    own = {(entry.kind, entry.name) for entry in package.entries}
    yield from own & set(choices(read(path).data))


def _recipe(package: Package, name: str, path: Path) -> None:
    from xmodal.recipe.compose import compose

    data = compose([name], package.registry).data
    before = [] if "stages" in data else [PLAIN]
    # A scale may choose other parts; override it with the parts of the package.
    own = [f"{kind}={json.dumps(data[kind])}" for kind, _ in _named(path, package) if kind in data]
    _run(package, [*before, name], own, "task" in data)


def _trial(package: Package, entry: Entry) -> None:
    if entry.kind not in TRIALS:
        raise Skip("not part of a training run; only its contract is checked")
    component: Any = package.registry.load(entry.kind, entry.name)
    if any(field.is_required() for field in component.Config.model_fields.values()):
        raise Skip("needs settings; ship a recipe that sets them")
    method, override = TRIALS[entry.kind]
    overrides = [override.format(name=entry.name)]
    if entry.kind == "mixer":
        unused = [part for part in ("selector", "scheduler") if part not in component.uses]
        overrides += [f"{part}=null" for part in unused]
    _run(package, [method], overrides, entry.kind == "task")


def _run(package: Package, recipes: list[str], overrides: list[str], has_task: bool) -> None:
    """Run two epochs on the first small task that fits the recipes."""
    from xmodal import api
    from xmodal.data.store import Store
    from xmodal.engine.plan import compose_plan

    with tempfile.TemporaryDirectory() as folder:
        tasks: list[tuple[list[str], list[str]]] = [([task], []) for task in TASKS]
        tasks.append(([SEQUENCES], [f"task.path={_waves(folder)}"]))
        refused: list[str] = []
        for task, settings in [([], [])] if has_task else tasks:
            asked = ([*recipes, *task], [*overrides, *settings])
            try:
                compose_plan(asked[0], package.registry, Store(), asked[1], SCALE)
            except XModalError as error:
                # Report only the first problem of a recipe.
                why = str(next(iter(getattr(error, "problems", [])), error))
                refused.append(f"{' '.join(asked[0])}: {' '.join(why.split())}")
                continue
            options = {"root": folder, "plugin_files": package.files, "report": False}
            api.run(*asked[0], overrides=asked[1], scale=SCALE, **options)  # type: ignore[arg-type]
            return
    raise PluginError(refused[0])


def _waves(folder: str) -> Path:
    """A file of 48 short sequences of two channels in three classes."""
    import numpy as np

    file = Path(folder) / "waves.npz"
    random = np.random.default_rng(0)
    np.savez(file, x=random.normal(size=(48, 2, 40)), y=np.arange(48) % 3)
    return file
