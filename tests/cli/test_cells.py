"""Cells that share a process: their output, their ends, and a crash that takes the process down."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from xmodal import api, runs
from xmodal.comparison.queue import LOG
from xmodal.files import claim
from xmodal.testing.running import assert_same, weights

from ..processes import Command
from .test_compare import compare, wait_for

NFT = ("methods/nft", "tasks/openml/wdbc")
PLUGIN = """
import os, signal
from xmodal import hookimpl
from xmodal.batch import Term, View
from xmodal.interfaces import Mixer

@hookimpl
def xmodal_mixers():
    return {"crash": f"{__name__}:Crash"}

class Crash(Mixer):
    "Kills its process as a broken library would."

    def forward(self, target, source, progress):
        if progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return (View(target.tokens, (Term(target.head, target.y, 1.0),)),)
"""


def cell(folder: Path, *overrides: str) -> runs.Run:
    """The folder of a cell, as a queue prepares it."""
    from io import StringIO

    from ruamel.yaml import YAML

    from xmodal import plugins
    from xmodal.data.store import Store
    from xmodal.engine.plan import compose_plan

    plan = compose_plan(NFT, plugins.registry(), Store(), overrides, "smoke")
    claim(folder, runs.KIND)
    text = StringIO()
    YAML().dump(plan.recipe.model_dump(mode="json"), text)
    (folder / "cell.yaml").write_text(text.getvalue())
    return runs.Run(folder)


@pytest.mark.long
def test_every_cell_has_its_own_output_and_end(tmp_path: Path) -> None:
    good = cell(tmp_path / "good")
    bad = cell(tmp_path / "bad", "training.optimizer.lr=1e30")
    wrong = cell(tmp_path / "wrong")
    (wrong.path / "cell.yaml").write_text("task: nothing\n")
    folders = [str(run.path) for run in (good, bad, wrong)]
    streams = tmp_path / "streams"
    code, out, err = Command("cells", *folders, streams=streams, cwd=tmp_path).wait()
    assert code == 5
    assert (out, err) == ("", "")
    said = {run.path.name: (run.path / LOG).read_text() for run in (good, bad, wrong)}
    assert f"running {good.path} on" in said["good"]
    assert "epoch 1/" in said["good"]
    assert "\ntest " in said["good"]
    assert "error: the loss is nan at stage 0" in said["bad"]
    assert said["bad"].count("Traceback") == 0
    assert said["wrong"].startswith("error: ")
    assert [run.state for run in (good, bad, wrong)] == ["done", "stopped", "empty"]
    whole = api.run(*NFT, scale="smoke", root=tmp_path / "alone", report=False).run
    assert_same(weights(good), weights(whole))
    log = (good.path / "log.txt").read_text()
    assert "nan" not in log


@pytest.mark.long
def test_a_crash_costs_its_own_cell_alone(tmp_path: Path) -> None:
    """The others lose their process, and go on from their checkpoints."""
    (tmp_path / "crash.py").write_text(PLUGIN)
    (tmp_path / "crash.yaml").write_text("extends: methods/nft\nmixer: crash\n")
    grid = ("--task", "openml/wdbc", "--scale", "smoke", "--root", "cells", "--no-trivial")
    code, found, said = compare(
        *(tmp_path, "nft", "crash.yaml", *grid, "--seeds", "2", "--plugin", "crash.py"),
        *("--launcher", "{use: local, jobs: 1, pack: 4}", "--set", "training.epochs=3"),
    )
    assert code == 6, said
    states = {(c["method"].split(" [")[0], c["seed"]): c for c in found["cells"]}
    assert {key: c["state"] for key, c in states.items()} == {
        ("nft", 0): "done",
        ("nft", 1): "done",
        ("crash", 0): "failed",
        ("crash", 1): "failed",
    }
    for (method, _), one in states.items():
        log = Path(tmp_path, one["directory"], LOG).read_text()
        # Once together, once alone.
        assert (log.count("running "), log.count("resuming ")) in {(1, 1), (2, 0)}, method
        assert ("\ntest " in log) == (method == "nft")


@pytest.mark.long
def test_a_stopped_comparison_saves_all_cells(tmp_path: Path) -> None:
    grid = ("--task", "openml/wdbc", "--scale", "smoke", "--root", "cells", "--no-trivial")
    arguments = ("nft", *grid, "--seeds", "2", "--set", "training.epochs=16")
    pack = ("--launcher", "{use: local, jobs: 1, pack: 2}")
    process = Command("compare", *arguments, *pack, streams=tmp_path / "streams", cwd=tmp_path)
    for seed in (0, 1):
        wait_for(tmp_path, f"cells/*/*/seed{seed}*/metrics.jsonl")
    process.send_signal(signal.SIGINT)
    code, _, said = process.wait(200)
    assert code == 130, said
    folders = [path.parent for path in tmp_path.glob("cells/*/*/*/manifest.json")]
    assert [runs.Run(folder).state for folder in folders] == ["interrupted"] * 2
    code, found, said = compare(tmp_path, *arguments, *pack)
    assert code == 0, said
    assert [c["state"] for c in found["cells"]] == ["done"] * 2
    for folder in folders:
        lines: list[dict[str, Any]] = [
            json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        assert [line["epoch"] for line in lines] == list(range(16))
