"""Runs in processes of their own, killed, signalled, damaged and contended for."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from xmodal import runs
from xmodal.engine import checkpoint
from xmodal.files import claim

from ..conftest import TINY
from ..processes import Command

RUN = ["run", "methods/pare", "tasks/darcy", "--scale", "smoke"]
SETTINGS = [*TINY, "training.epochs=6", "saving.every_steps=1"]


def start(root: Path, *more: str) -> Command:
    return Command(*RUN, *SETTINGS, "--root", root, *more, streams=root.with_name("streams"))


def directory(root: Path) -> Path:
    (found,) = root.glob("*/*")
    return found


def wait_for_steps(root: Path, count: int, process: Command) -> None:
    """Wait until ``count`` checkpoints have been written (or the process has ended)."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        names = [p.name for p in root.glob("*/*/checkpoints/step-*")]
        if names and max(int(name.removeprefix("step-")) // 2 for name in names) >= count:
            return
        time.sleep(0.01)


def final(root: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = checkpoint.load(directory(root) / "final")["model"]
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    root = tmp_path_factory.mktemp("whole") / "runs"
    code, _, err = start(root).wait()
    assert code == 0, err
    return final(root)


@pytest.mark.slow
def test_killed_three_times_ends_bit_equal(tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    chance = random.Random()
    for steps in (2, 7, 12):
        process = start(tmp_path / "runs")
        wait_for_steps(tmp_path / "runs", steps, process)
        time.sleep(chance.uniform(0, 0.1))  # anywhere, also inside a save
        process.send_signal(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
    code, _, err = start(tmp_path / "runs").wait()
    assert code == 0, err
    assert "resuming" in err
    resumed = final(tmp_path / "runs")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit(
    number: signal.Signals, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    root = tmp_path / "runs"
    process = start(root)
    wait_for_steps(root, 5, process)
    process.send_signal(number)
    code, _, err = process.wait()
    assert code == 128 + number
    assert "xmodal resume" in err
    assert "Traceback" not in err
    status = json.loads((directory(root) / "status.json").read_text())
    assert status["state"] == "interrupted"
    done = Command("resume", directory(root), "--json", streams=tmp_path / "streams").wait()
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 18
    assert all(torch.equal(whole[n], t) for n, t in final(root).items())


@pytest.mark.slow
def test_two_processes_one_directory(tmp_path: Path) -> None:
    held = runs.Run(tmp_path / "held")
    claim(held.path, runs.KIND)
    with held.lock():  # this process is the first of the two
        held.set_state("running")
        code, _, err = start(tmp_path / "runs", "--directory", str(held.path)).wait()
    assert code == 2, err
    assert f"is being run by process {os.getpid()}" in err
    assert "Traceback" not in err
    assert held.state == "dead"  # says it runs, but nobody holds it: the next one may continue
