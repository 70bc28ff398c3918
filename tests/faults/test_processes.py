"""One run on two processes: the same losses as one process with the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    "run", "methods/nft", "tasks/darcy", "--scale", "smoke", "device=cpu",
    "training.max_steps=null", "training.epochs=3", "training.batch.size=4", "--json", "-q",
]  # fmt: skip


def lines(root: Path) -> list[dict[str, Any]]:
    (file,) = root.glob("*/*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def launch(root: Path, *launcher: str) -> str:
    command = [sys.executable, "-m", *launcher, "xmodal", *ARGUMENTS, "--root", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    launch(tmp_path / "one")
    two = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    out = launch(tmp_path / "two", *two)
    assert json.loads(out)["fresh"]  # one process speaks, the other is silent
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert b["train"]["loss"] == pytest.approx(a["train"]["loss"], rel=1e-5)
        assert b["validation"]["metric"] == pytest.approx(a["validation"]["metric"], rel=1e-5)
