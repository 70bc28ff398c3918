"""Run directories: what a resumed run keeps of its history."""

from __future__ import annotations

from pathlib import Path

from xmodal.runs import Run


def test_a_resumed_run_keeps_only_whole_epochs_before_its_own(tmp_path: Path) -> None:
    """A run that died between an epoch's line and its checkpoint writes that line again.

    Its last checkpoint may be of the epoch's last step: as many steps as the line counts.
    """
    run = Run(tmp_path)
    for stage, epoch, steps in ((0, 0, 5), (0, 1, 10), (1, 0, 12)):
        run.append_metrics({"stage": stage, "epoch": epoch, "total_steps": steps})
    run.rewind_metrics(1, 0)
    assert [(line["stage"], line["epoch"]) for line in run.metrics()] == [(0, 0), (0, 1)]
    run.rewind_metrics(0, 1)
    assert [line["total_steps"] for line in run.metrics()] == [5]
