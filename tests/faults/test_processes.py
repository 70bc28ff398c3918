"""One run on two processes: the numbers of one process with the same batch, and the same ends.

Run as a script, this file is one of the two processes: it makes all runs of ``CASES`` in turn and
writes how each of them ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal import api, runs
from xmodal.cli.app import main
from xmodal.engine import checkpoint
from xmodal.engine.distributed import portions
from xmodal.engine.observe import Silent
from xmodal.errors import XModalError

DARCY, CAR = "tasks/darcy", "tasks/openml/car"
SMALL = ["training.max_steps=null", "training.epochs=2"]
# 11 samples: steps of 5, 5 and 1; the last leaves one of two processes without a sample.
ELEVEN = [*SMALL, "task.train=11"]
STILL = "selector.gumbel_epochs=0"
Case = tuple[str, str, list[str]]
SAME: dict[str, Case] = {
    "pare": ("pare", DARCY, [*ELEVEN, STILL, "training.batch={size: 5, micro: null}"]),
    "pare in turns": ("pare", DARCY, [*ELEVEN, STILL, "training.batch={size: 5, micro: 2}"]),
    "summed": (
        "nft",
        DARCY,
        [*ELEVEN, "training.batch={size: 5, micro: 2}", "stages.0.accumulate=sum"],
    ),
    "classes": (
        "nft",
        CAR,
        [
            *("training.max_steps=3", "training.batch.size=7", "evaluation_batch=100"),
            "task.loss={use: cross-entropy, balanced: true}",
        ],
    ),
    "head alone": ("linear-probe", CAR, ["training.clip=0.01"]),
    "recraft": (
        "recraft",
        CAR,
        [
            "training.epochs=1",
            "stages.0={epochs: 2, penalty_from: 1, lipschitz_in: tokens}",
            "stages.1={epochs: 3, samples: 16}",
            "stages.2={epochs: 1, max_steps: 3, chunk: 4}",
        ],
    ),
    "mona": (
        "mona",
        CAR,
        [
            *("stages.0.epochs=2", "stages.0.source_batch=7", "stages.0.alpha=0.3"),
            *("stages.0.weight=20", "training.batch={size: 5, micro: 1}"),
        ],
    ),
    "mona at once": ("mona", CAR, ["stages.0.epochs=1", "stages.0.weight=20"]),
    "orca": ("orca", CAR, ["stages.0={epochs: 3, samples: 16}"]),
    "closed form": ("baseline", CAR, []),
}
"""Runs that draw nothing for single samples: equal on one and two processes."""
NOISY: Case = (
    "pare",
    DARCY,
    [*ELEVEN, "training.batch={size: 5, micro: null}", "selector.network=mlp-dropout"],
)
"""Noise and drop-out in the gate: each process draws its own."""
BAD = {"sample": "the loss is", "label": "the gradient is not finite"}

PLUGIN = '''
"""A loss whose gradient is not a number where a label is large; its value is 0 there."""
import torch
from xmodal.hookspecs import hookimpl
from xmodal.interfaces import Loss, Settings

class Sharp(Loss):
    class Config(Settings):
        pass

    @classmethod
    def supports(cls, output):
        return True

    def forward(self, prediction, y):
        edge = (0 * prediction.flatten(1).sum(1)).sqrt()
        return torch.where(y.flatten(1)[:, 0] > 4, edge, (prediction - y).square().mean(1))

@hookimpl
def xmodal_losses():
    return {"sharp": f"{__name__}:Sharp"}
'''


def write_bad_data(folder: Path) -> None:
    """Two problems of numbers: one sample is too large for a backbone, one label too large
    to fit.
    """
    for name in BAD:
        random = np.random.default_rng(0)
        x = random.uniform(-1, 1, (60, 2, 12)).astype(np.float32)
        y = random.uniform(-1, 1, (60, 2)).astype(np.float32)
        if name == "sample":
            x[7] = 1e30
        else:
            y[7] = 5
        np.savez(folder / f"{name}.npz", x=x, y=y)
        loss = ", loss: sharp" if name == "label" else ""
        task = f"use: arrays, path: '{folder}/{name}.npz', kind: regression, normalize: none{loss}"
        (folder / f"{name}.yaml").write_text(f"task: {{{task}}}\n")
    (folder / "sharp.py").write_text(PLUGIN)


class Watch(Silent):
    """Counts steps; sends this process a signal after one of them."""

    def __init__(self, signal_after: int | None = None) -> None:
        self.steps, self.signal_after = 0, signal_after

    def record(self, record: Any) -> None:
        self.steps += 1
        if self.steps == self.signal_after:
            os.kill(os.getpid(), signal.SIGTERM)


def run(root: Path, method: str, task: str, given: list[str], **more: Any) -> api.Outcome:
    common = {"scale": "smoke", "overrides": ["device=cpu", *given], "report": False}
    return api.run(f"methods/{method}", task, root=root, **common, **more)


# --- the two processes ---


def ends(file: Path, root: Path, case: Case, stop: int | None = None, **more: Any) -> None:
    """Make a run in ``root``, and write how it ended here."""
    watch, code = Watch(stop), 0
    found: dict[str, Any] = {}
    try:
        found = {"result": run(root, *case, observer=watch, **more).result}
    except XModalError as error:
        code, found = error.exit_code, {"message": str(error)}
    end = {"code": code, "records": watch.steps, "random": torch.rand(1).item(), **found}
    file.write_text(json.dumps(end))


def child(folder: Path) -> None:
    """All runs, as one of several processes."""
    rank = int(os.environ["RANK"])
    for name, case in {**SAME, "noisy": NOISY}.items():
        ends(folder / f"{name} {rank}", folder / name, case)
    for name, case in {"noisy": NOISY, "still": SAME["pare"]}.items():
        # Of the two only the second one hears the signal, in the middle of the second epoch.
        cut, stop = folder / f"{name} cut", 5 if rank == 1 else None
        ends(folder / f"{name} stopped {rank}", cut, case, stop)
    ends(folder / f"noisy cut {rank}", folder / "noisy cut", NOISY)
    for name in BAD:
        case = ("nft", str(folder / f"{name}.yaml"), [*SMALL, "training.batch.size=6"])
        more = {"plugin_files": (str(folder / "sharp.py"),)}
        ends(folder / f"{name} {rank}", folder / name, case, **more)
    with (folder / f"out{rank}").open("w") as out, redirect_stdout(out):
        sys.argv = ["xmodal", "run", "methods/nft", CAR, *("--scale", "smoke"), "device=cpu"]
        sys.argv += ["--json", "-q", *("--root", str(folder / "cli"))]
        main()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes made of every case."""
    folder = tmp_path_factory.mktemp("two")
    write_bad_data(folder)
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    port = ["--main_process_port", str(free_port())]
    command = [sys.executable, "-m", *launcher, *port, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def end(folder: Path, name: str) -> list[dict[str, Any]]:
    """What both processes say of a run."""
    return [json.loads((folder / f"{name} {rank}").read_text()) for rank in (0, 1)]


def made(root: Path) -> runs.Run:
    (path,) = root.glob("*/*/")
    return runs.Run(path)


# --- the same numbers ---


def same(two: Any, one: Any, where: str) -> None:
    """Equal, numbers to rounding."""
    if isinstance(one, dict):
        assert two.keys() == one.keys(), where
        for name in one:
            same(two[name], one[name], f"{where}/{name}")
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5), where
    else:
        assert two == one, where


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """Without how long it took. This file is also a program, so it imports no other test."""
    timed = ("seconds", "samples_per_second", "share_of_peak")
    return {name: value for name, value in record.items() if name not in timed}


def compare(two: runs.Run, one: runs.Run) -> None:
    """Everything that is written about two runs, but time and memory."""
    for b, a in zip(two.metrics(), one.metrics(), strict=True):
        same(untimed(b), untimed(a), "metrics")
    results = [dict(untimed(r.read("result.json")), memory_bytes=0) for r in (two, one)]
    same(*results, "result")
    best = [checkpoint.complete(r.checkpoints, "best-")[0] for r in (two, one)]
    for folders in ((two.path / "final", one.path / "final"), best):
        weights = [checkpoint.load(folder)["model"] for folder in folders]
        for name, tensor in weights[1].items():
            torch.testing.assert_close(weights[0][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one(name: str, two: Path, tmp_path: Path) -> None:
    """Losses and their parts, gradient norms, scores, counts and the best epoch."""
    one = run(tmp_path, *SAME[name])
    compare(made(two / name), one.run)
    first, second = end(two, name)
    assert first["code"] == second["code"] == 0
    assert first["records"] == second["records"]
    first["result"], second["result"] = untimed(first["result"]), untimed(second["result"])
    assert first["result"] == second["result"]  # every process knows the same
    assert first["result"]["memory_bytes"] > 2**20


@pytest.mark.slow
def test_draws_differ_between_processes_and_the_weights_do_not(two: Path) -> None:
    first, second = end(two, "noisy")
    assert first["random"] != second["random"]
    assert first["result"]["test"] == second["result"]["test"]


@pytest.mark.slow
def test_every_line_of_the_log_stands_once(two: Path) -> None:
    log = (made(two / "pare").path / "log.txt").read_text().splitlines()
    lines = [line.split(" ", 2)[2] for line in log]  # without the time
    assert [line.partition("  ")[0] for line in lines if line.startswith("epoch")] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    assert len(lines) == len(set(lines))


# --- the same ends ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noisy", "still"])
def test_a_signal_to_one_process_stops_both(name: str, two: Path) -> None:
    cuts = end(two, f"{name} stopped")
    assert [cut["code"] for cut in cuts] == [143, 143]
    assert [cut["records"] for cut in cuts] == [5, 5]
    assert all("xmodal resume" in cut["message"] for cut in cuts)


@pytest.mark.slow
def test_resumed_on_two_processes_it_ends_bit_equal(two: Path) -> None:
    """With noise and drop-out in the gate: only the first process's streams are saved."""
    whole, cut = made(two / "noisy"), made(two / "noisy cut")
    assert end(two, "noisy cut")[0]["records"] < end(two, "noisy")[0]["records"]
    a, b = (checkpoint.load(r.path / "final")["model"] for r in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)
    lines = [[untimed(line) for line in r.metrics()] for r in (whole, cut)]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_resumed_on_one_process_it_ends_the_same(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "still cut", tmp_path / "cut")
    watch = Watch()
    resumed = run(tmp_path / "cut", *SAME["pare"], observer=watch)
    assert watch.steps == 3  # of eight records five were made before
    compare(resumed.run, made(two / "pare"))


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_what_is_not_finite_in_one_process_stops_both(name: str, two: Path) -> None:
    first, second = end(two, name)
    assert first["code"] == second["code"] == 5
    assert first["records"] == second["records"]
    assert first["message"] == second["message"]
    assert BAD[name] in first["message"]
    assert made(two / name).read("status.json")["state"] == "stopped"


# --- who does what ---


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 6, 7])
@pytest.mark.parametrize("micro", [1, 3, 7])
def test_every_sample_has_one_process(world: int, count: int, micro: int) -> None:
    taken = [portions(count, micro, rank, world) for rank in range(world)]
    places = [place for own in taken for p in own for place in p.places.tolist()]
    assert sorted(places) == list(range(count))
    assert sum(p.share for own in taken for p in own) / world == pytest.approx(1)
    assert all(1 <= len(p.places) <= micro for own in taken for p in own)
    assert sum(p.part for own in taken for p in own) == pytest.approx(-(-count // micro))


# --- from the command line ---


@pytest.mark.slow
def test_one_process_speaks(two: Path) -> None:
    assert json.loads((two / "out0").read_text())["fresh"]
    assert not (two / "out1").read_text()


@pytest.mark.long
def test_one_process_where_several_were_asked_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``accelerate launch --cpu --num_processes 2`` sets; without MPI it starts one."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    (line,) = [n for n in run(tmp_path, "nft", CAR, []).result["notes"] if "torchrun" in n]
    assert "one process" in line


if __name__ == "__main__":
    child(Path(sys.argv[1]))
