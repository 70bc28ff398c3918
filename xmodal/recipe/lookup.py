"""Finds recipes and suites by path or by name.

A name such as ``methods/pare`` is looked up in the folder ``recipes`` of the working directory,
then in the recipe folders of all plugins. Names never contain the suffix ``.yaml``. Where no recipe
is called ``pare_cosmic``, that name means ``methods/pare`` and then ``tasks/cosmic``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xmodal.errors import PluginError, UsageError, did_you_mean
from xmodal.plugins import Registry
from xmodal.text import shown

SUFFIX = ".yaml"
SUITES = "suites/"
"""Files below this folder are grids of runs, not recipes."""
SEARCHES = "searches/"
"""Files below this folder say what ``xmodal fit`` tries; they are no recipes either."""

PRESETS = "presets/"
"""Files below this folder say how thoroughly it tries; no recipes, either."""


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file, its name and the distribution it comes from (empty: the working directory)."""

    name: str
    path: Path
    origin: str


def all_recipes(registry: Registry) -> list[RecipeFile]:
    """Every recipe with a name, those of the working directory first; each name appears once."""
    apart = (SUITES, SEARCHES, PRESETS)
    return [found for found in _once_each(registry) if not found.name.startswith(apart)]


def all_suites(registry: Registry) -> list[RecipeFile]:
    """Every suite with a name, such as ``suites/table4``."""
    return [found for found in _once_each(registry) if found.name.startswith(SUITES)]


def all_searches(registry: Registry) -> list[RecipeFile]:
    """Every space of a search with a name, such as ``searches/row``."""
    return [found for found in _once_each(registry) if found.name.startswith(SEARCHES)]


def all_presets(registry: Registry) -> list[RecipeFile]:
    """Every preset of a search with a name, such as ``presets/quick``."""
    return [found for found in _once_each(registry) if found.name.startswith(PRESETS)]


def _once_each(registry: Registry) -> list[RecipeFile]:
    seen: dict[str, RecipeFile] = {}
    for found in _everywhere(registry):
        seen.setdefault(found.name, found)
    return sorted(seen.values(), key=lambda found: found.name)


def _everywhere(registry: Registry) -> Iterator[RecipeFile]:
    for name, path in _files_below(Path("recipes")):
        yield RecipeFile(name, path, "")
    for origin, folder in registry.recipe_folders():
        for name, path in _installed(Path(str(folder))):
            yield RecipeFile(name, path, origin)


def _files_below(folder: Path) -> tuple[tuple[str, Path], ...]:
    """The recipes below a folder, with their names, sorted."""
    if not folder.is_dir():
        return ()
    paths = sorted(folder.rglob("*" + SUFFIX))
    return tuple((p.relative_to(folder).as_posix().removesuffix(SUFFIX), p) for p in paths)


# Installed recipes do not change while a process runs, and a grid looks up hundreds of them.
_installed = functools.cache(_files_below)


def looks_like_path(reference: str) -> bool:
    """Whether a reference means a file rather than a recipe name."""
    return reference.endswith((SUFFIX, ".yml")) or reference.startswith((".", "/", "~"))


def expanded(reference: str) -> Path:
    """A path with ``~`` replaced; unlike ``Path.expanduser``, of any text."""
    return Path(os.path.expanduser(reference))


def from_anywhere(reference: str) -> str:
    """A reference that means the same in every working directory, for commands to repeat."""
    path = expanded(reference)
    named = looks_like_path(reference) or path.suffix != ""
    is_file = named and os.path.isfile(path)
    return os.path.abspath(path) if is_file else reference


def find_recipe(reference: str, registry: Registry, base: Path | None = None) -> RecipeFile:
    """Find a recipe that is one file; see ``find_recipes``. Raises UsageError."""
    found = find_recipes(reference, registry, base)
    if len(found) > 1:
        names = " ".join(recipe.name for recipe in found)
        raise UsageError(f"'{shown(reference)}' is no single recipe, but these: {names}")
    return found[0]


def find_recipes(
    reference: str, registry: Registry, base: Path | None = None
) -> tuple[RecipeFile, ...]:
    """The recipe of a name or path; a method and a task where ``<method>_<task>`` is no recipe.

    Relative paths start at ``base``: the folder of the file with ``extends``. Raises UsageError
    with the nearest name or file.
    """
    if looks_like_path(reference):
        path = expanded(reference)
        candidates = [path] if base is None or path.is_absolute() else [base / path, path]
        for candidate in candidates:
            if os.path.isfile(candidate):  # unlike Path.is_file, for any text
                return (RecipeFile(candidate.stem, candidate, ""),)
        # Users type shipped recipes as "recipes/x.yaml", from any directory.
        name = path.as_posix().removeprefix("recipes/").removesuffix(SUFFIX)
    else:
        name = reference
    named = {found.name: found for found in all_recipes(registry)}
    pair = (name,) if name in named else method_and_task(name, named)
    if pair:
        for one in pair:
            _check_rivals(named[one], registry)
        return tuple(named[one] for one in pair)
    what = "file" if looks_like_path(reference) else "recipe"
    hint = did_you_mean(name, _pairs_near(name, named)) or did_you_mean(name, named)
    hint = hint or did_you_mean(reference, _siblings(reference))
    raise UsageError(f"no {what} '{shown(reference)}'{hint}\nlist them: xmodal recipes list")


METHODS, TASKS = "methods/", "tasks/"


def method_and_task(name: str, known: Collection[str]) -> tuple[str, ...]:
    """The recipes that ``<method>_<task>`` stands for; none if there are no such two."""
    cuts = [place for place, letter in enumerate(name) if letter == "_"]
    pairs = [(METHODS + name[:cut], TASKS + name[cut + 1 :]) for cut in cuts]
    return next((pair for pair in pairs if all(one in known for one in pair)), ())


def _pairs_near(name: str, known: Iterable[str]) -> list[str]:
    """Every ``<method>_<task>`` of which the method, or the task, is that of ``name``."""
    methods = [one.removeprefix(METHODS) for one in known if one.startswith(METHODS)]
    tasks = [one.removeprefix(TASKS) for one in known if one.startswith(TASKS)]
    near = [f"{one}_{task}" for one in methods if name.startswith(f"{one}_") for task in tasks]
    return near + [f"{m}_{one}" for one in tasks if name.endswith(f"_{one}") for m in methods]


def _siblings(reference: str) -> list[str]:
    """Recipe files beside one that does not exist."""
    try:
        found = Path(reference).parent.glob("*" + SUFFIX)
        return [str(path) for path in found if path.is_file()]
    except (OSError, ValueError):
        return []  # not a path that can exist


def _check_rivals(chosen: RecipeFile, registry: Registry) -> None:
    """Raise PluginError if two plugins ship the recipe; a user's own file wins silently."""
    rivals = {f.path.resolve(): f.origin for f in _everywhere(registry) if f.name == chosen.name}
    if chosen.origin and len(rivals) > 1:
        owners = " and ".join(rivals.values())
        raise PluginError(f"recipe '{chosen.name}' is provided by both {owners}; uninstall one")
