"""What the code imports is what the project declares."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {"pip"}
"""Required and run, but not imported."""
ELSEWHERE = "plugins/xmodal_rivals/worker.py"
"""Runs in a Python of its own, with packages that cannot be installed beside ours."""
NAMED_OTHERWISE = {"neuralop": "neuraloperator"}
"""Optional packages that are imported by another name, where they are not installed."""
WITH_TORCH = {"triton"}
"""Comes with torch on the platforms where it works, in the version that fits; else does without."""


def normalised(requirement: str) -> str:
    """The name of a distribution, as PyPI compares names."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def imported(folder: Path, at_once: bool = False) -> Iterator[tuple[str, str]]:
    """Every package that modules import, with the module; ``at_once``: when they are imported."""
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if at_once else ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                yield name.partition(".")[0], str(path.relative_to(ROOT))


def test_imports_are_declared_and_required_packages_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {normalised(line) for line in project["dependencies"]}
    extras = project["optional-dependencies"]
    optional = {
        normalised(line) for name in extras if name not in ("test", "docs") for line in extras[name]
    }
    ours = {"xmodal", *(path.name for path in (ROOT / "plugins").iterdir())}
    distributions = packages_distributions()
    used = set()
    undeclared = []
    for folder in ("xmodal", "plugins"):
        for name, place in imported(ROOT / folder):
            if name in ours | WITH_TORCH or name in sys.stdlib_module_names or place == ELSEWHERE:
                continue
            known = distributions.get(name, [NAMED_OTHERWISE.get(name, name)])
            candidates = {normalised(found) for found in known}
            used |= candidates
            if not candidates & (required | optional):
                undeclared.append(f"{place}: {name}")
    assert not undeclared
    assert required - COMMANDS <= used, "required, but imported nowhere"


@pytest.mark.parametrize("folder", ["xmodal", "plugins"])
def test_modules_can_be_imported_without_unix(folder: str) -> None:
    unix = {"resource", "fcntl", "grp", "pwd", "pty", "termios"}
    assert not [found for found in imported(ROOT / folder, at_once=True) if found[0] in unix]


def test_only_kernels_import_triton() -> None:
    """They are imported only where it works (``xmodal.fused``)."""
    found = {
        place
        for room in ("xmodal", "plugins")
        for name, place in imported(ROOT / room)
        if name == "triton"
    }
    assert found
    assert all(place.endswith("_kernels.py") for place in found)


def test_constraints_pin_what_is_required() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalised(line) for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {normalised(line) for line in project["dependencies"]} - COMMANDS <= pinned
