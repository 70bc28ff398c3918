"""Finds recipes by path or by name.

A name such as ``methods/pare`` is looked up in the folder ``recipes`` of the working directory,
then in the recipe folders of all plugins. Names never contain the suffix ``.yaml``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xmodal.errors import PluginError, UsageError, did_you_mean
from xmodal.plugins import Registry

SUFFIX = ".yaml"
SUITES = "suites/"
"""Files below this folder are grids of runs, not recipes."""


@dataclass(frozen=True)
class Found:
    """A recipe file, its name and the distribution it comes from (empty: the working directory)."""

    name: str
    path: Path
    origin: str


def all_recipes(registry: Registry) -> list[Found]:
    """Every recipe that can be named, the working directory's first; a name appears once."""
    return [found for found in _named(registry) if not found.name.startswith(SUITES)]


def all_suites(registry: Registry) -> list[Found]:
    """Every suite that can be named, with names such as ``suites/table4``."""
    return [found for found in _named(registry) if found.name.startswith(SUITES)]


def _named(registry: Registry) -> list[Found]:
    seen: dict[str, Found] = {}
    for found in _walk(registry):
        seen.setdefault(found.name, found)
    return sorted(seen.values(), key=lambda found: found.name)


def _walk(registry: Registry) -> Iterator[Found]:
    for name, path in _files(Path("recipes")):
        yield Found(name, path, "")
    for origin, folder in registry.recipe_folders():
        for name, path in _installed(Path(str(folder))):
            yield Found(name, path, origin)


def _files(folder: Path) -> tuple[tuple[str, Path], ...]:
    """The recipes below a folder with their names, in order."""
    if not folder.is_dir():
        return ()
    paths = sorted(folder.rglob("*" + SUFFIX))
    return tuple((p.relative_to(folder).as_posix().removesuffix(SUFFIX), p) for p in paths)


# What is installed stays as it is while a process lasts; a grid looks hundreds of recipes up.
_installed = functools.cache(_files)


def looks_like_path(reference: str) -> bool:
    """Whether a reference means a file rather than a recipe name."""
    return reference.endswith((SUFFIX, ".yml")) or reference.startswith((".", "/", "~"))


def find(reference: str, registry: Registry, base: Path | None = None) -> Found:
    """Find a recipe. ``base`` is the folder relative paths start from (the file that says
    ``extends``).

    Raises UsageError with the nearest name or file.
    """
    if looks_like_path(reference):
        path = Path(reference).expanduser()
        candidates = [path] if base is None or path.is_absolute() else [base / path, path]
        for candidate in candidates:
            if candidate.is_file():
                return Found(candidate.stem, candidate, "")
        # "recipes/x.yaml" is how shipped recipes are usually typed, from any directory.
        name = path.as_posix().removeprefix("recipes/").removesuffix(SUFFIX)
    else:
        name = reference
    named = {found.name: found for found in all_recipes(registry)}
    if name in named:
        _check_rivals(named[name], registry)
        return named[name]
    siblings = [str(p) for p in Path(reference).parent.glob("*" + SUFFIX)]
    hint = did_you_mean(name, named) or did_you_mean(reference, siblings)
    what = "file" if looks_like_path(reference) else "recipe"
    raise UsageError(f"no {what} '{reference}'{hint}\nlist them: xmodal recipes list")


def _check_rivals(chosen: Found, registry: Registry) -> None:
    """Raise PluginError where two plugins ship the recipe; the user's own file wins quietly."""
    rivals = {f.path.resolve(): f.origin for f in _walk(registry) if f.name == chosen.name}
    if chosen.origin and len(rivals) > 1:
        owners = " and ".join(rivals.values())
        raise PluginError(f"recipe '{chosen.name}' is provided by both {owners}; uninstall one")
