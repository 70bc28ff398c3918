"""The JSON Schema of recipes agrees with validation; every shipped recipe is valid by both."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from xmodal.plugins import registry
from xmodal.recipe.compose import compose, validate
from xmodal.recipe.grammar import COMPONENT_FIELDS
from xmodal.recipe.lookup import all_recipes
from xmodal.recipe.recipe import Recipe
from xmodal.recipe.schema import recipe_schema
from xmodal.recipe.yaml import read
from xmodal.settings import component_schema

from ..paths import ROOT

NO_RECIPES = ("suites", "searches", "presets")
SHIPPED = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if p.parent.name not in NO_RECIPES)


@functools.cache
def schema() -> dict[str, Any]:
    return recipe_schema()


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [r for value in node.values() for r in _references(value)]
    if isinstance(node, list):
        return [r for value in node for r in _references(value)]
    return []


def test_it_is_json_without_open_references() -> None:
    assert json.loads(json.dumps(schema())) == schema()
    assert _references(schema()) == []


def test_every_key_of_a_recipe_is_there_and_none_is_required() -> None:
    layers = {"extends", "always", "training"}
    assert set(schema()["properties"]) == set(Recipe.model_fields) | layers
    assert "required" not in schema()
    assert schema()["additionalProperties"] is False


@pytest.mark.parametrize("kind", ["selector", "mixer", "backbone", "stage", "task"])
def test_every_component_is_offered_by_name_and_as_a_block(kind: str) -> None:
    short, *blocks, partial = component_schema(kind)["oneOf"]
    names = registry().names(kind)
    assert short["enum"] == names
    assert [block["properties"]["use"]["const"] for block in blocks] == names
    for block in blocks:
        assert block["additionalProperties"] is False
        assert block["required"] == ["use"]
    assert "use" not in partial["propertyNames"]["enum"]


def test_components_that_cannot_be_imported_are_left_out() -> None:
    found = copy.copy(registry())
    entry = registry().entry("selector", registry().names("selector")[0])
    broken = copy.replace(entry) if hasattr(copy, "replace") else copy.copy(entry)
    object.__setattr__(broken, "name", "gone")
    object.__setattr__(broken, "target", "example_absent:Class")
    found.entries = {**found.entries, ("selector", "gone"): broken}
    assert "gone" not in component_schema("selector", found)["oneOf"][0]["enum"]


def test_component_fields_hold_components() -> None:
    for name in COMPONENT_FIELDS:
        assert "Use[" in str(Recipe.model_fields[name].annotation), name
    assert "stages" not in COMPONENT_FIELDS


def test_jsonschema_accepts_the_schema_and_finds_mistakes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator
    checker.check_schema(schema())
    validator = checker(schema())
    assert not list(validator.iter_errors({"selector": registry().names("selector")[0]}))
    for right in ({"scheduler": {"start": 9}}, {"training": {"lr": 1}}, {"extends": ["a", "b"]}):
        assert not list(validator.iter_errors(right)), right
    wrongs: list[Any] = [{"selector": "no-such"}, {"sead": 1}, {"seed": "x"}, {"stages": "x"}]
    for wrong in [*wrongs, {"scheduler": {"strat": 9}}, {"scheduler": {}}, {"extends": 1}]:
        assert list(validator.iter_errors(wrong)), wrong


# --- shipped recipes ---


def test_recipes_are_shipped() -> None:
    names = {found.name for found in all_recipes(registry())}
    assert {path.relative_to(ROOT / "recipes").as_posix()[:-5] for path in SHIPPED} <= names


def _with_what_it_changes(path: Path) -> list[str]:
    """A layer for a scale changes the stages of its method, so it comes after it."""
    method, _, scale = path.relative_to(ROOT / "recipes").as_posix().partition("/scales/")
    return [method, str(path)] if scale else [str(path)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.relative_to(ROOT / "recipes").as_posix())
def test_every_shipped_recipe_composes_and_is_described(path: Path) -> None:
    document = read(path)
    assert document.data.get("description") or document.data.get("extends")
    compose(_with_what_it_changes(path), registry())
    jsonschema = pytest.importorskip("jsonschema")
    assert not list(jsonschema.Draft202012Validator(schema()).iter_errors(document.data))


def _complete(path: Path) -> bool:
    keys = compose(_with_what_it_changes(path), registry()).data
    return {"task", "backbone", "embedder", "mixer", "predictor", "stages"} <= set(keys)


@pytest.mark.parametrize(
    "path",
    [p for p in SHIPPED if _complete(p)],
    ids=lambda p: p.relative_to(ROOT / "recipes").as_posix(),
)
def test_complete_recipes_validate_and_read_back(path: Path) -> None:
    recipe = validate(compose(_with_what_it_changes(path), registry()), registry())
    dumped = json.loads(json.dumps(recipe.model_dump(mode="json")))
    assert Recipe.model_validate(dumped) == recipe


def _named(folder: str) -> list[str]:
    return [f"{folder}/{path.stem}" for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))]


@pytest.mark.parametrize("method", _named("methods"))
@pytest.mark.parametrize("task", _named("tasks"))
def test_every_method_composes_with_every_task(method: str, task: str) -> None:
    recipe = validate(compose([task, method], registry()), registry())
    assert recipe.stages
