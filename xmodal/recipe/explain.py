"""Turns pydantic's errors into problems people can act on: place, key, nearest right thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from xmodal.errors import Problem, did_you_mean
from xmodal.recipe.yaml import Origin, Path_, dotted

LAYER_KEYS = ("extends", "training")
"""Keys of recipe files that are gone once the layers are composed."""


def explain(
    error: ValidationError, data: Any, origins: Mapping[Path_, Origin], files: Sequence[str]
) -> list[Problem]:
    """Every problem of a composed recipe, in the order of the file."""
    problems = []
    for item in error.errors(include_url=False):
        path = _existing(tuple(item["loc"]), data)
        context = item.get("ctx", {})
        if context.get("at"):
            path = (*path, context["at"]) if (*path, context["at"]) in origins else path
        origin = _origin(path, origins)
        where = str(origin) if origin else (files[-1] if files else "recipe")
        message, *more = _message(item, data, path)
        order = (where.rpartition(":")[0], origin.line if origin else 0)
        problems.append((order, Problem(where, dotted(tuple(item["loc"])), message, tuple(more))))
    return [problem for _, problem in sorted(problems, key=lambda pair: pair[0])]


def _existing(loc: Path_, data: Any) -> Path_:
    """The longest part of a location that stands in the recipe (pydantic adds tags of unions)."""
    path: Path_ = ()
    for part in loc:
        inside = part in data if isinstance(data, dict) else False
        if isinstance(data, list) and isinstance(part, int):
            inside = part < len(data)
        if inside:
            data = data[part]
            path = (*path, part)
    return path


def _origin(path: Path_, origins: Mapping[Path_, Origin]) -> Origin | None:
    while path:
        if path in origins:
            return origins[path]
        path = path[:-1]
    return None


def _message(item: Any, data: Any, path: Path_) -> list[str]:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "unknown_key":
        owner = _owner(data, path)
        known, hint = str(context["known"]), str(context["hint"])
        if len(path) == 1:
            known = ", ".join(sorted([*known.split(", "), *LAYER_KEYS]))
            hint = did_you_mean(str(path[0]), known.split(", "))
        return [f"unknown setting{' for ' + owner if owner else ''}{hint}", f"known: {known}"]
    if kind == "missing":
        return ["is missing"]
    if kind in ("component_unknown", "component_broken"):
        return str(context["message"]).split("\n")
    if kind in ("component_missing", "component_form"):
        return [str(item["msg"]), f"installed: {context['known']}"]
    message = str(item["msg"])
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    if message != item["msg"] and not str(item["msg"]).startswith("Value error"):
        message = f"should be {message}"
    given = item.get("input")
    if isinstance(given, str | int | float | bool) or given is None:
        message += f", not {given!r}"
    return [message]


def _owner(data: Any, path: Path_) -> str:
    """The component an unknown setting was given to."""
    for part in path[:-1]:
        data = data[part]
    return str(data.get("use", "")) if isinstance(data, dict) else ""
