"""What ``import xmodal`` shows, and what still works under its old name."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import xmodal
from xmodal import _moved

PUBLIC = ["FineTuner", "__version__", "compare", "export", "hookimpl", "load", "preload", "run"]
DOCUMENTED = [
    ("xmodal.compare.running", "compare", "xmodal.comparison.run", "compare"),
    ("xmodal.compare.scores", "Scores", "xmodal.comparison.error_table", "ErrorTable"),
    ("xmodal.compare.table", "Table", "xmodal.comparison.table", "ComparisonTable"),
    ("xmodal.compare.verdicts", "weigh", "xmodal.comparison.verdicts", "weigh"),
    ("xmodal.recipe.use", "Use", "xmodal.settings", "Use"),
    ("xmodal.registry", "Registry", "xmodal.plugins", "Registry"),
    (
        "xmodal.report.compare_report",
        "write_compare_report",
        "xmodal.report.compare",
        "write_compare_report",
    ),
    ("xmodal.trained", "Trained", "xmodal.inference.model", "TrainedModel"),
]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Modules under old names are imported afresh, and leave nothing behind."""
    yield
    for name in _moved.MODULES:
        sys.modules.pop(name, None)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(child, None)


def test_the_public_names_are_seen_and_explained() -> None:
    assert dir(xmodal) == sorted(xmodal.__all__) == PUBLIC
    for name in set(PUBLIC) - {"__version__"}:
        assert callable(getattr(xmodal, name))
        assert (getattr(xmodal, name).__doc__ or "").strip()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = xmodal.nothing


def test_they_are_loaded_on_first_use() -> None:
    script = "import sys, xmodal; dir(xmodal); assert 'torch' not in sys.modules; xmodal.compare"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(("old", "name", "new", "now"), DOCUMENTED, ids=lambda v: str(v))
def test_old_imports_work_and_name_the_new_one(old: str, name: str, new: str, now: str) -> None:
    namespace: dict[str, Any] = {}
    with pytest.warns(DeprecationWarning, match=f"the module {old} is now {new}") as caught:
        exec(f"from {old} import {name} as found", namespace)
    assert namespace["found"] is getattr(importlib.import_module(new), now)
    if name != now:
        assert f"{name} is {now}" in str(caught[-1].message)


def test_every_old_name_leads_somewhere() -> None:
    for old, new in _moved.MODULES.items():
        module = importlib.import_module(new)
        for now in _moved.NAMES.get(old, {}).values():
            assert hasattr(module, now), f"{old}: {new} has no {now}"
    assert set(_moved.NAMES) <= set(_moved.MODULES)


def test_the_function_compare_survives_the_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    run = importlib.import_module("xmodal.comparison.run")
    monkeypatch.setattr(run, "compare", lambda *methods, **options: (methods, options))
    with pytest.warns(DeprecationWarning, match="xmodal.comparison.verdicts"):
        importlib.import_module("xmodal.compare.verdicts")
    assert xmodal.compare("pare", seeds=2) == (("pare",), {"seeds": 2})


def test_unknown_names_stay_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"xmodal\.nothing"):
        importlib.import_module("xmodal.nothing")
    with pytest.warns(DeprecationWarning, match="xmodal.inference.model"):
        old = importlib.import_module("xmodal.trained")
    with pytest.raises(AttributeError, match="Nothing"):
        _ = old.Nothing
