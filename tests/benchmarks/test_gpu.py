"""The GPU benchmark runs: its parts with small models on the CPU, so that it does not rot."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from importlib.metadata import distributions, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from xmodal import plugins
from xmodal.batch import Progress
from xmodal.data.store import Store
from xmodal.engine.plan import compose_plan

from ..paths import ROOT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose helpers lie beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.fixture
def bitwise(gpu: ModuleType) -> ModuleType:
    return importlib.import_module("bitwise")


@pytest.fixture
def workloads(gpu: ModuleType) -> ModuleType:
    return importlib.import_module("workloads")


@pytest.mark.long
def test_its_figures_and_its_file(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    given = ["--only", "rate", "draw", "wrong", "--out", str(out)]
    report = gpu.main(["--device", "cpu", "--tiny", *given])
    assert [row.what for row in report.rows if row.reached is False] == []
    document = json.loads(out.read_text())
    assert document["surroundings"]["torch"] == version("torch")
    reached = {(row["section"], row["what"]): row["reached"] for row in document["rows"]}
    assert reached["wrong", "a bad step leaves the weights as they were"] is True
    assert reached["wrong", "the message names epoch and step"] is True


@pytest.mark.long
def test_its_longer_sections(
    gpu: ModuleType, workloads: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "TINY_SHAPES", workloads.TINY_SHAPES[:1])
    given = ["--only", "steps", "exact", "evaluation", "together", "again", "--methods", "pare"]
    report = gpu.main(["--device", "cpu", "--tiny", *given])
    reached = {(row.section, row.what): row.reached for row in report.rows}
    assert reached["again", "pare"] is True
    assert ("steps", "tiny: PaRe / NFT") in reached
    assert ("together", "2 runs / one") in reached
    assert ("evaluation", "tiny: evaluation / bare forward pass") in reached
    assert [row.what for row in report.rows if row.reached is False] == []


def test_the_loop_by_hand_does_what_the_engine_does(
    gpu: ModuleType,
    bitwise: ModuleType,
    workloads: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise their times could not be compared."""
    bench = workloads.Bench(torch.device("cpu"), True, ["nft"], tmp_path, gpu.Report())
    shape = workloads.TINY_SHAPES[0]
    overrides = (*shape.overrides, f"training.batch.size={shape.size}", "training.epochs=1",
                 "training.max_steps=1",
                 "training.schedule={warmup_epochs: 0, decay: none}")  # fmt: skip
    session = bench.session(["methods/nft", "tasks/darcy"], overrides)
    hand = gpu.ByHand(session)
    index = session.order(Progress(0, 0, 1, 0, 1))[: shape.size]
    x, y = gpu.loader.first(session.data.train, 8)
    hand.x, hand.y = x[index], y[index]
    start = {name: value.clone() for name, value in hand.model.state_dict().items()}
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.arange(len(index)))
    hand.step()
    end = hand.model.state_dict()
    torch.testing.assert_close(end, dict(bitwise.trained(session).weights))
    assert not bitwise.equal(bitwise.Course((), start, 0, ()), bitwise.Course((), end, 0, ()))


def test_models_for_a_gpu_have_the_tokens_that_their_names_say(workloads: ModuleType) -> None:
    for shape in (*workloads.SHAPES, *workloads.SMALLER):
        overrides = [*shape.overrides, *workloads.SOURCE, workloads.MIDDLE]
        recipes = ["methods/pare", "tasks/darcy"]
        plan = compose_plan(recipes, plugins.registry(), Store(), overrides)
        assert f"{plan.facts.num_tokens} tokens" in shape.name
        assert plan.recipe.backbone.config.pretrained is False


def test_one_flipped_bit_is_found(bitwise: ModuleType) -> None:
    w = torch.tensor([1.0, 2.0])
    one = bitwise.Course((3.0, 1.0), {"w": w}, 8, ())
    assert bitwise.equal(one, bitwise.Course((3.0, 1.0), {"w": w.clone()}, 8, ()))
    assert bitwise.equal(one, bitwise.Course((1.0,), {"w": w.clone()}, 8, ()))  # was resumed
    flipped = torch.nextafter(w, w + 1)
    assert not bitwise.equal(one, bitwise.Course((3.0, 1.0), {"w": flipped}, 8, ()))
    assert not bitwise.equal(one, bitwise.Course((3.0, 1.5), {"w": w}, 8, ()))
    assert not bitwise.equal(one, bitwise.Course((3.0, 1.0), {"w": w}, 9, ()))
    assert bitwise.distance(one, bitwise.Course((3.0, 1.5), {"w": 1.5 * w}, 8, ())) == (0.5, 0.5)


@pytest.mark.long
def test_sections_in_a_process_of_their_own(gpu: ModuleType, tmp_path: Path) -> None:
    given = argparse.Namespace(device="cpu", tiny=True, methods=["nft"])
    rows = gpu.elsewhere(given, ["rate"], tmp_path / "there.json")
    assert [(row.section, row.reached) for row in rows] == [("rate", None), ("warnings", True)]
    (row,) = gpu.elsewhere(given, ["no-such-section"], tmp_path / "not-there.json")
    assert row.reached is False


def test_a_section_that_fails_costs_no_other(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Any) -> None:
        """Fail."""
        raise RuntimeError("out of luck")

    monkeypatch.setattr(gpu, "SECTIONS", {"broken": (broken, 1.0), "rate": gpu.SECTIONS["rate"]})
    report = gpu.main(["--device", "cpu", "--tiny"])
    assert [(row.section, row.reached) for row in report.rows][:2] == [
        ("broken", False),
        ("rate", None),
    ]
    assert "out of luck" in report.table()


def test_plugins_are_known_where_nothing_is_installed(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "entry_points", lambda group: ())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    gpu.know_plugins(tmp_path)
    (made,) = distributions(path=[str(tmp_path)])
    installed = entry_points(group="xmodal")
    assert {(p.name, p.value) for p in made.entry_points} >= {
        (p.name, p.value) for p in installed if p.dist is not None and p.dist.name == "xmodal"
    }
    assert str(tmp_path) in sys.path
