"""JSON Schema of recipes, with which editors complete and check them."""

from __future__ import annotations

from typing import Any

from xmodal.recipe.recipe import Recipe
from xmodal.settings import inlined


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file. No key is required, because ``extends`` may supply it."""
    schema = inlined(Recipe.model_json_schema())
    schema.pop("required", None)
    extends = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    training = {
        "type": "object",
        "description": "Settings for every stage that has them; a stage's own settings win.",
    }
    always = {
        "type": "object",
        "description": "Recipe keys that override all later layers.",
    }
    layers = {"always": always, "training": training}
    schema["properties"] = {"extends": extends, **schema["properties"], **layers}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "xmodal recipe"
    return schema
