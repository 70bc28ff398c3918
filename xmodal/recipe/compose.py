"""Composes recipes from layers; every value keeps its origin.

Later layers win. Mappings merge, lists replace, and a different ``use:`` drops the settings of the
component it replaces. A mapping over a list of components changes the items that it names, by their
name or number (``stages: {finetune: {epochs: 3}}``). ``training:`` holds settings for every stage
that has them, so that a task can set them without naming the stages of a method; a stage's own
settings win. ``always:`` holds settings that override all later layers except the command line.

A recipe can have a layer for a task: ``<recipe>/<task>``, such as ``scales/cpu/darcy``. It is laid
on as soon as both the recipe and the task are there, so it lies over them and below what follows.
It can have one for a scale, ``<recipe>/scales/<scale>``, in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xmodal import plugins
from xmodal.errors import PluginError, Problem, RecipeError, UsageError, did_you_mean
from xmodal.plugins import Registry
from xmodal.recipe.grammar import (
    ALWAYS,
    COMPONENT_FIELDS,
    EXTENDS,
    LIST_FIELDS,
    TRAINING,
    check,
    origin_of,
)
from xmodal.recipe.lookup import METHODS, RecipeFile, all_recipes, find_recipe, find_recipes
from xmodal.recipe.messages import explain
from xmodal.recipe.own_data import spelled_out
from xmodal.recipe.recipe import Recipe
from xmodal.recipe.yaml import MAX_DEPTH, Document, Origin, Path_, dotted, parse_value, read
from xmodal.settings import NAMES_ONLY
from xmodal.text import shortlist, shown

MAX_PARENTS = 20
MAX_LAYERS = 200
COMMAND_LINE = "command line"
SCALES = "scales/"


@dataclass
class Layered:
    """A composed recipe before validation.

    ``task``: the one that the command line names. ``names``: the recipes laid on so far;
    ``for_task``: those of them that are layers for the task.
    """

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path_, Origin] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    task: Any = None
    names: list[str] = field(default_factory=list)
    for_task: set[str] = field(default_factory=set)


def compose(
    references: Sequence[str],
    registry: Registry,
    overrides: Sequence[str] = (),
    scale: str | None = None,
    trackers: Sequence[str] = (),
) -> Layered:
    """Compose recipes (names or paths; later ones win), a scale layer, ``always:``, and overrides.

    Overrides have the form ``key=value``. A data file stands for the recipe that reads it.
    ``trackers`` are added to those of the result.
    """
    references, overrides = spelled_out(references, registry, overrides)
    layered = Layered(task=_overriding_task(overrides))
    for reference in references:
        for found in find_recipes(reference, registry):
            _add(layered, found, registry, ())
    if scale is not None:
        _add_scale(layered, scale, registry)
    _lay_always(layered)
    for override in overrides:
        _override(layered, override, registry)
    _add_trackers(layered, trackers, registry)
    return layered


def _add_trackers(layered: Layered, names: Sequence[str], registry: Registry) -> None:
    """Add trackers, each once."""
    known = layered.data.get("trackers") or []
    named = [use.get("use") if isinstance(use, dict) else use for use in known]
    new = [name for name in dict.fromkeys(names) if name not in named]
    if new:
        _override(layered, f"trackers={json.dumps([*known, *new])}", registry)


def _overriding_task(overrides: Sequence[str]) -> Any:
    """The task that overrides name, if they do."""
    task = None
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() in ("task", "task.use"):
            task = parse_value(value, f"{COMMAND_LINE} '{shown(override)}'")
    return task


def _add_scale(layered: Layered, scale: str, registry: Registry) -> None:
    """Apply ``scales/<scale>``, and with it the layer of that scale for this task."""
    known = {f.name for f in all_recipes(registry) if f.name.startswith("scales/")}
    if f"scales/{scale}" not in known:
        names = sorted(n.removeprefix("scales/") for n in known if n.count("/") == 1)
        hint = did_you_mean(scale, names)
        raise UsageError(f"no scale '{scale}'{hint}\nscales: {shortlist(names)}")
    _add(layered, find_recipe(f"scales/{scale}", registry), registry, ())


def _add_for_scale(layered: Layered, registry: Registry) -> None:
    """Apply the layers that recipes have for the scales laid on, each once.

    A method that trains in its own way has its own idea of a few minutes, or of seconds.
    """
    scales = [name for name in layered.names if name.startswith(SCALES) and name.count("/") == 1]
    if not scales:
        return
    known = {found.name: found for found in all_recipes(registry)}
    for layer in [f"{name}/{scale}" for scale in scales for name in layered.names]:
        found = known.get(layer)
        if found and layer not in layered.names and _shown(found) not in layered.files:
            _add(layered, found, registry, ())


def _add_for_task(layered: Layered, names: Sequence[str], task: Any, registry: Registry) -> None:
    """Apply the layers that recipes have for this task, each once: ``<recipe>/<task>``.

    For a task name with slashes, the longest that exists.
    """
    task = layered.task or task
    name = task.get("use") if isinstance(task, dict) else task
    if not isinstance(name, str) or not names:
        return
    known = {found.name: found for found in all_recipes(registry)}
    parts = name.split("/")
    longest_first = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for recipe in names:
        layer = next((n for n in longest_first if f"{recipe}/{n}" in known), None)
        found = known.get(f"{recipe}/{layer}")
        # A file can name a layer itself, to have it below others.
        if found and found.name not in layered.for_task and _shown(found) not in layered.files:
            layered.for_task.add(found.name)
            _add(layered, found, registry, ())


def validate(layered: Layered, registry: Registry) -> Recipe:
    """Validate a composed recipe. Raises RecipeError with every problem and its position.

    If torch is not loaded yet, names are checked first, so that a typo is reported at once.
    """
    if not plugins.torch_is_loaded():
        check_names(layered, registry)
    layered = _with_names(layered)
    return _validated(_spread_training(layered, registry), {"registry": registry})


def _with_names(layered: Layered) -> Layered:
    """The recipe with what its method and its scale are called, for whoever lists runs."""
    data = {**layered.data}
    for key, folder in (("method", METHODS), ("scale", SCALES)):
        names = [name.removeprefix(folder) for name in layered.names if name.startswith(folder)]
        names = [name for name in names if "/" not in name]  # others are layers of one
        if names:
            data.setdefault(key, names[-1])
    return replace(layered, data=data)


def check_names(layered: Layered, registry: Registry) -> None:
    """Check names of parts, missing parts and the recipe's own keys, without importing any part.

    Raises RecipeError with every such problem.
    """
    data = {key: value for key, value in layered.data.items() if key != TRAINING}
    try:
        _validated(replace(layered, data=data), {"registry": registry, NAMES_ONLY: True})
    except RecipeError as error:
        raise RecipeError(error.problems, "the settings of the parts") from None


def _validated(layered: Layered, context: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(layered.data, context=context)
    except ValidationError as error:
        raise RecipeError(explain(error, layered.data, layered.origins, layered.files)) from None


def _lay_always(layered: Layered) -> None:
    """Apply the settings under ``always:`` over everything else.

    Example: a method that starts from random weights sets ``pretrained: false`` for any backbone.
    In an ordinary block, the setting would be dropped when a later layer names another backbone.
    """
    settings = layered.data.pop(ALWAYS, {})
    origins = dict(layered.origins)
    for path in [path for path in origins if path[0] == ALWAYS]:
        del layered.origins[path]
    for name, value in settings.items():
        _merge(layered, (name,), value, origins, (ALWAYS, name))


def _spread_training(layered: Layered, registry: Registry) -> Layered:
    """Copy the settings under ``training:`` into every stage that has them.

    Raises RecipeError for a setting that no stage has.
    """
    settings = layered.data.get(TRAINING) or {}
    stages = layered.data.get("stages") or []
    spread = Layered({**layered.data}, layered.origins.copy(), layered.files)
    spread.data.pop(TRAINING, None)
    known: set[str] = set()
    for index, stage in enumerate(stages if settings else ()):
        stage = {"use": stage} if isinstance(stage, str) else stage
        fields = _stage_fields(stage, registry)
        known |= fields
        if index == 0:
            spread.data["stages"] = [{} for _ in stages]
        for key in (key for key in settings if key in fields):
            _merge(spread, ("stages", index, key), settings[key], layered.origins, (TRAINING, key))
        for key, value in stage.items():
            at: Path_ = ("stages", index, key)
            _merge(spread, at, value, layered.origins, at)
    unknown = [key for key in settings if known and key not in known]
    if unknown:
        raise RecipeError([_unknown_training(layered, key, known) for key in unknown])
    return spread


def _stage_fields(stage: Any, registry: Registry) -> set[str]:
    try:
        return set(registry.load("stage", str(stage["use"])).Config.model_fields)
    except (UsageError, PluginError, KeyError, TypeError):
        return set()  # validation will report the problem of this stage


def _unknown_training(layered: Layered, key: str, known: set[str]) -> Problem:
    where = str(origin_of(layered.origins, (TRAINING, key)))
    message = f"no stage of this recipe has this setting{did_you_mean(key, known)}"
    return Problem(where, f"{TRAINING}.{key}", message, (f"known: {', '.join(sorted(known))}",))


def _add(layered: Layered, found: RecipeFile, registry: Registry, chain: tuple[Path, ...]) -> None:
    """Lay on what a recipe extends, the recipe, and the layers for the task."""
    path = found.path.resolve()
    if path in chain:
        trail = " -> ".join(p.stem for p in (*chain, path))
        raise UsageError(f"recipes extend each other in a circle: {trail}")
    # Without the second bound, files that each extend the next file twice would take forever.
    if len(chain) >= MAX_PARENTS or len(layered.files) >= MAX_LAYERS:
        raise UsageError(f"{_shown(found)}: too many recipes extend each other")
    document = read(found.path, _shown(found))
    check(document.data, document.origins, registry)
    first = len(layered.names)
    for parent, where in _parents(document):
        try:
            targets = find_recipes(parent, registry, found.path.parent)
        except UsageError as error:
            message, *more = str(error).split("\n")
            raise RecipeError([Problem(where, "extends", message, tuple(more))]) from None
        for target in targets:
            _add(layered, target, registry, (*chain, path))
    # What a file says wins over the layers of what it extends, also where it names the task itself.
    _add_for_task(layered, layered.names[first:], document.data.get("task"), registry)
    layered.files.append(_shown(found))
    layered.names.append(found.name)
    _merge(layered, (), document.data, document.origins, ())
    _add_for_task(layered, layered.names[:], layered.data.get("task"), registry)
    _add_for_scale(layered, registry)


def _shown(found: RecipeFile) -> str:
    """The name of a recipe file in messages: short for shipped recipes, otherwise as typed."""
    return f"recipes/{found.name}.yaml" if found.origin else str(found.path)


def _parents(document: Document) -> list[tuple[str, str]]:
    value = document.data.pop(EXTENDS, [])
    items = [value] if isinstance(value, str) else value
    places = [origin_of(document.origins, (EXTENDS, index)) for index in range(len(items))]
    return [(str(item), str(place)) for item, place in zip(items, places, strict=True)]


def _is_component(path: Path_) -> bool:
    return len(path) == 1 and path[0] in COMPONENT_FIELDS


def _is_list(path: Path_) -> bool:
    """Whether a list of components lies there, in a recipe or under its ``always:``."""
    inside = path[1:] if path[:1] == (ALWAYS,) else path
    return len(inside) == 1 and inside[0] in LIST_FIELDS


def _merge(
    layered: Layered,
    path: Path_,
    value: Any,
    origins: Mapping[Path_, Origin],
    source_path: Path_,
) -> None:
    """Merge ``value`` (from ``source_path`` of its document) over the value at ``path``."""
    parent: Any
    parent, key = _parent(layered.data, path) if path else ({"": layered.data}, "")
    current = parent.get(key) if isinstance(parent, dict) else parent[key]
    # A name and a block of settings are two ways to write a component, at any depth.
    if isinstance(current, str) and (isinstance(value, dict) or _is_component(path)):
        parent[key] = current = {"use": current}
        given = layered.origins.get(path) or origin_of(origins, source_path)
        layered.origins.setdefault((*path, "use"), given)
    if isinstance(value, str) and isinstance(current, dict) and "use" in current:
        value = {"use": value}
    numbered = isinstance(value, dict) and any(isinstance(name, int) for name in value)
    if isinstance(value, dict) and isinstance(current, list):
        if numbered or _is_list(path):
            for name, item in value.items():
                inner = (*source_path, name)
                index = _index(current, name, path, origin_of(origins, inner))
                _merge(layered, (*path, index), item, origins, inner)
            return
    elif isinstance(value, dict) and isinstance(current, dict):
        if path and "use" in value and value["use"] != current.get("use"):
            current = {}
            _put(layered, path, current, origins, source_path)
        for name, item in value.items():
            _merge(layered, (*path, str(name)), item, origins, (*source_path, name))
        return
    elif numbered or (isinstance(value, dict) and _is_list(path) and path[0] != ALWAYS):
        names = ", ".join(str(name) for name in value)
        message = f"there is no list yet in which {names} could be changed; write a list"
        raise RecipeError([Problem(str(origin_of(origins, source_path)), dotted(path), message)])
    _put(layered, path, value, origins, source_path)


def _index(items: list[Any], name: str | int, path: Path_, origin: Origin) -> int:
    """The item of a list that has a name or a number. Raises RecipeError if there is none."""
    names = [item.get("use") if isinstance(item, dict) else item for item in items]
    found = [index for index, use in enumerate(names) if use == name]
    if not found and re.fullmatch(r"[0-9]{1,9}", str(name)):
        found = [int(name)]
    if len(found) == 1 and found[0] < len(items):
        return found[0]
    key, listed = dotted(path), shortlist((f"{i} ({use})" for i, use in enumerate(names)), 20)
    if len(found) > 1:
        message = f"{len(found)} items are called '{name}'; name one by its number: {listed}"
    else:
        hint = did_you_mean(str(name), [use for use in names if isinstance(use, str)])
        message = f"no item '{shown(name)}'{hint}; {key} has {len(items)} items: {listed}"
    raise RecipeError([Problem(str(origin), f"{key}.{name}", message)])


def _put(
    layered: Layered,
    path: Path_,
    value: Any,
    origins: Mapping[Path_, Origin],
    source_path: Path_,
) -> None:
    """Replace the value at ``path`` by a copy of ``value``, and the origins of all inside."""
    parent, key = _parent(layered.data, path)
    replaced = parent.get(key) if isinstance(parent, dict) else parent[key]
    for inner in _paths(replaced, ()):
        layered.origins.pop(path + inner, None)
    parent[key] = _copied(value)
    layered.origins[path] = origin_of(origins, source_path)
    for inner in _paths(value, ()):
        layered.origins[path + inner] = origin_of(origins, source_path + inner)


def _copied(value: Any) -> Any:
    """A copy of a value, so that what is merged into it does not change its document."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _parent(data: Any, path: Path_) -> tuple[Any, str | int]:
    for part in path[:-1]:
        data = data[part]
    return data, path[-1]


def _override(layered: Layered, text: str, registry: Registry) -> None:
    """Merge ``key=value``; the parts of a dotted key are names, or numbers of items."""
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"override '{shown(text)}' is not of the form key=value, such as stages.0.epochs=3"
        )
    origin = Origin(f"{COMMAND_LINE} '{shown(key.strip())}'")
    if parts[0] == ALWAYS:
        direct = ".".join(parts[1:]) or "backbone.pretrained"
        message = f"overrides come after '{ALWAYS}:' anyway; write {direct}=... alone"
        raise RecipeError([Problem(str(origin), "", message)])
    if parts[0] == EXTENDS:
        message = "name the recipe on the command line instead, before or after others"
        raise RecipeError([Problem(str(origin), "", message)])
    if len(parts) > MAX_DEPTH:
        raise RecipeError([Problem(str(origin), "", f"has more than {MAX_DEPTH} parts")])
    value = parse_value(raw, f"{COMMAND_LINE} '{shown(text)}'")
    for part in reversed(parts[1:]):
        value = {int(part) if re.fullmatch(r"[0-9]{1,9}", part) else part: value}
    layer = {parts[0]: value}
    check(layer, {(): origin}, registry)
    _merge(layered, (), layer, {(): origin}, ())


def _paths(value: Any, path: Path_) -> list[Path_]:
    """The path of every value inside of one."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in [(*path, k), *_paths(v, (*path, k))]]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in [(*path, i), *_paths(v, (*path, i))]]
    return []
