"""Writes a new plugin package from templates; it is installable and passes its checks at once."""

from __future__ import annotations

import ast
import importlib.util
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from xmodal._version import __version__
from xmodal.authoring import describe
from xmodal.errors import UsageError
from xmodal.plugins import HOOKS, Registry, find_kind
from xmodal.recipe.lookup import all_recipes

TEMPLATES = files("xmodal.authoring") / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write(name: str, kind: str, out: Path | None, registry: Registry) -> list[Path]:
    """Write the package of a new component into ``out`` and return its files.

    Raises UsageError for an invalid name or folder.
    """
    find_kind(kind)
    check_name(name, kind, registry)
    folder = out or Path(f"xmodal-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty; choose another folder with --out")
    written = []
    for place, text in rendered(name, kind).items():
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.append(file)
    return written


def check_name(name: str, kind: str, registry: Registry) -> None:
    """Raise UsageError, with a suggestion, for a name that is invalid or already taken."""
    if not NAME.fullmatch(name):
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
        right = re.sub(r"[^a-z0-9]+", "-", spaced).strip("-").lstrip("0123456789-")
        hint = f"; did you mean '{right}'?" if NAME.fullmatch(right) else ""
        raise UsageError(
            f"'{name}' is not a valid name{hint}\n"
            f"names are lower-case words with hyphens, such as my-{kind}"
        )
    rivals = registry.collisions.get((kind, name), ())
    entry = registry.entries.get((kind, name)) or next(iter(rivals), None)
    if entry is not None:
        raise UsageError(
            f"{kind} '{name}' is already registered by {entry.origin}; "
            f"choose another name, such as 'my-{name}'"
        )
    package = _package(name)
    if importlib.util.find_spec(package) is not None:
        raise UsageError(
            f"a package '{package}' is already installed; choose another name, such as 'my-{name}'"
        )
    with suppress(PackageNotFoundError):
        known = distribution(f"xmodal-{name}").name
        raise UsageError(f"a distribution '{known}' is already installed; choose another name")
    recipe = _recipe(name, kind)
    hides = next((found for found in all_recipes(registry) if found.name == recipe), None)
    if hides is not None:
        whose = hides.origin or "the working directory"
        raise UsageError(
            f"there is a recipe '{recipe}' already, from {whose}; "
            f"choose another name, such as 'my-{name}'"
        )


def rendered(name: str, kind: str) -> dict[str, str]:
    """The text of every file in a new package, by its relative path."""
    package, cls = _package(name), "".join(word.capitalize() for word in name.split("-"))
    words: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "article": "an" if kind[0] in "aeiou" else "a",
        "cls": cls,
        "package": package,
        "distribution": f"xmodal-{name}",
        "hook": HOOKS[kind],
        "version": __version__,
        "recipe": _recipe(name, kind),
        "commands": usage(name, kind),
    }
    component = _render(f"parts/{kind}.py.jinja", words)
    tree = ast.parse(component)
    found = describe.class_in(tree, cls)
    assert found is not None, f"the template of a {kind} has no class {cls}"
    words["about"] = describe.first_sentence(ast.get_docstring(found) or "")
    words["settings"] = describe.settings_in(tree, cls)
    texts = {
        "pyproject.toml": _render("pyproject.toml.jinja", words),
        "README.md": _render("README.md.jinja", words),
        f"{package}/__init__.py": f'"""{name}: {words["article"]} {kind} for xmodal."""\n',
        f"{package}/plugin.py": _render("plugin.py.jinja", words),
        f"{package}/{kind}.py": component,
        f"tests/test_{package.removeprefix('xmodal_')}.py": _render("test.py.jinja", words),
    }
    if words["recipe"]:
        text = _render(f"recipes/{kind}.yaml.jinja", words)
        texts[f"{package}/recipes/{words['recipe']}.yaml"] = text
    return texts


def usage(name: str, kind: str) -> list[str]:
    """Commands that try out a new part."""
    trial = "xmodal run methods/nft tasks/darcy --scale smoke"
    if kind != "task" and _recipe(name, kind):
        return [f"xmodal compare pare {name} --task darcy --scale smoke"]
    return {
        "task": [f"xmodal compare pare nft --task {name} --scale smoke"],
        "launcher": [f"xmodal compare pare --task darcy --scale smoke --launcher {name}"],
        "tracker": [f"{trial} --track {name}"],
        "exporter": [trial, f"xmodal export methods-nft_tasks-darcy_smoke --to {name} --out model"],
        "loss": [f"{trial} task.loss={name}"],
        "metric": [f"{trial} task.metric={name}"],
    }.get(kind, [f"{trial} {kind}={name}"])


def _package(name: str) -> str:
    return "xmodal_" + name.replace("-", "_")


def _recipe(name: str, kind: str) -> str:
    """The name of the recipe for a new part; empty for kinds that need no recipe."""
    if not (TEMPLATES / "recipes" / f"{kind}.yaml.jinja").is_file():
        return ""
    return f"tasks/{name}" if kind == "task" else f"methods/{name}"


def _render(template: str, words: dict[str, Any]) -> str:
    text = TEMPLATES.joinpath(*template.split("/")).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(text).render(words)
