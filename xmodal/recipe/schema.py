"""JSON Schema of recipes, so that editors complete and check them."""

from __future__ import annotations

from typing import Any

from xmodal.recipe.recipe import Recipe
from xmodal.settings import inlined


def recipe_schema() -> dict[str, Any]:
    """The schema of a whole recipe file. Nothing is required: ``extends`` may supply it."""
    schema = inlined(Recipe.model_json_schema())
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
