"""The cheap answers beside a run of a data file, and its verdict against the best of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xmodal import api, plugins, runs
from xmodal.search.pooled import predicted

from .test_fit import TINY, table


def ran(folder: Path, *more: str, layers: tuple[str, ...] = (), cheap: bool = True) -> api.Outcome:
    """A run of two steps on the table of a folder."""
    settings = [*TINY, "training.epochs=1", "training.max_steps=2", *more]
    recipes, root = ("nft", str(folder / "mine.csv"), *layers), folder / "runs"
    return api.run(*recipes, overrides=settings, root=root, cheap=cheap)


def methods(folder: Path) -> set[str]:
    return {path.parent.parent.name for path in (folder / "runs").glob("*/*/result.json")}


def test_the_best_on_validation_stands_in_the_verdict(tmp_path: Path) -> None:
    table(tmp_path, 200)
    found = ran(tmp_path)
    assert methods(tmp_path) == {"nft_mine", "baseline_mine"}
    constant, cheap = found.result["test"]["against"]
    assert constant["words"].startswith("always guessing")
    assert cheap["words"] == "the best cheap answer, baseline"
    (folder,) = (tmp_path / "runs" / "baseline_mine").glob("*/")
    theirs, own = predicted([folder]), predicted([found.run.path])
    assert theirs is not None
    assert own is not None
    assert torch.equal(theirs.y, own.y)
    wrong = (theirs.prediction.argmax(1) != theirs.y).double().mean().item()
    assert cheap["metric"] == pytest.approx(wrong)
    assert cheap["metric"] == runs.Run(folder).read("result.json")["test"]["metric"]
    # Trees see the product that decides; two steps of a network do not.
    assert found.result["test"]["verdict"].startswith("Clearly worse than the best cheap answer")
    for page in ("report.html", "report.md"):
        assert "Clearly worse than the best cheap answer" in (found.run.path / page).read_text()
    assert found.run.read("result.json")["test"] == found.result["test"]


def test_a_run_that_is_done_is_held_too(tmp_path: Path) -> None:
    table(tmp_path, 120)
    alone = ran(tmp_path, cheap=False)
    assert methods(tmp_path) == {"nft_mine"}
    assert len(alone.result["test"]["against"]) == 1
    held = ran(tmp_path)
    assert not held.fresh
    assert held.run.path == alone.run.path
    assert held.result["test"]["metric"] == alone.result["test"]["metric"]
    assert held.result["test"]["against"][0] == alone.result["test"]["against"][0]
    assert len(held.result["test"]["against"]) == 2
    before = (held.run.path / "report.html").stat().st_mtime_ns
    again = ran(tmp_path)
    assert again.result["test"] == held.result["test"]
    assert (again.run.path / "report.html").stat().st_mtime_ns == before


def test_both_have_the_same_samples(tmp_path: Path) -> None:
    table(tmp_path, 160)
    split = ["task.split=[0.5,0.25,0.25]", "fraction=0.5", "seed=3"]
    found = ran(tmp_path, *split)
    (folder,) = (tmp_path / "runs" / "baseline_mine").glob("*/")
    cheap = runs.Run(folder).read("manifest.json")
    assert (
        cheap["facts"]["task"]["samples"]
        == found.run.read("manifest.json")["facts"]["task"]["samples"]
    )
    assert len(found.result["test"]["against"]) == 2


def test_a_layer_that_changes_the_task_changes_it_for_both(tmp_path: Path) -> None:
    """A column that tells the label is left out by a recipe of the user's own."""
    lines = table(tmp_path, 160).read_text().splitlines()
    leak = [f"{line},{line.split(',')[-1]}" for line in lines[1:]]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,leak,y", *leak]) + "\n")
    (tmp_path / "own.yaml").write_text("task: {drop: [leak], metric: f1-error}\n")
    found = ran(tmp_path, layers=(str(tmp_path / "own.yaml"),))
    cheap = found.result["test"]["against"][1]
    assert cheap["words"] == "the best cheap answer, baseline"
    assert cheap["metric"] > 0
    (folder,) = (tmp_path / "runs" / "baseline_mine").glob("*/")
    assert runs.Run(folder).read("manifest.json")["facts"]["task"]["shape"] == [2]
    assert runs.Run(folder).read("result.json")["metric"] == "f1-error"


def test_a_cheap_answer_is_not_held_against_itself(tmp_path: Path) -> None:
    table(tmp_path, 120)
    data, root = str(tmp_path / "mine.csv"), tmp_path / "runs"
    found = api.run("baseline", data, root=root, cheap=True)
    assert found.fresh
    assert len(found.result["test"]["against"]) == 1
    assert methods(tmp_path) == {"baseline_mine"}


def test_one_that_fails_costs_the_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise MemoryError("too many trees")

    table(tmp_path, 120)
    boosted = plugins.registry().load("predictor", "sklearn")
    monkeypatch.setattr(boosted, "fit", broken)
    with caplog.at_level("INFO"):
        found = ran(tmp_path)
    assert "cheap answer baseline is left out: too many trees" in caplog.text
    assert found.fresh
    assert (found.run.path / "report.html").exists()
    assert len(found.result["test"]["against"]) == 1


def test_what_cannot_be_held_stays_as_it_is(tmp_path: Path) -> None:
    """Without test samples there is nothing to hold; a recipe is no data file."""
    table(tmp_path, 120)
    found = ran(tmp_path, "task.split=[0.8,0.2,0]")
    assert not any("cheap" in one["words"] for one in found.result["test"].get("against", ()))
