"""Damaged checkpoints are named and passed over; numbers that are not finite stop a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xmodal.engine import checkpoint
from xmodal.engine.observe import Silent
from xmodal.errors import DataError, TrainingError
from xmodal.files import digest


class Notes(Silent):
    """Keeps the notes and crashes after some records."""

    def __init__(self, records: int = 10**9) -> None:
        self.left = records
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def record(self, record: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("crash")


STATE = {
    "tensors": {"a": torch.arange(5.0), "shared": torch.zeros(2)},
    1: [1, 2.5, None, True, "text", (3, float("inf"))],
    "nan": float("nan"),
}


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", STATE)
    again = checkpoint.load(tmp_path / "c")
    assert torch.equal(again["tensors"]["a"], STATE["tensors"]["a"])  # type: ignore[index]
    assert again[1] == STATE[1]  # type: ignore[index]
    assert again["nan"] != again["nan"]
    assert not [p for p in (tmp_path / "c").iterdir() if p.suffix in (".pkl", ".pt", ".bin")]


def test_refuses_what_it_cannot_save(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot save object at '/x/y'"):
        checkpoint.save(tmp_path / "c", {"x": {"y": object()}})


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damage_is_found_and_named(name: str, harm: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", STATE)
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif harm == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"damaged.*c"):
        checkpoint.load(tmp_path / "c")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", STATE)
    document = json.loads((tmp_path / "c" / "state.json").read_text())
    (tmp_path / "c" / "state.json").write_text(json.dumps({**document, "format": 99}))
    sums = json.loads((tmp_path / "c" / checkpoint.SUMS).read_text())
    sums["state.json"] = digest(tmp_path / "c" / "state.json")
    (tmp_path / "c" / checkpoint.SUMS).write_text(json.dumps(sums))
    with pytest.raises(DataError, match="format 99; this version reads 1"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.long
def test_a_damaged_checkpoint_falls_back(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    whole = tiny_run(root=tmp_path / "whole").run
    with pytest.raises(RuntimeError, match="crash"):
        tiny_run("saving.every_steps=1", observer=Notes(6), root=tmp_path / "cut")
    (cut,) = (tmp_path / "cut").glob("*/*")
    newest = checkpoint.complete(cut / "checkpoints", "step-")[0]
    (newest / "tensors.safetensors").write_bytes(b"broken")
    seen = Notes()
    resumed = tiny_run("saving.every_steps=1", observer=seen, root=tmp_path / "cut").run
    assert any(newest.name in line and "before it" in line for line in seen.lines)
    a = checkpoint.load(whole.path / "final")["model"]
    b = checkpoint.load(resumed.path / "final")["model"]
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.long
def test_a_partial_write_is_ignored(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    """A crash inside a save leaves a temporary folder, which neither counts nor stays."""
    with pytest.raises(RuntimeError, match="crash"):
        tiny_run("saving.every_steps=1", observer=Notes(5), root=tmp_path)
    (cut,) = tmp_path.glob("*/*")
    newest = checkpoint.complete(cut / "checkpoints", "step-")[0]
    shutil.copytree(newest, cut / "checkpoints" / ".partial-1-step-99999999")
    (cut / "checkpoints" / ".partial-1-step-99999999" / checkpoint.SUMS).unlink()
    tiny_run("saving.every_steps=1", root=tmp_path)
    assert not list((cut / "checkpoints").glob(".partial*"))


def test_a_loss_that_is_not_finite_stops_before_the_update(
    tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"is not finite|the loss is") as caught:
        tiny_run("training.optimizer.lr=1e30", "training.schedule.warmup_epochs=0", root=tmp_path)
    assert "step" in str(caught.value)
    assert caught.value.exit_code == 5
    (run,) = tmp_path.glob("*/*")
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"


@pytest.mark.long
def test_the_same_run_is_not_done_twice(tiny_run: Callable[..., Any]) -> None:
    first = tiny_run()
    again = tiny_run()
    assert first.fresh
    assert not again.fresh
    assert again.run.path == first.run.path
    assert again.result == json.loads((first.run.path / "result.json").read_text())
    forced = tiny_run(force=True)
    assert forced.fresh
    assert forced.run.path != first.run.path
    assert tiny_run("seed=1").run.path != first.run.path


def test_what_does_not_change_the_result_does_not_change_the_hash(
    tiny_run: Callable[..., Any],
) -> None:
    first = tiny_run()
    again = tiny_run("workers=1", "evaluation_batch=3", "saving.every_steps=1", "device=cpu")
    assert not again.fresh
    assert again.run.path == first.run.path
