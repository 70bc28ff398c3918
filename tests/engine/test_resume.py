"""A run stopped anywhere and resumed ends bit-equal to one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xmodal import api, runs
from xmodal.engine import checkpoint
from xmodal.engine.observe import Silent
from xmodal.testing.running import RecordingObserver, StopAt, assert_same, weights

from ..conftest import TINY
from ..forms import TIMED

METHODS = ("nft", "pare", "pare-published", "fpt", "scratch", "linear-probe")
COMMON = [o for o in TINY if not o.startswith("selector")]


def run(method: str, root: Path, observer: Silent | None = None) -> runs.Run:
    return api.run(
        f"methods/{method}",
        "tasks/darcy",
        scale="smoke",
        overrides=[*COMMON, "saving.every_steps=1", "saving.keep=50", "saving.finished=50"],
        root=root,
        report=False,
        observer=observer,
    ).run


@pytest.fixture(scope="module")
def pare(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run of PaRe that nothing stopped."""
    return run("pare", tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_crash_in_the_middle_of_an_epoch_changes_nothing(
    method: str, pare: runs.Run, tmp_path: Path
) -> None:
    whole = pare if method == "pare" else run(method, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run(method, tmp_path / "cut", StopAt(6))  # after epoch 1 (3 steps + its record), 2 steps
    (broken,) = (tmp_path / "cut").glob("*/*")
    resumed = run(method, tmp_path / "cut")
    assert resumed.path == broken
    assert_same(weights(whole), weights(resumed))
    assert _metrics(whole) == _metrics(resumed)
    assert whole.read("result.json")["test"] == resumed.read("result.json")["test"]


@pytest.mark.parametrize(
    "records",
    [pytest.param(n, marks=[pytest.mark.slow] if n != 8 else []) for n in (0, 1, 3, 4, 8, 11)],
)
def test_every_place_to_stop(records: int, pare: runs.Run, tmp_path: Path) -> None:
    """At the start, mid-epoch, on the last step before an epoch's end, at its end, near the end."""
    with pytest.raises(RuntimeError, match="crash"):
        run("pare", tmp_path / "cut", StopAt(records))
    assert_same(weights(pare), weights(run("pare", tmp_path / "cut")))


@pytest.mark.parametrize("records", [5, 9])
def test_a_best_epoch_that_was_not_saved_is_found_again(
    records: int, pare: runs.Run, tmp_path: Path
) -> None:
    """Saved in the middle of epochs only: a kill goes back behind the best epoch, or its loss."""

    def begin(observer: Silent | None = None) -> runs.Run:
        overrides = [*COMMON, "saving.every_steps=2"]
        return api.run(
            "methods/pare", "tasks/darcy", scale="smoke", overrides=overrides, root=tmp_path,
            report=False, observer=observer,
        ).run  # fmt: skip

    with pytest.raises(RuntimeError, match="crash"):
        begin(StopAt(records))
    resumed = begin()
    assert_same(weights(pare), weights(resumed))
    assert _metrics(pare) == _metrics(resumed)
    for key in ("test", "validation"):
        assert pare.read("result.json")[key] == resumed.read("result.json")[key]


def test_a_run_reads_its_numbers_once_and_keeps_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[runs.Run] = []
    metrics = runs.Run.metrics
    monkeypatch.setattr(runs.Run, "metrics", lambda self: [reads.append(self), *metrics(self)][1:])
    with pytest.raises(RuntimeError, match="crash"):
        run("nft", tmp_path, StopAt(6))
    done = run("nft", tmp_path)
    assert len(reads) == 3  # when it began, when it was resumed, and for the advice at its end
    device = done.read("result.json")["device"]
    log = (done.path / "log.txt").read_text().splitlines()
    said = [line.split(" ", 2)[2].partition("  ")[0] for line in log if " note: " not in line]
    assert said == [
        f"running {done.path} on {device}",
        "epoch 1/3",
        f"resuming {done.path} on {device}",
        "epoch 2/3",
        "epoch 3/3",
    ]


def test_a_checkpoint_of_an_earlier_version_resumes(pare: runs.Run, tmp_path: Path) -> None:
    """It does not count the parameters that train; the lines of the finished epochs do."""
    with pytest.raises(RuntimeError, match="crash"):
        run("pare", tmp_path, StopAt(6))
    (broken,) = tmp_path.glob("*/*")
    for folder in checkpoint.complete(broken / "checkpoints", "step-"):
        state = checkpoint.load(folder)
        del state["snapshot"]["trainable"]
        checkpoint.save(folder, state)
    resumed = run("pare", tmp_path)
    assert_same(weights(pare), weights(resumed))
    results = [one.read("result.json")["parameters"] for one in (pare, resumed)]
    assert results[0] == results[1]
    assert results[0]["trainable"] > 0


def test_the_comparison_can_fail(pare: runs.Run) -> None:
    """Guards the tests above: consecutive checkpoints do differ."""
    first, second, *_ = checkpoint.complete(pare.checkpoints, "step-")[::-1]
    a, b = checkpoint.load(first)["model"], checkpoint.load(second)["model"]
    assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    collected = []
    for workers in (0, 2):
        seen = RecordingObserver()
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
    return [{k: v for k, v in line.items() if k not in TIMED} for line in run_.metrics()]
