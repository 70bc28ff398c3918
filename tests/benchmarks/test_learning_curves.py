"""Learning curves: which cheap answer stands for a share, the table, and that recipes exist."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from xmodal import plugins
from xmodal.recipe.compose import compose

from ..paths import ROOT


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    file = ROOT / "benchmarks" / "learning_curves.py"
    spec = importlib.util.spec_from_file_location("learning_curves", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learning_curves"] = module
    spec.loader.exec_module(module)
    return module


def found(curves: Any) -> dict[str, dict[str, float]]:
    """Of series, at one share: two seeds of nft; of two cheap answers, the other one wins each."""
    scores = {
        ("nft", 0): (0.5, 0.45),
        ("nft", 1): (0.6, 0.44),
        ("forest", 0): (0.30, 0.20),
        ("baseline", 0): (0.25, 0.21),  # better on test, but validation chooses
        ("forest", 1): (0.40, 0.30),
        ("baseline", 1): (0.35, 0.29),
    }
    return {
        curves.Cell("series", method, 0.25, seed).name: {
            "test": test, "validation": validation, "train": 240,
        }
        for (method, seed), (test, validation) in scores.items()
    }  # fmt: skip


def test_validation_chooses_the_cheap_answer(curves: Any) -> None:
    assert curves.curve(found(curves), "series", "nft", 2) == [(240, 0.55, [0.5, 0.6])]
    ((count, mean, errors),) = curves.curve(found(curves), "series", curves.CHEAP, 2)
    assert (count, errors) == (240, [0.30, 0.35])
    assert mean == pytest.approx(0.325)
    assert curves.curve(found(curves), "series", "scratch", 2) == []


def test_the_table_has_a_row_a_method(curves: Any, tmp_path: Path) -> None:
    lines = curves.table(found(curves), ["images", "series"], 2).splitlines()
    assert lines[:4] == [
        "| series: crop | 240 |",
        "|---|---|",
        "| nft | 0.55 |",
        "| cheap | 0.325 |",
    ]
    pytest.importorskip("matplotlib")
    curves.draw(found(curves), ["images", "series"], 2, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_every_run_has_a_recipe(curves: Any) -> None:
    registry = plugins.registry()
    cells = list(curves.cells(list(curves.FORMS), 1, {*curves.METHODS, "forest", "baseline"}))
    assert len({cell.name for cell in cells}) == len(cells) == 5 * (2 * 5 + 3 + 2 * 4)
    for form in curves.FORMS.values():
        task = str(ROOT / "benchmarks" / "tasks" / f"{form.task}.yaml")
        for method in (*curves.METHODS, *form.cheap):
            assert compose([f"methods/{method}", task], registry, list(form.more)).data["task"]
