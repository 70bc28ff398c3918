"""Chooses one component outside of a recipe: on the command line, or in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xmodal.errors import RecipeError
from xmodal.plugins import Registry, find_kind
from xmodal.recipe.lookup import expanded, looks_like_path
from xmodal.recipe.messages import explain
from xmodal.recipe.yaml import Origin, Path_, parse_value, read
from xmodal.settings import Kind, Use


def choose(
    kind: str,
    text: str,
    registry: Registry,
    where: str,
    settings: Mapping[str, Any] | None = None,
) -> Use[Any]:
    """A component from ``NAME``, a block ``{use: NAME, setting: 1}``, or a file with such a block.

    ``where`` names the place of the text (``--distance``) in messages. ``settings`` are added to
    those of the text. Raises RecipeError with every problem and the nearest existing name.
    """
    value = parse_value(text, where)
    origins: Mapping[Path_, Origin] = {}
    if isinstance(value, str) and looks_like_path(value):
        document = read(expanded(value))
        where, value = value, document.data
        origins = {(kind, *path): origin for path, origin in document.origins.items()}
    return chosen(kind, value, registry, where, settings, origins)


def chosen(
    kind: str,
    value: Any,
    registry: Registry,
    where: str,
    settings: Mapping[str, Any] | None = None,
    origins: Mapping[Path_, Origin] | None = None,
) -> Use[Any]:
    """Like ``choose``, for a name or a block that has already been read."""
    if isinstance(value, str):
        value = {"use": value}
    if isinstance(value, Mapping):
        value = {**value, **(settings or {})}
    part = Kind(find_kind(kind))
    choice: TypeAdapter[dict[str, Use[Any]]] = TypeAdapter(dict[str, Use[part]])  # type: ignore[valid-type]
    data = {kind: value}
    try:
        return choice.validate_python(data, context={"registry": registry})[kind]
    except ValidationError as error:
        raise RecipeError(explain(error, data, origins or {}, [where])) from None
