"""The grammar of a recipe: which keys hold a component, a list of them, or a block of settings.

It is derived from the fields of ``Recipe``. Every file and every override is checked against it
before anything reads its values, so that what composes recipes finds the shapes it expects. Values
are left to validation, which knows their types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from xmodal.errors import Problem, RecipeError, did_you_mean
from xmodal.plugins import Registry
from xmodal.recipe.recipe import Recipe
from xmodal.recipe.yaml import Origin, Path_, dotted
from xmodal.settings import Settings, Use
from xmodal.text import MOST_KNOWN, shortlist, shown

EXTENDS, ALWAYS, TRAINING = "extends", "always", "training"
LAYER_KEYS = (EXTENDS, ALWAYS, TRAINING)
"""Keys of recipe files that disappear when the layers are composed."""


@dataclass(frozen=True)
class _Field:
    """What stands under a key: a component of ``kind``, a ``list`` of them, or a block."""

    kind: str = ""
    list: bool = False
    optional: bool = False


def _fields(annotation: Any) -> Iterator[_Field]:
    """The shape of a field, if its values have one that must be checked before they are read."""
    inner = get_args(annotation)
    if get_origin(annotation) is Use:
        yield _Field(inner[0].kind)
    elif get_origin(annotation) is tuple:
        yield from (_Field(found.kind, list=True) for found in _fields(inner[0]))
    elif isinstance(annotation, type) and issubclass(annotation, Settings):
        yield _Field()
    else:
        for choice in inner:
            yield from (_Field(f.kind, f.list, optional=True) for f in _fields(choice))


def _single(field: _Field) -> bool:
    return bool(field.kind) and not field.list


FIELDS: Mapping[str, _Field] = {
    name: found
    for name, field in Recipe.model_fields.items()
    for found in _fields(field.annotation)
} | {TRAINING: _Field(optional=True), ALWAYS: _Field()}
COMPONENT_FIELDS = tuple(name for name, field in FIELDS.items() if _single(field))
"""Recipe fields that hold one component."""
LIST_FIELDS = tuple(name for name, field in FIELDS.items() if field.list)
"""Recipe fields that hold a list of components."""


def check(data: Mapping[str, Any], origins: Mapping[Path_, Origin], registry: Registry) -> None:
    """Raise RecipeError with everything in a layer that has not the form of a recipe."""
    problems = list(_Check(origins, registry).layer(data, ()))
    if problems:
        raise RecipeError(problems, "names and settings")


def origin_of(origins: Mapping[Path_, Origin], path: Path_, otherwise: str = "recipe") -> Origin:
    """Where a value comes from: its own origin, or that of the nearest block around it."""
    for length in range(len(path), -1, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return Origin(otherwise)


class _Check:
    def __init__(self, origins: Mapping[Path_, Origin], registry: Registry) -> None:
        self.origins = origins
        self.registry = registry

    def problem(self, path: Path_, message: str, *hints: str) -> Problem:
        return Problem(str(origin_of(self.origins, path)), dotted(path), message, hints)

    def layer(self, data: Mapping[str, Any], path: Path_) -> Iterator[Problem]:
        for key, value in data.items():
            field, at = FIELDS.get(str(key)), (*path, key)
            if path and key in (EXTENDS, ALWAYS):
                yield self.problem(at, f"cannot stand under '{path[-1]}'")
            elif key == EXTENDS:
                yield from self.parents(value, at)
            elif field is None or (value is None and (field.optional or _single(field))):
                continue  # validation says what is unknown or missing
            elif field.list:
                yield from self.components(field, value, at)
            elif field.kind:
                yield from self.component(field.kind, value, at)
            elif not isinstance(value, Mapping) or any(isinstance(name, int) for name in value):
                example = "{backbone: {pretrained: false}}" if key == ALWAYS else "{epochs: 3}"
                example = example if key in LAYER_KEYS else "{key: value}"
                message = f"expected a block of settings, such as {example}, not {described(value)}"
                yield self.problem(at, message)
            elif key == ALWAYS:
                yield from self.layer(value, at)

    def parents(self, value: Any, path: Path_) -> Iterator[Problem]:
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            if not isinstance(item, str):
                at = (*path, index) if isinstance(value, list) else path
                message = "expected a recipe name or path, or a list of them"
                yield self.problem(at, f"{message}, not {described(item)}")

    def component(self, kind: str, value: Any, path: Path_) -> Iterator[Problem]:
        wrong, at = value, path
        if isinstance(value, Mapping) and not any(isinstance(name, int) for name in value):
            wrong, at = value.get("use", ""), (*path, "use")
        if not isinstance(wrong, str):
            names = shortlist(self.registry.names(kind), MOST_KNOWN) or "none"
            expected = f"the name of a {kind}" + (", or a block with 'use:'" if at == path else "")
            message = f"expected {expected}, not {described(wrong)}"
            yield self.problem(at, message, f"installed: {names}")

    def components(self, field: _Field, value: Any, path: Path_) -> Iterator[Problem]:
        """A list, or a block that changes items of the list below by name or number."""
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.component(field.kind, item, (*path, index))
        elif isinstance(value, Mapping) and "use" not in value:
            for name, item in value.items():
                yield from self.component(field.kind, item, (*path, name))
        else:
            block = isinstance(value, Mapping)
            example = f"{{use: {value['use']}, ...}}" if block else value
            names = self.registry.names(field.kind)
            known = block or value in names
            such = f", such as [{example}]" if known else f" of the names of {field.kind}s"
            hint = "" if known else did_you_mean(str(value), names)
            given = f"one {field.kind} alone" if known else described(value)
            message = f"expected a list{such}, not {given}{hint}"
            yield self.problem(
                path, message, f"installed: {shortlist(names, MOST_KNOWN) or 'none'}"
            )


def described(value: Any) -> str:
    """A value of the wrong shape, in a few words."""
    if isinstance(value, Mapping):
        return "an item" if any(isinstance(name, int) for name in value) else "a block"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text '{shown(value)}'"
    return "nothing" if value is None else shown(str(value).lower())
