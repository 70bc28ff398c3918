"""JSON Schema of recipes, so that editors complete and check them."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from pydantic import BaseModel

from xmodal import plugins
from xmodal.errors import PluginError

_around: ContextVar[frozenset[str]] = ContextVar("kinds being described", default=frozenset())


def component_schema(kind: str, registry: plugins.Registry | None = None) -> dict[str, Any]:
    """``oneOf`` over every component of a kind; those that fail to import are left out.

    Inside a component of the same kind only the names are listed, or there would be no end.
    """
    registry = registry or plugins.registry()
    if kind in _around.get():
        named = {"use": {"enum": registry.names(kind)}}
        block = {"type": "object", "properties": named, "required": ["use"]}
        return {"oneOf": [{"type": "string", "enum": registry.names(kind)}, block]}
    token = _around.set(_around.get() | {kind})
    try:
        return _component_schema(kind, registry)
    finally:
        _around.reset(token)


def _component_schema(kind: str, registry: plugins.Registry) -> dict[str, Any]:
    options: list[dict[str, Any]] = []
    names = []
    for name in registry.names(kind):
        try:
            config = registry.load(kind, name).Config
        except PluginError:
            continue
        names.append(name)
        options.append(_block(name, registry.entry(kind, name), config))
    short = {"type": "string", "enum": names, "description": f"The name of a {kind}."}
    return {"oneOf": [short, *options, _partial(kind, options)]}


def _partial(kind: str, options: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings for the component that an extended recipe names: any that some component knows."""
    known = sorted({key for option in options for key in option["properties"]} - {"use"})
    return {
        "type": "object",
        "title": f"settings of the {kind} named elsewhere",
        "minProperties": 1,
        "propertyNames": {"enum": known},
    }


def _block(name: str, entry: plugins.Entry, config: type[BaseModel]) -> dict[str, Any]:
    schema = _inlined(config.model_json_schema())
    properties = {"use": {"const": name}, **schema.get("properties", {})}
    return {
        "type": "object",
        "title": f"{name} ({entry.origin})",
        "properties": properties,
        # Other settings may come from an extended recipe.
        "required": ["use"],
        "additionalProperties": False,
    }


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace local references, which would not resolve once the schema is nested in another."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                name = node["$ref"].rpartition("/")[2]
                rest = {k: v for k, v in node.items() if k != "$ref"}
                return {**walk(definitions[name]), **rest}
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(item) for item in node]
        return node

    return walk(schema)  # type: ignore[no-any-return]


def recipe_schema() -> dict[str, Any]:
    """The schema of a whole recipe file. Nothing is required: ``extends`` may supply it."""
    from xmodal.recipe.recipe import Recipe

    schema = _inlined(Recipe.model_json_schema())
    schema.pop("required", None)
    extends = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    training = {
        "type": "object",
        "description": "Settings for every stage that knows them; what a stage says itself wins.",
    }
    always = {
        "type": "object",
        "description": "Keys of a recipe, laid over whatever later layers say.",
    }
    layers = {"always": always, "training": training}
    schema["properties"] = {"extends": extends, **schema["properties"], **layers}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "xmodal recipe"
    return schema
