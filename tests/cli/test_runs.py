"""``xmodal runs``: what is listed, in which order, and what to type for runs without a result."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.files import claim
from xmodal.runs import KIND, Run

from .. import forms

Cli = Callable[..., Any]


def made(folder: Path, score: float | None = None, state: str = "done", **changes: Any) -> Run:
    """A run directory, with a result if it has a score."""
    claim(folder, KIND)
    run = Run(folder)
    recipe = {"seed": changes.pop("seed", 0), "task": {"metric": {"use": "error-rate"}}}
    manifest = {"format": 2, "ingredients": {"recipe": recipe}, "epochs": 3}
    run.write("manifest.json", forms.manifest(**manifest, **changes))
    run.set_state(state, **({"reason": "TrainingError: too hot"} if state == "stopped" else {}))
    if score is not None:
        seed = recipe["seed"]
        run.write("result.json", forms.result(score, seed=seed))
    return run


def test_the_best_on_validation_comes_first_and_folders_lie_anywhere(xmodal: Cli) -> None:
    made(Path("runs/nft_toy/2026-a"), 0.3, method="nft", scale="cpu")
    made(Path("runs/cells/toy/pare/seed1-abc"), 0.2, method="pare", seed=1)
    made(Path("runs/cells/toy/orca/seed0-abc"), 0.25)  # of a version that wrote no method
    done = xmodal("runs")
    assert (done.code, done.err) == (0, "")
    head, _, *rows = [line for line in done.out.splitlines() if line]
    assert head == "toy: error-rate, lower is better; 10 train"
    assert [row.split()[:3] for row in rows] == [
        ["pare", "-", "1"],
        ["orca", "-", "0"],
        ["nft", "cpu", "0"],
    ]
    assert rows[0].rstrip().endswith("runs/cells/toy/pare/seed1-abc")
    assert "finished" in rows[0]
    one = xmodal("runs", "runs/cells/toy/orca", "--json")
    assert [row["method"] for row in json.loads(one.out)] == ["orca"]


def test_other_problems_on_the_same_data_are_other_tables(xmodal: Cli) -> None:
    for name, y, score in (("a", "price", 0.3), ("b", "area", 0.1), ("c", "price", 0.2)):
        run = made(Path("runs/x") / name, score, method=name)
        manifest = run.read("manifest.json")
        manifest["ingredients"]["recipe"]["task"]["y"] = y
        run.write("manifest.json", manifest)
    lines = [line for line in xmodal("runs").out.splitlines() if line]
    assert [line.split("; ")[1] for line in lines if line.startswith("toy")] == [
        "y=area",
        "y=price",
    ]
    assert [row["method"] for row in json.loads(xmodal("runs", "--json").out)] == ["b", "c", "a"]


def test_higher_is_better_where_it_is(xmodal: Cli) -> None:
    for name, score in (("a", 0.3), ("b", 0.9)):
        run = made(Path("runs/x") / name, score, method=name)
        run.write("result.json", forms.result(score, better="higher"))
    assert [row["method"] for row in json.loads(xmodal("runs", "--json").out)] == ["b", "a"]


def test_runs_without_a_result_say_why_and_what_to_type(xmodal: Cli) -> None:
    stopped = made(Path("runs/hot/1"), state="stopped", method="hot")
    stopped.append_metrics(forms.epoch(0, 0, validation={"metric": 0.125, "loss": 1.0}))
    dead = made(Path("runs/dead/1"), state="running", method="dead")
    with made(Path("runs/live/1"), state="running", method="live").lock():
        done = xmodal("runs")
        rows = {row["method"]: row for row in json.loads(xmodal("runs", "--json").out)}
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {"hot": "failed", "dead": "interrupted", "live": "running"}
    assert rows["hot"]["validation"] == 0.125
    assert rows["hot"]["epochs"] == {"done": 1, "planned": 3}
    assert "failed (1 of 3 epochs)" in done.out
    assert "failed: runs/hot/1: TrainingError: too hot" in done.out
    assert f"to go on: {shlex.join(['xmodal', 'resume', str(dead.path.absolute())])}" in done.out
    assert rows["live"]["retry"] == ""


def test_trials_show_no_test_score(xmodal: Cli) -> None:
    claim(Path("fits/mine"), "fit")
    made(Path("fits/mine/trials/nft-1"), 0.2, method="nft lr=0.1")
    made(Path("fits/mine/model-00"), 0.3, method="nft lr=0.1")
    rows = {Path(row["directory"]).name: row for row in json.loads(xmodal("runs", "--json").out)}
    assert rows["nft-1"]["test"] is None
    assert rows["nft-1"]["validation"] == 0.2
    assert rows["model-00"]["test"] == 0.3
    assert "only the chosen model is tested" in xmodal("runs").out


def test_damaged_and_unbegun_ones_cost_the_others_nothing(xmodal: Cli) -> None:
    made(Path("runs/good/1"), 0.5, method="good")
    bad = made(Path("runs/bad/1"), 0.5, method="bad")
    (bad.path / "result.json").write_text("{}")
    claim(Path("runs/cells/toy/new/seed0-abc"), KIND)
    rows = {row["method"]: row["state"] for row in json.loads(xmodal("runs", "--json").out)}
    assert rows == {"good": "finished", "bad": "damaged", "new": "not begun"}
    done = xmodal("runs")
    assert done.code == 0
    assert "runs/bad/1/result.json is damaged: it lacks 'metric'" in done.out
    assert "1 run not begun, such as runs/cells/toy/new/seed0-abc" in done.out


def test_other_data_of_the_same_name_are_another_table(xmodal: Cli) -> None:
    for data in ("aaa", "bbb"):
        made(Path("runs") / data / "1", 0.5, data={"task": data})
    assert xmodal("runs").out.count("toy: error-rate") == 2


def test_nothing_there(xmodal: Cli) -> None:
    done = xmodal("runs")
    assert (done.code, done.out) == (0, "")
    assert "no runs below runs and fits" in done.err
    assert xmodal("runs", "nowhere").code == 2


def test_it_needs_no_torch(process: Cli) -> None:
    made(Path("runs/nft_toy/1"), 0.3, method="nft")
    done = process("runs", "--json", PYTHONPROFILEIMPORTTIME="1")
    assert json.loads(done.out)
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "xmodal.runs" in imported
    assert not imported & {"torch", "numpy", "pandas"}


@pytest.mark.long
def test_a_real_run_knows_its_method_and_scale(xmodal: Cli, mine: Path) -> None:
    assert xmodal("run", "majority", mine, "--scale", "smoke", "-q").code == 0
    (row,) = json.loads(xmodal("runs", "--json").out)
    assert (row["method"], row["scale"], row["task"]) == ("majority", "smoke", "arrays/mine")
    assert (row["state"], row["samples"]) == (
        "finished",
        {"train": 42, "validation": 9, "test": 9},
    )
    assert row["interval"]["low"] <= row["test"] <= row["interval"]["high"]
    again = xmodal("run", Path(row["directory"]) / "resolved.yaml", "-q")
    assert again.code == 0
    assert [one["scale"] for one in json.loads(xmodal("runs", "--json").out)] == ["smoke"] * 2
    assert np.isfinite(row["seconds"])
