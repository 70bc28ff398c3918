"""Run directories: what a resumed run keeps of its history."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import xmodal
from xmodal import api
from xmodal.runs import Run

from . import forms


def test_a_resumed_run_keeps_only_whole_epochs_before_its_own(tmp_path: Path) -> None:
    """A run that died between an epoch's line and its checkpoint writes that line again.

    Its last checkpoint may be of the epoch's last step: as many steps as the line counts.
    """
    run = Run(tmp_path)
    for stage, epoch, steps in ((0, 0, 5), (0, 1, 10), (1, 0, 12)):
        run.append_metrics(forms.epoch(stage, epoch, total_steps=steps))
    run.rewind_metrics(1, 0)
    assert [(line["stage"], line["epoch"]) for line in run.metrics()] == [(0, 0), (0, 1)]
    run.rewind_metrics(0, 1)
    assert [line["total_steps"] for line in run.metrics()] == [5]


@pytest.mark.long
def test_a_run_that_is_done_keeps_its_best_model_alone(tmp_path: Path) -> None:
    """Checkpoints hold the optimizer too: kept for every run, a comparison would fill a disk."""
    arguments = ("methods/nft", "tasks/darcy")
    kept = api.run(
        *arguments, scale="smoke", root=tmp_path / "kept", overrides=["saving.finished=1"]
    )
    names = sorted(path.name.partition("-")[0] for path in kept.run.checkpoints.iterdir())
    assert names == ["best", "step"]
    done = api.run(*arguments, scale="smoke", root=tmp_path / "done", report=False)
    assert [path.name.partition("-")[0] for path in done.run.checkpoints.iterdir()] == ["best"]
    assert done.result["test"] == kept.result["test"]
    xmodal.load(done.run.path)
    # What verdicts say of the task is no part of the result.
    assert done.result["family"] == "pde"
    renamed = ["family=flow"]
    again = api.run(*arguments, scale="smoke", root=tmp_path / "done", overrides=renamed)
    assert (again.run.path, again.fresh) == (done.run.path, False)


def test_the_command_that_continues_a_run_works_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(Path("it's mine") / "x y")
    run.path.mkdir(parents=True)
    folder = str(tmp_path / "it's mine" / "x y")
    assert shlex.split(run.to_continue()) == ["xmodal", "resume", folder]
    run.write("manifest.json", forms.manifest(plugin_files=["/my plugins/p.py"]))
    words = ["xmodal", "resume", folder, "--plugin", "/my plugins/p.py"]
    assert shlex.split(run.to_continue()) == words
    (run.path / "manifest.json").write_text("{")
    assert shlex.split(run.to_continue()) == words[:3]
