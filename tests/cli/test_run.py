"""``xmodal run`` and ``resume``: what they print where, exit codes, what they leave behind."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal import files

from ..processes import Command

Cli = Callable[..., Any]
SMOKE = ("methods/pare", "tasks/darcy", "--scale", "smoke")
THREE_LINES = """\
extends: [methods/pare, backbones/text]
task: {use: arrays, path: mine.npz}
seed: 1
"""


@pytest.mark.long
def test_a_profile_is_told_beside_the_result(xmodal: Cli) -> None:
    """To name the number of its steps is to ask for it; of a run that is done there is none."""
    asked = ("run", *SMOKE, "--profile-steps", 1)
    first = xmodal(*asked)
    assert first.code == 0
    _, head, shares = first.err.partition("\n1 step, and what followed in the epoch, took ")
    assert head
    assert re.search(r"^  forward +[\d.]+ s +[\d.]+%$", shares, re.MULTILINE)
    for name in ("operations: ", "trace: "):
        (line,) = [line for line in shares.splitlines() if line.startswith(name)]
        assert Path(line.removeprefix(name).split(" (")[0]).is_file()
    assert "took" not in first.out
    again = xmodal(*asked)
    assert again.code == 0
    assert "nothing was traced: the run was done already; with --force it is repeated" in again.err


@pytest.mark.slow
def test_a_run_its_repetition_and_its_result(xmodal: Cli) -> None:
    first = xmodal("run", *SMOKE, "--json")
    assert first.code == 0
    result = json.loads(first.out)
    assert result["fresh"] is True
    assert "epoch 1/2" in first.err
    folder = Path(result["run"])
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.yaml", "resolved.yaml", "manifest.json", "status.json", "result.json"} <= names
    assert {"metrics.jsonl", "log.txt", "checkpoints", "report.html"} <= names

    again = xmodal("run", *SMOKE)
    assert again.code == 0
    assert "already done; --force repeats it" in again.err
    assert "test relative-l2" in again.out
    assert str(folder) in again.out
    assert len(list(folder.parent.iterdir())) == 1

    by_name = xmodal("resume", folder.parent.name, "--quiet")
    assert by_name.code == 0
    assert by_name.err.strip() == "already done; --force repeats it"
    for reference in (f"{folder.parent.name}/{folder.name}", str(folder)):
        assert xmodal("resume", reference, "--quiet").code == 0

    # As if it had been begun on another machine.
    resolved = folder / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("device: auto", "device: cuda:99"))
    elsewhere = xmodal("resume", str(folder), "-q")
    assert elsewhere.code == 2
    assert "there is no 'cuda:99' here; choose auto or one of" in elsewhere.err
    assert xmodal("resume", str(folder), "--device", "auto", "-q").code == 0

    time.sleep(1.1)  # directories are named by the second
    forced = xmodal("run", *SMOKE, "--force", "--json", "-q")
    repeated = json.loads(forced.out)
    assert repeated["run"] != str(folder)
    assert repeated["test"] == result["test"]


def test_quiet_is_quiet_and_json_is_json(xmodal: Cli) -> None:
    done = xmodal(
        "run", *SMOKE, "--seed", "3", "--name", "mine", "--root", "elsewhere", "-q", "--json"
    )
    assert done.code == 0
    assert done.err == ""
    result = json.loads(done.out)
    assert result["seed"] == 3
    assert Path(result["run"]).parent == Path("elsewhere/mine")


def test_three_lines_are_enough_for_a_file_of_ones_own(xmodal: Cli, mine: Path) -> None:
    Path("mine.yaml").write_text(THREE_LINES)
    done = xmodal("run", "mine.yaml", "--scale", "smoke")
    assert done.code == 0
    assert "read as sequence" in done.err
    assert "test error-rate" in done.out
    (report,) = Path("runs/mine_smoke").glob("*/report.html")
    assert report.stat().st_size > 1000
    banner = "It shows that the parts fit; its numbers mean nothing."
    assert banner in done.out
    assert banner in report.read_text()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_shows_both_norms_and_leaves_nothing(xmodal: Cli, as_json: bool) -> None:
    before = sorted(Path().rglob("*"))
    done = xmodal("run", *SMOKE, "--dry-run", *(["--json"] if as_json else []))
    assert done.code == 0
    assert sorted(Path().rglob("*")) == before
    if as_json:
        source, target = json.loads(done.out)["token norms"].values()
    else:
        lines = {
            line.strip().rpartition("  ")[0].strip(): line.split()[-1]
            for line in done.out.splitlines()
            if line.strip()
        }
        source = lines["source (what the backbone was trained on)"]
        target = lines["target (after calibration)"]
        for section in ("data", "shapes", "token norms", "cost", "parameters"):
            assert section in done.out
    # The demo's kind of backbone has no LayerNorm to copy, so calibration makes the norms equal.
    assert float(source) == pytest.approx(float(target), rel=1e-3)


def test_missing_data_are_all_named_at_once(
    xmodal: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    checked = xmodal("recipes", "validate", "recipes/pare_psicov.yaml")
    assert checked.code == 0
    done = xmodal("run", "recipes/pare_psicov.yaml")
    assert done.code == 4
    assert done.out == ""
    place = str(tmp_path / "cache" / "datasets" / "psicov")
    psicov = ("protein.zip", "1.10 GB", "xmodal data fetch psicov", place)
    voc = (
        "VOCtrainval_11-May-2012.tar",
        "2.00 GB",
        "xmodal data fetch voc-foreground",
        "VOCdevkit/VOC2012",
    )
    for part in (*psicov, *voc):
        assert part in done.err
        assert part in checked.err.replace("\n", "")
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", [("run",), ("run", "--dry-run"), ("recipes", "validate")])
def test_a_file_of_ones_own_that_is_not_there(xmodal: Cli, command: tuple[str, ...]) -> None:
    Path("mine.yaml").write_text(THREE_LINES)
    done = xmodal(*command, "mine.yaml", "--scale", "smoke")
    assert done.code == 4
    assert "mine.npz" in done.err
    assert done.out == ""
    np.savez("mime.npz", x=np.zeros((4, 4)), y=np.zeros(4))
    assert "did you mean" in xmodal("recipes", "validate", "mine.yaml").err


def test_training_that_explodes_stops_itself(xmodal: Cli) -> None:
    done = xmodal("run", *SMOKE, "training.optimizer={use: sgd, lr: 1e30, momentum: 0}", "-q")
    assert done.code == 5
    assert "not finite" in done.err or "the loss is" in done.err
    assert "nothing was updated" in done.err
    assert done.out == ""


@pytest.mark.long
def test_resume_finds_the_nearest_run(xmodal: Cli) -> None:
    empty = xmodal("resume", "mine")
    assert empty.code == 2
    assert "runs has no runs" in empty.err
    assert xmodal("run", *SMOKE, "--name", "alpha", "-q", "--json").code == 0
    done = xmodal("resume", "alpah")
    assert done.code == 2
    assert "did you mean 'alpha'?" in done.err


@pytest.mark.long
def test_another_runs_directory_is_refused(xmodal: Cli) -> None:
    assert xmodal("run", *SMOKE, "--directory", "here", "-q", "--json").code == 0
    done = xmodal("run", *SMOKE, "seed=1", "--directory", "here", "-q")
    assert done.code == 2
    assert "holds another run" in done.err


@pytest.mark.long
def test_a_damaged_status_file_is_one_message(xmodal: Cli) -> None:
    assert xmodal("run", *SMOKE, "--directory", "here", "-q", "--json").code == 0
    Path("here/manifest.json").write_text("{")
    done = xmodal("resume", "here")
    assert done.code == 4
    assert "manifest.json is damaged" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    arguments = ("run", *SMOKE, "training.epochs=100000", "--json")
    child = Command(*arguments, streams=tmp_path / "streams")
    until = time.monotonic() + 120
    while "\nepoch 2/" not in child.err.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    child.send_signal(number)
    code, out, err = child.wait(60)
    assert code == 128 + number
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted; state saved. Continue with: xmodal resume" in err.replace("\n", " ")


def test_a_dry_run_of_the_baseline_and_of_two_stages(xmodal: Cli) -> None:
    done = xmodal("run", "methods/baseline", "tasks/openml/wdbc", "--dry-run")
    assert done.code == 0, done.err
    assert "stage 0" in done.out
    done = xmodal("run", "methods/orca", "tasks/openml/wdbc", "--scale", "smoke", "--dry-run")
    assert done.code == 0, done.err
    assert "2 steps of" in done.out


MINE = """
from xmodal import hookimpl
from xmodal.interfaces import Loss
from torch.nn.functional import cross_entropy


class Mine(Loss):
    def forward(self, prediction, y):
        return cross_entropy(prediction, y, reduction="none")


@hookimpl
def xmodal_losses():
    return {"mine": f"{__name__}:Mine"}
"""


@pytest.mark.long
def test_a_plugin_that_a_run_needs_is_missing_or_not_alone(xmodal: Cli, mine: Path) -> None:
    Path("p.py").write_text(MINE)
    Path("q.py").write_text(MINE.replace("Mine", "Other"))
    Path("broken.py").write_text(MINE.replace(":Mine", ":Nobody"))
    recipe = ("methods/nft", "arrays/sequence", f"task.path={mine}", "--scale", "smoke")
    run = ("run", *recipe, "task.loss=mine", "--directory", "r", "-q")
    assert xmodal(*run, "--plugin", "p.py").code == 0
    np.savez("new.npz", x=np.zeros((2, 46)))
    plugins = {
        (): "r needs a plugin that is missing or broken: install it, or name its file",
        ("--plugin", "p.py", "--plugin", "q.py"): "loss 'mine' is provided by both p.py",
        ("--plugin", "broken.py"): "cannot be imported",
    }
    for command in (
        ("resume", "r"),
        ("predict", "r", "new.npz"),
        ("export", "r", "--to", "hf", "--out", "e"),
        ("analyse", "r", "--figures", "patches"),
    ):
        for given, message in plugins.items():
            done = xmodal(*command, *given)
            assert (done.code, message in done.err) == (3, True), done.err
    done = xmodal(*run, "--plugin", "broken.py")
    assert (done.code, "cannot be imported" in done.err) == (3, True)
    assert xmodal(*run).code == 2  # a recipe may as well be wrong about a name


@pytest.mark.long
def test_data_are_read_again_if_that_is_wanted(
    xmodal: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system whose times say nothing: only then can a change be missed."""
    monkeypatch.setenv(files.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_WORTH", 0)
    monkeypatch.setattr(files, "_state", lambda file: (1, 1, 1, 1, 1))
    np.savez("mine.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 2)
    run = ("run", "methods/nft", "arrays/row", "task.path=mine.npz", "--scale", "smoke", "--json")
    assert json.loads(xmodal(*run).out)["fresh"]
    np.savez("mine.npz", x=np.random.default_rng(1).normal(size=(40, 3)), y=np.arange(40) % 2)
    assert not json.loads(xmodal(*run).out)["fresh"]
    found = json.loads(xmodal(*run, "--verify-data").out)
    assert found["fresh"]
    again = json.loads(xmodal("resume", found["run"], "--verify-data", "--json").out)
    assert not again["fresh"]
    # Advice is muted where it is shown, without repeating the run.
    assert "smoke-scale" in {one["code"] for one in again["advice"]}
    quiet = json.loads(xmodal(*run, "ignore=[smoke-scale]").out)
    assert not quiet["fresh"]
    assert "smoke-scale" not in {one["code"] for one in quiet["advice"]}


@pytest.mark.parametrize("arguments", [("--name", "../../x"), ("--directory", "."), ("--name", "")])
def test_a_wrong_place_is_said_first_and_nothing_is_touched(
    xmodal: Cli, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "report.html").write_text("my own")
    done = xmodal("run", *SMOKE, *arguments)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1  # before any data are loaded
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "samples"]


def test_a_report_replaces_nothing_of_anybody(xmodal: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("my own")
    done = xmodal("compare", "nft", "--task", "darcy", "--scale", "smoke", "--out", "mine")
    assert done.code == 2
    assert "mine is not empty and was not made by xmodal for this (comparison)" in done.err
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "report.html").write_text("my own")
    assert xmodal("demo").code == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "demo", "mine", "report.html", "report.html", "runs",
    ]  # fmt: skip


@pytest.mark.long
def test_the_recipe_of_an_old_run_finds_its_data(xmodal: Cli, tmp_path: Path) -> None:
    """Version 0.1 wrote paths as they were given: from the working directory."""
    np.savez("mine.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 2)
    run = ("run", "methods/nft", "arrays/row", "task.path=mine.npz", "--scale", "smoke", "--json")
    old = Path(json.loads(xmodal(*run, "--directory", "old").out)["run"])
    manifest = json.loads((old / "manifest.json").read_text())
    for key in ("format", "ingredients"):
        del manifest[key]
    (old / "manifest.json").write_text(json.dumps(manifest))
    (old / "xmodal-run.tag").unlink()
    resolved = (old / "resolved.yaml").read_text()
    (old / "resolved.yaml").write_text(resolved.replace(str(tmp_path / "mine.npz"), "mine.npz"))
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    assert json.loads(xmodal("run", old / "resolved.yaml", "--json").out)["fresh"]
    refused = xmodal("resume", "old")
    assert refused.code == 2
    assert "results of its recipes have changed since" in refused.err
    assert xmodal("predict", "old", "mine.npz", "--out", "p.npz").code == 0
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before
