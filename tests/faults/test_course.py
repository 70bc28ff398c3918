"""A run that goes back to an earlier checkpoint, or is repeated, keeps what is its own.

What it leaves behind has higher numbers: it must neither push new checkpoints out nor be taken for
the best model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from xmodal import api, runs
from xmodal.engine import checkpoint
from xmodal.engine.observe import Silent
from xmodal.inference.model import best_weights
from xmodal.testing.running import RecordingObserver, StopAt, assert_same, weights

from ..conftest import TINY


def run(directory: Path, observer: Silent | None = None, **more: Any) -> api.Outcome:
    """Nine steps that save after each of them and keep one checkpoint and one best."""
    saving = ["saving.every_steps=1", "saving.keep=1"]
    return api.run(
        "methods/pare",
        "tasks/darcy",
        scale="smoke",
        overrides=[*TINY, *saving],
        directory=directory,
        report=False,
        observer=observer,
        **more,
    )


class Started(RecordingObserver):
    """Also knows whether the run was resumed."""

    resumed = False

    def started(self, run: runs.Run, session: Any, resumed: bool) -> None:
        self.resumed = resumed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run that nothing stopped."""
    return run(tmp_path_factory.mktemp("whole")).run


@pytest.fixture
def done(whole: runs.Run, tmp_path: Path) -> runs.Run:
    """A copy of it."""
    return runs.Run(shutil.copytree(whole.path, tmp_path / "done"))


@pytest.fixture
def cut(tmp_path: Path) -> runs.Run:
    """A run that crashed in its third epoch, after seven of nine steps."""
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", StopAt(10))
    return runs.Run(tmp_path / "cut")


def names(run_: runs.Run, prefix: str = "") -> list[str]:
    return sorted(p.name for p in run_.checkpoints.glob(prefix + "*"))


def leave_a_later_best(run_: runs.Run) -> None:
    """As of a course that found its best epoch later; its weights are all zeros."""
    wrong = {name: torch.zeros_like(t) for name, t in best_weights(run_)[0].items()}
    checkpoint.save(run_.checkpoints / "best-0000000600", {"model": wrong})


def damage(run_: runs.Run) -> None:
    (newest,) = checkpoint.complete(run_.checkpoints, checkpoint.STEP)
    (newest / "tensors.safetensors").write_bytes(b"broken")


def assert_finished_as(whole: runs.Run, run_: runs.Run) -> None:
    assert run_.state == "done"
    assert_same(weights(whole), weights(run_))
    assert names(run_) == names(whole)
    assert_same(best_weights(whole)[0], best_weights(run_)[0])
    assert whole.read("result.json")["test"] == run_.read("result.json")["test"]


@pytest.mark.long
def test_a_repeated_run_ends_with_its_own_best(whole: runs.Run, done: runs.Run) -> None:
    leave_a_later_best(done)
    done.write("trackers.json", {"csv": {"done": True}})
    again = run(done.path, force=True)
    assert again.fresh
    assert_finished_as(whole, done)
    assert len(done.metrics()) == len(whole.metrics())
    assert not (done.path / "trackers.json").exists()


@pytest.mark.slow
def test_a_repeated_run_that_is_cut_has_nothing_of_the_one_before(
    whole: runs.Run, done: runs.Run
) -> None:
    shutil.copytree(done.checkpoints / names(done)[0], done.checkpoints / "step-000000000099")
    with pytest.raises(RuntimeError, match="crash"):
        run(done.path, StopAt(0), force=True)
    assert done.state == "failed"
    assert not names(done)
    assert not (done.path / "result.json").exists()
    seen = Started()
    run(done.path, seen)
    assert not seen.resumed
    assert_finished_as(whole, done)


@pytest.mark.long
def test_force_repeats_a_run_that_is_not_done(whole: runs.Run, cut: runs.Run) -> None:
    seen = Started()
    run(cut.path, seen, force=True)
    assert not seen.resumed
    assert len(seen.losses) == 9
    assert_finished_as(whole, cut)


@pytest.mark.slow
def test_a_run_that_is_held_is_not_cleared(done: runs.Run) -> None:
    before = names(done)
    with done.lock(), pytest.raises(Exception, match="is being run by process"):
        run(done.path, force=True)
    assert names(done) == before
    assert json.loads((done.path / "status.json").read_text())["state"] == "done"


@pytest.mark.long
def test_going_back_keeps_what_is_new(whole: runs.Run, cut: runs.Run) -> None:
    """Its only checkpoint is damaged: it begins anew, is killed twice more, and ends the same."""
    damage(cut)
    leave_a_later_best(cut)
    left = names(cut)
    with pytest.raises(RuntimeError, match="crash"):
        run(cut.path, StopAt(0))
    assert names(cut) == left  # nothing goes before there is something in its place
    with pytest.raises(RuntimeError, match="crash"):
        run(cut.path, StopAt(5))
    (kept,) = checkpoint.complete(cut.checkpoints, checkpoint.STEP)
    assert checkpoint.load(kept)["snapshot"]["total_steps"] == 4
    assert "best-0000000600" not in names(cut)
    seen = Started()
    run(cut.path, seen)
    assert seen.resumed
    assert len(seen.losses) == 5
    assert_finished_as(whole, cut)


def test_what_is_swept(tmp_path: Path) -> None:
    for number in (1, 2, 3, 7, 8):
        checkpoint.save(tmp_path / f"step-{number}", {"number": number})
    checkpoint.save(tmp_path / "best-9", {})
    (tmp_path / ".partial-1-step-4").mkdir()
    checkpoint.sweep(tmp_path / "step-3", checkpoint.STEP, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-9", "step-2", "step-3"]
    checkpoint.sweep(tmp_path / "step-3", checkpoint.STEP, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-9"]
