"""The one door for plugin authors: what they import is public, documented, and named once."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from .public import PUBLIC

ROOT = Path(__file__).resolve().parents[1]


def _files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def _beyond(text: str) -> list[str]:
    """The modules of ``xmodal`` that a source text imports and that are not public."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = ROOT / node.module.replace(".", "/") / alias.name
                module = inner.is_dir() or inner.with_suffix(".py").is_file()
                found.append(f"{node.module}.{alias.name}" if module else node.module)
    return [m for m in found if m.partition(".")[0] == "xmodal" and m not in PUBLIC]


def test_plugins_and_examples_import_only_what_is_public() -> None:
    beyond = {
        path.relative_to(ROOT).as_posix(): modules
        for path in _files("plugins", "docs/examples")
        if (modules := _beyond(path.read_text(encoding="utf-8")))
    }
    assert not beyond


def test_the_code_of_the_documentation_imports_only_what_is_public() -> None:
    blocks = []
    for page in sorted((ROOT / "docs").rglob("plugins*.md")):
        text = page.read_text(encoding="utf-8")
        blocks += re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    assert not [module for block in blocks for module in _beyond(inspect.cleandoc(block))]


def test_an_import_beyond_is_found() -> None:
    text = "from xmodal import runs, hookimpl\nimport xmodal.engine.loop\nfrom xmodal.data import x"
    assert _beyond(text) == ["xmodal.runs", "xmodal.engine.loop"]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()
    for key in getattr(module, "__all__", None) or vars(module):
        value = getattr(module, key)
        own = getattr(value, "__module__", "") or ""
        if not key.startswith("_") and own.startswith("xmodal") and callable(value):
            assert (value.__doc__ or "").strip(), f"{name}.{key}"


def test_public_modules_are_listed_alike_everywhere() -> None:
    plugins, compatibility, changes = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("docs/plugins.md", "docs/compatibility.md", "CHANGELOG.md")
    )
    table = plugins.partition("## What to import")[2]
    promise = compatibility.partition("**Public modules**")[2].partition("\n\n")[0]
    change = changes.partition("Plugins import from the public modules")[2].partition("\n- ")[0]
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)) == sorted(PUBLIC)
    assert sorted(re.findall("`([^`]+)`", promise)) == sorted(PUBLIC)
    assert sorted(re.findall("`([^`]+)`", change)) == sorted(PUBLIC)


def test_a_class_name_means_one_thing() -> None:
    places = defaultdict(list)
    for path in _files("xmodal", "plugins"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name != "Config":
                places[node.name].append(f"{path.relative_to(ROOT).as_posix()}:{node.lineno}")
    assert not {name: found for name, found in places.items() if len(found) > 1}
