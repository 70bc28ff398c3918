"""The reference of the site is made from the code, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from xmodal import hookspecs
from xmodal.interfaces import INTERFACES
from xmodal.plugins import HOOKS, registry
from xmodal.recipe.datasets import NamedData, all_named

ROOT = Path(__file__).resolve().parents[2]


def generator() -> ModuleType:
    """docs/reference.py."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The generated pages."""
    made: dict[str, str] = generator().pages()
    return made


def test_every_component_and_setting_is_there(pages: dict[str, str]) -> None:
    found = registry()
    for kind, name in found.entries:
        if found.entry(kind, name).distribution != "xmodal":
            continue
        parts = pages[f"reference/{kind}.md"].split("\n### ")
        (part,) = [part for part in parts if part.startswith(f"{name}\n")]
        component = found.load(kind, name)
        for setting, field in component.Config.model_fields.items():
            (row,) = [line for line in part.splitlines() if line.startswith(f"| `{setting}` |")]
            assert (field.description or "").replace("|", "\\|") in row
        assert (component.citation or "\n") in part


def test_the_navigation_names_every_page(pages: dict[str, str]) -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"reference/\w+\.md", text)) == sorted(pages)


def test_every_data_set_is_there(pages: dict[str, str]) -> None:
    page = pages["reference/datasets.md"]
    for found in all_named(registry()):
        assert isinstance(found, NamedData)
        if found.card is None:
            continue
        _, _, part = page.partition(f"## {found.card.benchmark}\n")
        assert f"| `{found.name}` |" in part.partition("\n## ")[0]


def test_every_hook_is_there(pages: dict[str, str]) -> None:
    for name in vars(hookspecs):
        if name.startswith("xmodal_"):
            assert f"| `{name}` |" in pages["reference/index.md"]
    for kind, hook in HOOKS.items():
        assert f"Hook `{hook}`" in pages[f"reference/{kind}.md"]


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.kind)
def test_every_method_of_an_interface_is_there(pages: dict[str, str], interface: type) -> None:
    page = pages[f"reference/{interface.kind}.md"]  # type: ignore[attr-defined]
    for name in interface.__abstractmethods__:  # type: ignore[attr-defined]
        assert f"### `{name}` (to be written)" in page
    for name, member in vars(interface).items():
        if not name.startswith("_") and (
            inspect.isfunction(member) or isinstance(member, property)
        ):
            assert f"### `{name}` (" in page
            documented = member.fget if isinstance(member, property) else member
            assert inspect.cleandoc(documented.__doc__ or "") in page


def test_records_are_there(pages: dict[str, str]) -> None:
    for name in ("Tokens", "View", "Facts", "TaskFacts", "TaskData", "Context", "Job"):
        assert pages["reference/data.md"].count(f"### {name}\n") == 1


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "mixer" / "index.html").read_text(encoding="utf-8")
    assert "patch-replace" in page
    assert not (tmp_path / "reference.py").exists()
