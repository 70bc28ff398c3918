"""``xmodal compare`` with real processes: done, failed and skipped cells, and doing it again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from xmodal.cli import verdicts
from xmodal.comparison.grid import Cell, grid, requested
from xmodal.comparison.queue import Queue, State
from xmodal.data.store import Store
from xmodal.errors import UsageError
from xmodal.plugins import registry

from ..comparisons import compared
from ..processes import Command

GRID = ("--task", "openml/wdbc", "--scale", "smoke", "--root", "cells", "--no-trivial")
WRECK = "training.optimizer.lr=1e-3,1e30"


def compare(folder: Path, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, parsed output and messages."""
    code, out, err = begin(folder, *arguments, "--json").wait()
    return code, json.loads(out) if out else None, err


def begin(folder: Path, *arguments: str) -> Command:
    """Start a comparison; its cells are processes that it starts in turn."""
    return Command("compare", *arguments, streams=folder / "streams", cwd=folder)


@pytest.mark.long
def test_done_failed_skipped_and_again(tmp_path: Path) -> None:
    arguments = ("nft", *GRID[:2], "psicov", *GRID[2:], "--seeds", "1", "--set", WRECK)
    code, _, said = compare(tmp_path, *arguments)
    assert code == 4
    assert "the data of 1 of 2 tasks are not here\npsicov: " in said
    assert "add --available" in said
    assert not (tmp_path / "cells").exists()
    arguments = (*arguments, "--available")
    code, found, said = compare(tmp_path, *arguments, "--jobs", "2")
    assert code == 6, said
    states = {(c["task"], c["method"]): c for c in found["cells"]}
    good = states["openml/wdbc", "nft [training.optimizer.lr=1e-3]"]
    bad = states["openml/wdbc", "nft [training.optimizer.lr=1e30]"]
    assert (good["state"], bad["state"]) == ("done", "failed")
    assert "nothing was updated" in bad["detail"]
    assert [c["state"] for c in found["cells"] if c["task"] == "psicov"] == ["skipped"] * 2
    assert "protein.zip" in found["cells"][-1]["detail"]
    (row,) = found["rows"]
    assert row["encoded_samples"] == 16
    result = Path(tmp_path, good["directory"], "result.json")
    before = result.stat().st_mtime_ns
    code, again, said = compare(tmp_path, *arguments)
    assert code == 6
    assert again["rows"] == found["rows"]
    assert f"running: {good['directory']}" not in said
    assert result.stat().st_mtime_ns == before
    code, read, _ = compare(tmp_path, *arguments, "--collect")
    assert (code, read["rows"]) == (6, found["rows"])
    assert read["verdicts"]["pairs"][0]["verdict"]["word"] == "refused"
    files = [tmp_path / file for file in read["files"]]
    assert {file.name for file in files} == {
        "report.html", "cells.csv", "pairs.csv", "table.tex", "comparison.json",
    }  # fmt: skip
    assert all(file.stat().st_size for file in files)
    figures = {file.name for file in (files[0].parent / "figures").iterdir()}
    assert figures
    assert {Path(name).suffix for name in figures} == {".svg", ".pdf"}
    assert len({Path(name).stem for name in figures}) == len(figures) / 2
    assert json.loads(files[-1].read_text())["rows"] == found["rows"]
    check_merging(tmp_path, good["directory"], bad["directory"], arguments)


def check_merging(folder: Path, good: str, bad: str, arguments: tuple[str, ...]) -> None:
    """Cells of a second machine, one changed by hand, and how they come back."""
    other, merged = folder / "other", folder / "merged"
    shutil.copytree(folder / "cells", other)
    strange = other / Path(good).relative_to("cells").with_name("seed0-0123456789")
    shutil.copytree(folder / good, strange)
    taken = merge(folder, "cells", "other", "--root", "merged")
    target = merged / Path(good).relative_to("cells")
    assert taken["taken"] == [str(target.relative_to(folder))]
    assert taken["known"] == taken["taken"]  # the same cell of the second folder
    assert len(taken["left"]) == 3
    assert "not done (stopped)" in taken["left"][bad]
    assert "it was renamed" in taken["left"][str(strange.relative_to(folder))]
    code, read, _ = compare(folder, *arguments, "--root", "merged", "--collect")
    assert code == 0
    assert len(read["rows"]) == 1
    assert read["rows"][0]["machine"]
    result = json.loads((target / "result.json").read_text())
    result["test"]["metric"] += 1
    (target / "result.json").write_text(json.dumps(result))
    again = merge(folder, "cells", "--root", "merged")
    assert (again["taken"], again["known"], list(again["differ"])) == ([], [], [good])
    assert json.loads((target / "result.json").read_text()) == result


@pytest.mark.slow
def test_tasks_without_data_take_a_line_and_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is missing stays readable, whatever the number of methods and tasks."""
    store = Store(tmp_path)
    one = requested(
        registry(),
        ("fpt", "nft", "pare", "baseline"),
        ("ecg", "satellite", "spherical", "psicov"),
        scale="smoke",
        settings=(),
        trivial=False,
    )
    queue = Queue(grid(one, registry(), store, tmp_path / "cells", False), None)
    verdicts.problems(zip(queue.cells, queue.states(), strict=True))
    assert capsys.readouterr().err.splitlines() == [
        "skipped: ecg, satellite, spherical, psicov: no data here",
        "    xmodal data fetch ecg satellite spherical psicov",
        "    sizes, sources and stand-ins: xmodal data info TASK",
        "skipped: baseline on psicov",
        "    predictor: ridge would need 408 GB for the flattened training split of task 'psicov' "
        "(at most 8)",
    ]


def test_files_that_a_person_fetches_and_one_reason_for_two_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacks = "no data for 'x' in /c\nif you have y: xmodal data fetch x --from FOLDER"
    solves = (
        "no data for 'w' in /c\ngenerate them: xmodal data generate w\nfetch: xmodal data fetch w"
    )
    package = "'fno' needs the package neuraloperator: pip install it"
    cells = [
        Cell("a", "x", 0, (), (), None, skipped=lacks, absent=(lacks,)),
        Cell("a", "w", 0, (), (), None, skipped=solves, absent=(solves,)),
        Cell("fno", "u", 0, (), (), None, skipped=package, absent=(package,)),
        Cell("fno", "v", 0, (), (), None, skipped=package, absent=(package,)),
    ]
    verdicts.problems((cell, State("skipped", detail=cell.skipped)) for cell in cells)
    assert capsys.readouterr().err.splitlines() == [
        "skipped: x, w: no data here",
        "    xmodal data generate w",
        "    xmodal data fetch x --from FOLDER",
        "    sizes, sources and stand-ins: xmodal data info TASK",
        "skipped: fno on u, v",
        f"    {package}",
    ]


def test_what_has_no_encoder_shows_a_dash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = compared(tmp_path / "c", {"a": 0.5, "free": 2.0}, ["car"], roles={"free": "trivial"})
    verdicts.show(table, ())
    _, _, of_a, of_free, *_ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (of_a[0], of_a[-5:]) == ("a", ["3", "1", "000", "20", "s"])
    assert of_free[:2] == ["free", "(trivial)"]
    assert of_free[-5] == "3"
    assert of_free[-4] in ("–", "-")  # what stdout can show


def test_merging_nothing_is_said(tmp_path: Path) -> None:
    from xmodal.comparison.merge import merge as merge_folders

    with pytest.raises(UsageError, match="no folder"):
        merge_folders([tmp_path / "there"], tmp_path)
    with pytest.raises(UsageError, match="is where the cells are taken to"):
        merge_folders([tmp_path / "." / ""], tmp_path)


def merge(folder: Path, *arguments: str) -> Any:
    """What the command says, as JSON."""
    command = Command(
        "compare", "merge", *arguments, "--json", streams=folder / "streams", cwd=folder
    )
    code, out, err = command.wait()
    assert code == 0, err
    return json.loads(out)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_comparison_goes_on(tmp_path: Path, number: int) -> None:
    """Ctrl-C stops the cells softly; after SIGKILL the cell goes on alone and is waited for."""
    arguments = ("nft", *GRID, "--seeds", "1", "--set", "training.epochs=40")
    process = begin(tmp_path, *arguments)
    metrics = wait_for(tmp_path, "cells/**/metrics.jsonl")
    time.sleep(0.2)
    process.send_signal(number)
    ended, _, said = process.wait(200)
    assert ended in (130, -number), said
    lines = metrics.read_text().count("\n")
    assert 0 < lines < 40
    if number == signal.SIGINT:
        status = json.loads((metrics.parent / "status.json").read_text())
        assert status["state"] == "interrupted"
        assert not alive(status["pid"])
    code, found, said = compare(tmp_path, *arguments)
    assert code == 0, said
    assert [c["state"] for c in found["cells"]] == ["done"]
    epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert epochs == list(range(40))


def wait_for(folder: Path, pattern: str) -> Path:
    """The first file of a pattern that holds anything, as soon as there is one."""
    for _ in range(1200):
        found = [path for path in folder.glob(pattern) if path.stat().st_size]
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no {pattern}")


def alive(pid: int) -> bool:
    """Whether a process still exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_that_no_verdict_will_come_of_it_is_said_before_anything_runs(
    xmodal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, watch: Any) -> None:
        raise UsageError("stopped here")

    monkeypatch.setattr(Queue, "work", stop)
    done = xmodal("compare", "nft", "scratch", "--task", "darcy", "--scale", "smoke", "--seeds", 1)
    before, _, _ = done.err.partition("stopped here")
    assert "its numbers mean nothing" in before
    assert "no verdict will come of this: it has 1 task, and 6 are needed; 1 seed, and" in before
