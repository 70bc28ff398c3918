"""Describes components, from their source, their settings, and the recipes that use them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xmodal.plugins import HOOKS, Registry

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from xmodal.interfaces import Component


def summary(target: str) -> str:
    """The first sentence of the docstring of ``package.module:Class``; empty if it has none.

    Imports nothing. Modules without source files (in zip files, compiled) have no summary.
    """
    module, _, name = target.partition(":")
    file = source_file(module)
    if file is None:
        return ""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ""
    found = class_in(tree, name)
    return first_sentence((found and ast.get_docstring(found)) or "")


def source_file(module: str) -> Path | None:
    """The source of a module, found without running the module or its parent packages."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        name = top
        for part in rest:
            name = f"{name}.{part}"
            places = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(name, places) if places else None
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not spec.has_location or not (spec.origin or "").endswith(".py"):
        return None
    return Path(str(spec.origin))


def class_in(tree: ast.Module, name: str) -> ast.ClassDef | None:
    """The class of that name at the top level of a module."""
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return next((node for node in classes if node.name == name), None)


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    # A sentence ends only before a capital letter: not in "Eq. 1".
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)[0]


def settings_in(tree: ast.Module, name: str) -> list[tuple[str, str, str]]:
    """The settings that a class declares itself: name, default and description."""
    found = class_in(tree, name)
    statements = [] if found is None else found.body
    config = next(
        (n for n in statements if isinstance(n, ast.ClassDef) and n.name == "Config"), None
    )
    rows = []
    for node in config.body if config else ():
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)):
            continue
        described = {k.arg: k.value for k in node.value.keywords}
        meaning = ast.literal_eval(described["description"]) if "description" in described else ""
        default = ast.unparse(node.value.args[0]) if node.value.args else "required"
        rows.append((ast.unparse(node.target), default, str(meaning)))
    return rows


def settings(component: type[Component]) -> list[tuple[str, str, str, str]]:
    """Every setting of a component: name, type, default and description."""
    return [_setting(name, field) for name, field in component.Config.model_fields.items()]


def _setting(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    annotation = field.annotation
    shown = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    shown = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", shown)  # classes without their modules
    if field.is_required():
        return name, shown, "required", field.description or ""
    if field.default_factory is not None and field.default_factory_takes_validated_data:
        return name, shown, "by the other settings", field.description or ""
    default = repr(field.get_default(call_default_factory=True))
    return name, shown, default, field.description or ""


def recipes_that_use(kind: str, name: str, registry: Registry) -> list[str]:
    """The recipes that choose a component, directly or in recipes that they extend."""
    from xmodal.errors import XModalError
    from xmodal.recipe.compose import compose
    from xmodal.recipe.lookup import all_recipes

    # Under a key that is not a kind, such as a mixer's inner mixer, only the name can match.
    unmistakable = [k for k, n in registry.entries if n == name] == [kind]
    found = []
    for recipe in all_recipes(registry):
        try:
            data = compose([recipe.name], registry).data
        except XModalError:
            continue
        chosen = set(choices(data))
        if (kind, name) in chosen or (unmistakable and ("", name) in chosen):
            found.append(recipe.name)
    return found


def choices(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every component that a recipe chooses, as (kind, name); the kind is empty if unknown."""
    for key, value in data.items():
        word = str(key).rpartition("_")[2]
        kind = next((k for k in HOOKS if word in (k, f"{k}s")), "")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and kind:
                yield kind, item
            elif isinstance(item, Mapping):
                if isinstance(item.get("use"), str):
                    yield kind, item["use"]
                yield from choices(item)
