"""A run stopped anywhere and resumed ends bit-equal to one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xmodal import api, runs
from xmodal.engine import checkpoint
from xmodal.engine.execute import Silent
from xmodal.engine.loop import EpochRecord

from ..conftest import TINY

METHODS = ("nft", "pare", "pare-published", "fpt", "scratch", "linear-probe")
COMMON = [o for o in TINY if not o.startswith("selector")]


class StopAt(Silent):
    """Behaves like a crash after so many records: raises from inside the loop."""

    def __init__(self, records: int) -> None:
        self.left = records

    def record(self, record: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("crash")


class Collect(Silent):
    """Keeps the losses of all steps and epochs."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def record(self, record: Any) -> None:
        if not isinstance(record, EpochRecord):
            self.losses.append(record.loss)


def run(method: str, root: Path, observer: Silent | None = None) -> runs.Run:
    return api.run(
        f"methods/{method}",
        "tasks/darcy",
        scale="smoke",
        overrides=[*COMMON, "saving.every_steps=1", "saving.keep=50"],
        root=root,
        report=False,
        observer=observer,
    ).run


def weights(run_: runs.Run, folder: str = "final") -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = checkpoint.load(run_.path / folder)["model"]
    return model


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.mark.parametrize("method", METHODS)
def test_crash_in_the_middle_of_an_epoch_changes_nothing(method: str, tmp_path: Path) -> None:
    whole = run(method, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run(method, tmp_path / "cut", StopAt(6))  # after epoch 1 (3 steps + its record), 2 steps
    (broken,) = (tmp_path / "cut").glob("*/*")
    resumed = run(method, tmp_path / "cut")
    assert resumed.path == broken
    assert_same(weights(whole), weights(resumed))
    assert _metrics(whole) == _metrics(resumed)
    assert whole.read("result.json")["test"] == resumed.read("result.json")["test"]


@pytest.mark.parametrize("records", [0, 1, 3, 4, 8, 11])
def test_every_place_to_stop(records: int, tmp_path: Path) -> None:
    """At the start, mid-epoch, on the last step before an epoch's end, at its end, near the end."""
    whole = run("pare", tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run("pare", tmp_path / "cut", StopAt(records))
    assert_same(weights(whole), weights(run("pare", tmp_path / "cut")))


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """Guards the tests above: consecutive checkpoints do differ, and so does another seed."""
    whole = run("pare", tmp_path)
    first, second, *_ = checkpoint.complete(whole.checkpoints, "step-")[::-1]
    a, b = checkpoint.load(first)["model"], checkpoint.load(second)["model"]
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    collected = []
    for workers in (0, 2):
        seen = Collect()
        api.run(
            "methods/pare",
            "tasks/darcy",
            scale="smoke",
            overrides=[*COMMON, f"workers={workers}"],
            root=tmp_path / str(workers),
            report=False,
            observer=seen,
        )
        collected.append(seen.losses)
    assert collected[0] == collected[1]
    assert len(collected[0]) == 9


def _metrics(run_: runs.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run_.metrics()]
