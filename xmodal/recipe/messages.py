"""Turns pydantic's errors into clear problems: the place, the key and the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from xmodal.errors import MOST_PROBLEMS, PluginError, Problem, RecipeError, did_you_mean, nearest
from xmodal.recipe.grammar import LAYER_KEYS, origin_of
from xmodal.recipe.yaml import Origin, Path_, dotted
from xmodal.text import MOST_KNOWN, shortlist, shown

_PARTS: Mapping[str, Literal["unknown", "broken"]] = {
    "component_unknown": "unknown",
    "component_broken": "broken",
}


@contextmanager
def own_recipe(folder: Path) -> Iterator[None]:
    """A block that composes the recipe of the run in ``folder``.

    It was valid when it was written, so a part that is unknown belongs to a plugin that is missing.
    Raises PluginError.
    """
    try:
        yield
    except RecipeError as error:
        missing = [problem for problem in error.problems if problem.part]
        if not missing:
            raise
        lines = "\n".join(str(problem) for problem in missing[:MOST_PROBLEMS])
        raise PluginError(
            f"{folder} needs a plugin that is missing or broken: install it, or name its file with "
            f"--plugin\n{lines}"
        ) from None


def explain(
    error: ValidationError, data: Any, origins: Mapping[Path_, Origin], files: Sequence[str]
) -> list[Problem]:
    """Every problem of a composed recipe, in the order of the file."""
    found = []
    for item in error.errors(include_url=False):
        if item["type"] == "default_factory_not_called":
            continue  # another setting is wrong, and that is reported
        loc = tuple(item["loc"])
        block = _existing(loc, data)
        at = _inside(item, data, block)
        path = (*block, at) if (*block, at) in origins else block
        origin = origin_of(origins, path, files[-1] if files else "recipe")
        if item["type"] == "missing":
            path = (*block, loc[-1])
        named = item["type"] in _PARTS
        found.append((origin, block if named else path or loc, item, path))
    problems: list[Problem] = []
    for origin, key, item, path in sorted(found, key=lambda one: one[0]):
        # To search for the nearest of all names takes time, and only the first are shown.
        first = len(problems) < MOST_PROBLEMS
        message, *more = _message(item, data, path) if first else [str(item["msg"])]
        part = _PARTS.get(item["type"]) or ""
        problems.append(Problem(str(origin), dotted(key), message, tuple(more), part))
    return problems


def _inside(item: Any, data: Any, path: Path_) -> str:
    """The key that really causes an error reported for its whole block, or nothing."""
    if item["type"] == "union_tag_not_found":
        block = _at(data, path)
        return nearest("use", block) or "" if isinstance(block, dict) else ""
    return "use" if item["type"] == "union_tag_invalid" else str(item.get("ctx", {}).get("at", ""))


def _at(data: Any, path: Path_) -> Any:
    for part in path:
        data = data[part]
    return data


def _existing(loc: Path_, data: Any) -> Path_:
    """The longest part of a location that exists in the recipe (pydantic adds tags of unions)."""
    path: Path_ = ()
    for part in loc:
        inside = part in data if isinstance(data, dict) else False
        if isinstance(data, list) and isinstance(part, int):
            inside = part < len(data)
        if inside:
            data = data[part]
            path = (*path, part)
    return path


def _message(item: Any, data: Any, path: Path_) -> list[str]:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "unknown_key":
        owner = _owner(data, path)
        extra = LAYER_KEYS if len(path) == 1 else ("use",) if owner else ()
        known = sorted({*filter(None, str(context["known"]).split(", ")), *extra})
        hint = did_you_mean(str(path[-1]), known)
        whose = f" for {owner}" if owner else ""
        return [f"unknown setting{whose}{hint}", f"known: {shortlist(known, MOST_KNOWN)}"]
    if kind == "missing":
        return ["is missing"]
    if kind in _PARTS:
        return str(context["message"]).split("\n")
    if kind in ("component_missing", "component_form"):
        return [_misspelt_use(str(item["msg"]), path), f"installed: {context['known']}"]
    if kind == "union_tag_not_found":
        return [_misspelt_use("missing 'use'", path)]
    if kind == "union_tag_invalid":
        known = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
        hint = did_you_mean(str(context["tag"]), known)
        return [
            f"unknown choice '{context['tag']}'{hint}",
            f"known: {shortlist(known, MOST_KNOWN)}",
        ]
    message = str(item["msg"])
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    if message != item["msg"] and not str(item["msg"]).startswith("Value error"):
        message = f"should be {message}"
    given = item.get("input")
    if kind != "not_a_number" and (isinstance(given, str | int | float | bool) or given is None):
        message += f", not {shown(repr(given))}"
    return [message]


def _misspelt_use(message: str, path: Path_) -> str:
    """Point out a key at the end of the path that was probably meant to be ``use``."""
    key = str(path[-1]) if path else ""
    return f"unknown setting{did_you_mean(key, ['use'])}" if nearest("use", [key]) else message


def _owner(data: Any, path: Path_) -> str:
    """The component that got an unknown setting."""
    block = _at(data, path[:-1])
    return str(block.get("use", "")) if isinstance(block, dict) else ""
