"""``xmodal data``: what there is, and how it is made ready."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..paths import DATA
from ..processes import Command
from ..servers import Server

PACK = DATA / "cc18_30.npz"
Cli = Callable[..., Any]

PLUGIN = """
import os
import time
from pathlib import Path
import numpy as np
import torch
from torch.utils.data import TensorDataset
from xmodal import hookimpl
from xmodal.data.datasets import DataCard, RemoteFile
from xmodal.interfaces import Loss, Metric, Settings, Target, Task, TaskData, TaskFacts, Use
from xmodal.interfaces import default

class Ramp(Task):
    class Config(Settings):
        loss: Use[Loss] = default("mse")
        metric: Use[Metric] = default("mae")

    def __init__(self, config, context):
        super().__init__(config, context)
        self.store = context.store

    @classmethod
    def describe(cls, config, store):
        split = {"train": 8, "validation": 1, "test": 1}
        return TaskFacts("ramp", (1, 4), Target("regression", 1), split, "series")

    def load(self, seed):
        x = np.load(self.store.dataset(self.card(self.config)) / "x.npy", mmap_mode="r")
        x = torch.tensor(x, dtype=torch.float32).view(-1, 1, 1).expand(-1, 1, 4).contiguous()
        parts = [TensorDataset(x[p], x[p, 0, :1]) for p in (slice(8), slice(8, 9), slice(9, 10))]
        return TaskData(*parts, self.store.dataset_digest(self.card(self.config)))

    @classmethod
    def card(cls, config):
        return DataCard("ramp", "toys", "nobody", "CC0", size=2_000_000, generable=True)

    @classmethod
    def prepare(cls, config, wanted, folder):
        if wanted.files:
            np.save(folder / "x.npy", np.fromfile(wanted.files["x.f8"]))
            return {}
        np.save(folder / "x.npy", np.arange(wanted.samples or 10.0))
        for n in range(int(os.environ.get("PIECES", 0))):
            if not (wanted.scratch / str(n)).exists():
                print("solving", n, flush=True)
                time.sleep(float(os.environ["PAUSE"]))
                (wanted.scratch / str(n)).touch()
        return {"samples": wanted.samples or 10}

class Served(Ramp):
    @classmethod
    def card(cls, config):
        urls = (os.environ["RAMP"] + "/x.f8",)
        return DataCard("served", "toys", "nobody", "CC0", 80, (RemoteFile("x.f8", urls),))

@hookimpl
def xmodal_tasks():
    return {"ramp": f"{__name__}:Ramp", "served": f"{__name__}:Served"}
"""


@pytest.fixture
def ramp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A generable task with a recipe, in a plugin file; the options that load it."""
    (tmp_path / "ramp.py").write_text(PLUGIN)
    recipe = tmp_path / "recipes" / "tasks" / "slope.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("description: A toy.\ntask: ramp\n")
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    return "--plugin", "ramp.py"


def test_list_has_every_task_with_its_form_and_state(xmodal: Cli) -> None:
    rows = {row["name"]: row for row in json.loads(xmodal("data", "list", "--json").out)}
    assert rows["darcy"]["form"] == "3x85x85 to 1x85x85"
    assert rows["cifar100"]["form"] == "3x32x32 to 100 classes"
    assert rows["deepsea"]["form"] == "4x1000 to 36 labels"
    assert rows["voc-foreground"]["form"] == "image to 1 value per pixel"
    assert (rows["darcy"]["family"], rows["darcy"]["metric"]) == ("pde", "relative-l2")
    shown = xmodal("data", "list")
    assert shown.err == ""
    assert "xmodal data fetch NAME" in shown.out.splitlines()[-1]


def test_a_narrow_list_cuts_no_name_and_says_what_is_shared_once(
    xmodal: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = xmodal("data", "list").out.splitlines()
    shared = "family: table; metric: auroc-error; licence: public on OpenML"
    assert sum(shared in line for line in lines) == 1
    assert [line.split()[0] for line in lines if "to 36 labels" in line] == ["deepsea"]
    (line,) = [line for line in lines if "4 to 2 classes" in line and "blood" in line]
    assert line.split()[0] == "blood-transfusion-service-center"
    assert "licence of cosmic, deepsea, fsd50k: CC BY 4.0" in lines


def test_generate_makes_a_task_ready(xmodal: Cli, ramp: tuple[str, ...], tmp_path: Path) -> None:
    rows = json.loads(xmodal("data", "list", "--benchmark", "Toys", "--json", *ramp).out)
    assert [(row["name"], row["state"], row["size"]) for row in rows] == [
        ("slope", "generable", 2_000_000)
    ]
    assert "xmodal data generate ramp" in xmodal("data", "info", "slope", *ramp).out
    done = xmodal("data", "generate", "slope", "--samples", 3, *ramp)
    assert done.code == 0, done.err
    folder = tmp_path / "cache" / "datasets" / "ramp"
    assert done.out == (
        f"slope is ready: {folder} ({_size(folder)}).  Next: xmodal run pare_slope\n"
    )
    again = xmodal("data", "generate", "ramp", "--samples", 3, *ramp)
    assert again.out.startswith("slope was ready already (generated, samples 3): ")
    for others in ((), ("--samples", 4)):
        other = xmodal("data", "generate", "slope", *others, *ramp)
        assert (other.code, "--again replaces it" in other.err) == (2, True)
    assert json.loads(xmodal("data", "info", "slope", "--json", *ramp).out)["state"] == "ready"


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("advection --samples 4", "--samples 4: at least 10 are needed"),
        ("advection --resolution 7", "--resolution 7: at least 8 points are needed"),
        ("darcy --samples 3", "--samples 3: at least 4 are needed"),
        ("darcy --resolution 100", "try 85"),
        ("cosmic-simulated --samples 2", "at least 3 images of 16 pixels"),
        ("spherical --resolution 32 --from x.npz", "has 60 points per side"),
    ],
)
def test_what_cannot_be_generated_is_a_mistake_of_the_command_line(
    xmodal: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, answer: str
) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.npz").touch()
    done = xmodal("data", "generate", *asked.split())
    assert (done.code, done.out) == (2, "")
    assert answer in done.err


def _size(folder: Path) -> str:
    from xmodal import text

    return text.size(sum(path.stat().st_size for path in folder.iterdir()))


def test_misspelt_names_and_settings(xmodal: Cli, ramp: tuple[str, ...]) -> None:
    done = xmodal("data", "generate", "slop", *ramp)
    assert (done.code, "did you mean 'slope'?" in done.err) == (2, True)
    done = xmodal("data", "generate", "slope", "task.sampels=3", *ramp)
    assert (done.code, "unknown setting" in done.err) == (2, True)
    done = xmodal("data", "list", "--benchmark", "toy", *ramp)
    assert (done.code, "did you mean 'toys'?" in done.err) == (2, True)


def test_a_task_without_data_of_its_own(
    xmodal: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    assert "needs no data set" in xmodal("data", "fetch", "car").out
    # Darcy generates samples in a run, and has published files all the same.
    monkeypatch.setenv("XMODAL_FETCH", "never")
    done = xmodal("data", "fetch", "darcy")
    assert done.code == 4
    assert "piececonst_r421_N1024_smooth1.mat" in done.err


@pytest.mark.slow
@pytest.mark.skipif(not PACK.is_file(), reason=f"no published tables at {PACK}")
def test_all_tasks_of_a_benchmark_out_of_one_pack(
    xmodal: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    done = xmodal("data", "fetch", "--benchmark", "openml-cc18", "--from", PACK)
    assert done.code == 0, done.err
    assert done.out.count(" is ready: ") == 26
    assert done.out.count("needs no data set") == 4  # those that are built
    rows = json.loads(xmodal("data", "list", "--benchmark", "OpenML-CC18", "--json").out)
    assert [row["state"] for row in rows] == ["ready"] * 30
    assert {row["family"] for row in rows} == {"table"}
    wrong = tmp_path / "x.npz"
    wrong.write_bytes(b"")
    done = xmodal("data", "fetch", "credit-g", "--again", "--from", wrong)
    assert done.code == 4
    assert "is no file of 'credit-g'" in done.err
    assert "its published files: credit-g.arff, or cc18_30.npz" in done.err


@pytest.mark.slow
def test_a_run_fetches_small_data_by_itself_if_it_may(
    xmodal: Cli, ramp: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(np.arange(10.0).tobytes())
    monkeypatch.setenv("RAMP", server.root)
    monkeypatch.setenv("XMODAL_FETCH", "fit")
    (tmp_path / "recipes/tasks/served.yaml").write_text("task: served\n")
    asked = ("run", "methods/nft", "tasks/served", "--scale", "smoke", "--dry-run", *ramp)
    listed = json.loads(xmodal("data", "info", "served", "--json", *ramp).out)
    assert listed["state"] == "fetchable"
    never = xmodal(*asked, "--fetch", "never")
    assert never.code == 4
    assert "xmodal data fetch served" in never.err
    assert server.asked == []
    monkeypatch.setenv("XMODAL_FETCH", "fit")
    monkeypatch.setattr("xmodal.interfaces.with_data.SMALL", 79)
    large = xmodal(*asked)
    assert (large.code, "xmodal data fetch served" in large.err) == (4, True)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAMP", server.root)
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XMODAL_FETCH", "fit")
    small = xmodal(*asked)
    assert small.code == 0, small.err
    assert server.asked == ["/x.f8"]
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_generation_is_continued(
    number: signal.Signals, ramp: tuple[str, ...], tmp_path: Path
) -> None:
    command = ("data", "generate", "slope", *ramp)
    environment = {"PIECES": "4", "PAUSE": "0.3", "XMODAL_CACHE": str(tmp_path / "cache")}
    process = Command(*command, streams=tmp_path / "streams", **environment)
    pieces = tmp_path / "cache" / "unfinished" / "ramp"
    while not (pieces / "1").exists():
        assert process.poll() is None, process.wait()
        time.sleep(0.01)
    process.send_signal(number)
    done = process.wait()
    assert done.code == (130 if number == signal.SIGINT else -number), done.err
    assert ("interrupted" in done.err) == (number == signal.SIGINT)
    assert not (tmp_path / "cache" / "datasets" / "ramp").exists()
    left = {"solving 0", "solving 1"} & {*done.out.splitlines()}
    again = Command(*command, streams=tmp_path / "streams", **environment).wait()
    assert again.code == 0, again.err
    assert "continuing what was interrupted" in again.err
    assert not left & {*again.out.splitlines()}
    assert again.out.splitlines()[-1].startswith("slope is ready: ")
    assert not pieces.exists()
    leftovers = [path.name for path in (tmp_path / "cache" / "datasets").iterdir()]
    assert leftovers == ["ramp"]


def test_what_has_no_files_is_not_fetched(xmodal: Cli, ramp: tuple[str, ...]) -> None:
    done = xmodal("data", "fetch", "slope", *ramp)
    assert (done.code, "xmodal data generate ramp" in done.err) == (2, True)
