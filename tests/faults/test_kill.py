"""Runs in processes of their own, killed, signalled, damaged and contended for."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from xmodal import runs
from xmodal.engine import checkpoint

from ..conftest import TINY

COMMAND = [sys.executable, "-m", "xmodal", "run", "methods/pare", "tasks/darcy", "--scale", "smoke"]
SETTINGS = [*TINY, "training.epochs=6", "saving.every_steps=1"]


def start(root: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *SETTINGS, "--root", str(root), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def directory(root: Path) -> Path:
    (found,) = root.glob("*/*")
    return found


def wait_for_steps(root: Path, count: int, process: subprocess.Popen[str]) -> None:
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
    root = tmp_path_factory.mktemp("whole")
    code, _, err = finish(start(root))
    assert code == 0, err
    return final(root)


@pytest.mark.slow
def test_killed_three_times_ends_bit_equal(tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    chance = random.Random()
    for steps in (2, 7, 12):
        process = start(tmp_path)
        wait_for_steps(tmp_path, steps, process)
        time.sleep(chance.uniform(0, 0.1))  # anywhere, also inside a save
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, _, err = finish(start(tmp_path))
    assert code == 0, err
    assert "resuming" in err
    resumed = final(tmp_path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit(
    number: signal.Signals, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    process = start(tmp_path)
    wait_for_steps(tmp_path, 5, process)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert "xmodal resume" in err
    assert "Traceback" not in err
    status = json.loads((directory(tmp_path) / "status.json").read_text())
    assert status["state"] == "interrupted"
    command = [sys.executable, "-m", "xmodal", "resume", str(directory(tmp_path)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 18
    assert all(torch.equal(whole[n], t) for n, t in final(tmp_path).items())


@pytest.mark.slow
def test_two_processes_one_directory(tmp_path: Path) -> None:
    held = runs.Run(tmp_path / "held")
    held.path.mkdir()
    with held.lock():  # this process is the first of the two
        held.set_state("running")
        code, _, err = finish(start(tmp_path, "--directory", str(held.path)))
    assert code == 2, err
    assert f"is being run by process {os.getpid()}" in err
    assert "Traceback" not in err
    assert held.state == "dead"  # says it runs, but nobody holds it: the next one may continue
