"""From finished run directories to verdicts, CSV and LaTeX: what counts, and for whom."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from xmodal import runs
from xmodal.cli.compare import _live
from xmodal.cli.verdicts import problems, show
from xmodal.comparison.criteria import EFFECT
from xmodal.comparison.grid import Cell, Request, Suite
from xmodal.comparison.queue import DONE, FAILED, QUEUED, SKIPPED, Queue, State
from xmodal.comparison.spreadsheets import cells_csv, latex, pairs_csv, write_tables
from xmodal.comparison.table import ComparisonTable, _searched, assemble, rows

from .. import forms

TASKS = ("a_1", "b", "c", "d", "e", "f")
ROLES = {"trivial": "trivial", "longer": "control", "forest": "rival", "trees": "rival"}


def cell(root: Path, method: str, task: str, seed: int, setting: tuple[str, ...] = ()) -> Cell:
    label = f"{method} [{', '.join(setting)}]" if setting else method
    rate = [float(text.partition("=")[2]) for text in setting if ".lr=" in text]
    resolved = {
        "role": ROLES.get(method, "method"),
        "fraction": 1.0,
        "labelled": 1.0,
    }
    folder = root / f"{label}-{task}-{seed}"
    references = (f"methods/{method}", task)
    return Cell(
        label, task, seed, references, setting, "cpu", setting, resolved, folder,
        learning_rate=(rate or [1e-3])[0],
    )  # fmt: skip


def finish(one: Cell, error: float, passes: int = 100, **changes: Any) -> None:
    """Write what a finished run leaves behind."""
    assert one.directory is not None
    one.directory.mkdir()
    result = forms.result(error, encoded_samples=passes) | changes
    (one.directory / "result.json").write_text(json.dumps(result))
    (one.directory / "status.json").write_text(json.dumps({"state": "done"}))


def made(
    root: Path,
    errors: Mapping[str, float],
    tasks: Sequence[str] = TASKS,
    against: str | None = None,
) -> ComparisonTable:
    """A table in which every method has the same error on all tasks, but for a little noise."""
    cells = [
        cell(root, method, task, seed) for seed in range(3) for task in tasks for method in errors
    ]
    for one in cells:
        wobble = 1 + 0.01 * math.sin(7 * one.seed + 3 * TASKS.index(one.task))
        passes = 200 if one.method in ("dear", "longer") else 100
        finish(one, errors[one.method] * wobble, passes)
    return assemble(asked(against), cells, [State(DONE)] * len(cells))


def asked(against: str | None = None) -> Request:
    suite = Suite.model_construct(methods=(), tasks=())
    return Request(suite, "xmodal compare ...", "name", against)


def kinds(table: ComparisonTable) -> set[str]:
    assert table.comparison is not None
    return {flag.kind for flag in table.comparison.flags}


def test_contenders_are_compared_and_others_only_looked_at(tmp_path: Path) -> None:
    table = made(tmp_path, {"dear": 0.10, "cheap": 0.20, "longer": 0.15, "trivial": 0.18})
    assert table.comparison is not None
    (pair,) = table.comparison.pairs
    assert (pair.a, pair.b, pair.verdict.word) == ("dear", "cheap", "better on these tasks")
    assert pair.numbers is not None
    assert pair.numbers.pairs == 1
    assert table.roles == {
        "dear": "method", "cheap": "method", "longer": "control", "trivial": "trivial",
    }  # fmt: skip
    # The control has the dear one's compute; "cheap" loses to the trivial answer.
    assert kinds(table) == {"worse-than-trivial"}


def test_the_cheap_answer_to_beat_is_the_best_on_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test split does not choose it: ``trivial`` is better there, ``ridge`` on validation."""
    monkeypatch.setitem(ROLES, "ridge", "trivial")
    cells = [cell(tmp_path, method, "b", 0) for method in ("dear", "trivial", "ridge")]
    scores = {"dear": (0.2, 0.2), "trivial": (0.1, 0.4), "ridge": (0.3, 0.3)}
    for one in cells:
        test, validation = scores[one.method]
        finish(one, test, validation={"metric": validation, "loss": 1.0, "at": [0, 0]})
    table = assemble(asked(), cells, [State(DONE)] * 3)
    assert table.strongest("b") == "ridge"
    assert kinds(table) == set()  # "dear" loses to the other one alone


def test_rivals_are_opponents_in_a_group_of_their_own(tmp_path: Path) -> None:
    errors = {"forest": 0.3, "dear": 0.10, "trivial": 0.4, "trees": 0.15}
    table = made(tmp_path, {**errors, "longer": 0.2})
    assert table.comparison is not None
    assert table.methods == ("dear", "forest", "trees", "longer", "trivial")
    pairs = [(pair.a, pair.b) for pair in table.comparison.pairs]
    assert pairs == [("dear", "forest"), ("dear", "trees")]
    # "dear" has twice the passes of the rivals, and no doubt is raised about that.
    assert kinds(table) == set()
    rows = [line.partition(" ")[0] for line in latex(table).split("\n")]
    rule = "\\midrule"
    groups = rows[rows.index(rule) : rows.index("\\bottomrule")]
    assert groups == [rule, "dear", rule, "forest", "trees", rule, "longer", rule, "trivial"]
    assert table.comparison.overview is not None
    assert set(table.comparison.overview.ranks) == {"dear", "forest", "trees"}


def test_rivals_alone_are_compared_with_each_other(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    table = made(tmp_path, {"forest": 0.3, "trees": 0.15})
    assert table.comparison is not None
    assert [(pair.a, pair.b) for pair in table.comparison.pairs] == [("forest", "trees")]
    against = made(tmp_path / "x", {"forest": 0.3, "trees": 0.15, "dear": 0.1}, against="trees")
    assert against.comparison is not None
    assert [(pair.a, pair.b) for pair in against.comparison.pairs] == [("dear", "trees")]


def test_uneven_compute_is_a_doubt_without_the_control(tmp_path: Path) -> None:
    assert "uneven-compute" in kinds(made(tmp_path, {"dear": 0.1, "cheap": 0.2}))


def test_questions_against_one_method(tmp_path: Path) -> None:
    errors = {"x": 0.1, "y": 0.1, "z": 0.3, "longer": 0.2}
    table = made(tmp_path, errors, against="longer")
    assert table.comparison is not None
    assert [(p.a, p.b) for p in table.comparison.pairs] == [
        ("x", "longer"), ("y", "longer"), ("z", "longer"),
    ]  # fmt: skip


def test_few_tasks_are_refused_but_shown(tmp_path: Path) -> None:
    table = made(tmp_path, {"x": 0.1, "y": 0.2}, tasks=TASKS[:2])
    assert table.comparison is not None
    (pair,) = table.comparison.pairs
    assert str(pair.verdict) == "refused: 2 tasks, 6 are needed"
    assert [task.n for task in pair.tasks] == [3, 3]


def test_a_failed_cell_is_no_missing_cell(tmp_path: Path) -> None:
    cells = [cell(tmp_path, m, t, s) for m in ("x", "y") for t in TASKS for s in range(3)]
    states = []
    for number, one in enumerate(cells):
        if number in (0, 20):
            states.append(State(FAILED if number == 0 else QUEUED, detail="boom"))
        else:
            finish(one, 0.1)
            states.append(State(DONE))
    table = assemble(asked(), cells, states)
    assert table.comparison is not None
    (pair,) = table.comparison.pairs
    assert "runs failed on a_1" in str(pair.verdict)
    assert {"failed-runs", "missing-runs"} <= kinds(table)
    read = pd.read_csv(io.StringIO(cells_csv(table)))
    assert read["state"].value_counts().to_dict() == {"done": 34, "failed": 1, "queued": 1}
    assert read["test"].isna().sum() == 2


def test_a_run_without_a_score_failed_unless_there_is_nothing_to_measure(tmp_path: Path) -> None:
    """One method that diverges does not take a task from all; a split of one class does."""
    cells = [cell(tmp_path, m, t, s) for m in ("x", "y") for t in TASKS for s in range(3)]
    for one in cells:
        diverged = (one.method, one.task, one.seed) == ("x", "b", 1)
        finish(one, math.nan if diverged or one.task == "a_1" else 0.1)
    table = assemble(asked(), cells, [State(DONE)] * len(cells))
    assert table.scores is not None
    assert table.scores.tasks == TASKS[1:]
    assert table.left_out == {"a_1": "no run has a finite score on its test split"}
    assert table.comparison is not None
    assert "runs failed on b" in str(table.comparison.pairs[0].verdict)
    counted = table.summary("x", "b")
    assert (counted.mean, counted.n, counted.failed) == (pytest.approx(0.1), 2, 1)
    assert table.best("b") == frozenset()  # y alone has all seeds
    json.dumps(table.as_dict(), allow_nan=False)
    rows = {line.split(" ")[0]: line for line in latex(table).splitlines() if " & " in line}
    assert "$n = 2$, 1 failed" in rows["x"]
    assert "3 failed" in rows["y"]
    show(table, [])


def test_a_task_without_ratios_is_left_out_and_named(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "x", task, 0) for task in TASKS]
    for one in cells:
        finish(one, 0.1)
    (cells[0].directory / "result.json").unlink()  # type: ignore[operator]
    for one, changes in ((cells[1], {"better": "higher"}), (cells[2], {"test": {"metric": 0.0}})):
        assert one.directory is not None
        for file in one.directory.iterdir():
            file.unlink()
        one.directory.rmdir()
        finish(one, 0.1, **changes)
    finish(replace(cells[0], directory=tmp_path / "other"), 0.1)
    cells[0] = replace(cells[0], directory=tmp_path / "other")
    table = assemble(asked(), cells, [State(DONE)] * len(cells))
    assert table.scores is not None
    assert table.scores.tasks == ("a_1", "d", "e", "f")
    assert "higher is better" in table.left_out["b"]
    assert "an error is 0" in table.left_out["c"]


def test_an_error_of_zero_counts_as_half_the_smallest(tmp_path: Path) -> None:
    one = cell(tmp_path, "x", "b", 0)
    finish(one, 0.0)
    table = assemble(asked(), [one], [State(DONE)])
    assert table.scores is not None
    assert table.scores.errors_MTS.item() == 0.005
    assert kinds(table) == {"floored-errors"}


def test_a_learning_rate_at_the_edge_of_its_grid(tmp_path: Path) -> None:
    rates = ("1e-4", "1e-3", "1e-2")
    cells = []
    for number, rate in enumerate(rates):
        cells.append(cell(tmp_path, "x", "b", 0, (f"training.optimizer.lr={rate}",)))
        finish(cells[-1], 0.3 - 0.1 * number)
    table = assemble(asked(), cells, [State(DONE)] * 3)
    assert table.comparison is not None
    (flag,) = [flag for flag in table.comparison.flags if flag.kind == "edge-of-grid"]
    assert flag.numbers["learning_rate"] == 1e-2
    assert flag.methods == ("x [training.optimizer.lr=1e-2]",)


def test_nothing_done_yet(tmp_path: Path) -> None:
    one = cell(tmp_path, "x", "b", 0)
    table = assemble(asked(), [one], [State(QUEUED)])
    assert (table.scores, table.comparison, table.rows) == (None, None, ())
    assert latex(table) == "% nothing is done yet\n"
    assert pairs_csv(table).splitlines() == ["a,b,verdict"]
    assert json.loads(json.dumps(table.as_dict()))["verdicts"] is None


def test_files_for_a_spreadsheet_and_a_paper(tmp_path: Path) -> None:
    table = made(tmp_path, {"x_1": 0.10, "y": 0.20, "trivial": 0.18})
    files = write_tables(tmp_path, table)
    assert [file.name for file in files] == ["cells.csv", "pairs.csv", "table.tex"]
    cells = pd.read_csv(files[0])
    assert len(cells) == 54
    assert cells.groupby("method")["test"].mean()["y"] == pytest.approx(0.2, rel=0.01)
    pairs = pd.read_csv(files[1])
    assert pairs.loc[0, ["a", "b", "verdict"]].tolist() == ["x_1", "y", "better on these tasks"]
    for average in ("effect", "geometric", "median"):
        assert math.exp(pairs.loc[0, average]) == pytest.approx(0.5, rel=0.01)
    assert pairs.loc[0, "families"] == 1
    assert pd.isna(pairs.loc[0, "beyond_low"])
    text = files[2].read_text()
    assert text.count("\\midrule") == 2
    lines = [line for line in text.splitlines() if line.startswith("x\\_1")]
    assert lines[0].count("\\mathbf") == 6
    assert "a\\_1 (error-rate)" in text
    assert "over 3 seeds; clean protocol, epoch selected on validation; scale cpu." in text
    ours = next(line for line in text.splitlines() if line.startswith("y "))
    mean, spread = ours.split("&")[1].strip(" $").split(" \\pm ")
    found = cells[(cells.method == "y") & (cells.task == "a_1")]["test"]
    assert float(mean) == pytest.approx(found.mean(), rel=5e-3)
    assert float(spread) == pytest.approx(found.std(), rel=5e-3)


def test_a_task_is_of_the_family_that_its_recipe_or_else_the_task_says(tmp_path: Path) -> None:
    """``a_1`` by its recipe, ``b`` by the task, ``c`` by runs that disagree, ``d`` not at all."""
    told = {"a_1": "protein", "b": "", "c": "pde", "d": ""}
    cells = [cell(tmp_path, m, t, s) for m in ("x", "y") for t in told for s in range(3)]
    cells = [
        replace(one, resolved={**one.resolved, "family": told[one.task]})
        if (one.method, one.task) != ("y", "c")
        else one
        for one in cells
    ]
    for one in cells:
        finish(one, 0.1, **({} if one.task == "d" else {"family": "series"}))
    table = assemble(asked(), cells, [State(DONE)] * len(cells))
    assert table.scores is not None
    assert table.scores.families == {"a_1": "protein", "b": "series"}
    assert {row.family for row in table.rows if row.task == "c"} == {"pde", "series"}


def test_below_six_families_nothing_printed_speaks_of_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the terminal, CSV, LaTeX and JSON."""
    table = made(tmp_path, {"x": 0.1, "y": 0.9})
    show(table, [])
    said = capsys.readouterr()
    assert "better on these tasks" in " ".join(said.out.split())
    assert "this is about these tasks only: 1 family of tasks, 6 are needed" in said.err
    assert EFFECT in " ".join(said.out.split())
    written = json.dumps(table.as_dict()), pairs_csv(table), latex(table), said.out, said.err
    for text in written:
        assert "other families" not in text
        assert not re.search(
            r"(better|worse|equivalent)(?! on these tasks)\W*(than|,y|: error)", text
        )
    assert json.loads(written[0])["effect"] == EFFECT


def test_json_has_no_infinities(tmp_path: Path) -> None:
    cells = [cell(tmp_path, m, "b", s) for m in ("x", "y") for s in range(3)]
    for one in cells[1:]:
        finish(one, 0.1)
    table = assemble(asked(), cells, [State(FAILED), *[State(DONE)] * 5])
    text = json.dumps(table.as_dict(), allow_nan=False)
    assert json.loads(text)["verdicts"]["pairs"][0]["verdict"]["word"] == "refused"


def test_what_is_not_done_is_said_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell(tmp_path, m, t, s) for m in ("x", "y") for t in ("b", "c") for s in range(2)]
    states = [State(QUEUED)] * 4 + [State(FAILED, detail="boom")] * 2 + [State(DONE)] * 2
    problems(zip(cells, states, strict=True))
    said = capsys.readouterr().err.splitlines()
    assert said == ["not run: x on b, c", "failed: y on b", "    boom"]


def test_an_interruption_says_how_far_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell(tmp_path, "x", task, 0) for task in TASKS[:3]]
    queue = Queue(cells, None)
    states = [State(SKIPPED, detail="no data"), State(DONE), State(QUEUED)]

    def interrupted() -> None:
        with _live() as watch:
            watch(queue, states)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    said = capsys.readouterr().err
    assert said.startswith("skipped: x on a_1\n    no data\n")
    assert said.endswith("1 of 3 cells are done; repeat the command to continue\n")


def test_an_epoch_chosen_by_the_loss_is_never_mixed_with_one_by_the_metric(tmp_path: Path) -> None:
    errors = {"dear": 0.1, "longer": 0.2, "cheap": 0.3}
    cells = [cell(tmp_path, method, TASKS[0], seed) for seed in range(3) for method in errors]
    for one in cells:
        by_loss = one.method == "cheap"
        validation = {"metric": None if by_loss else 0.1, "loss": 0.5, "at": [0, 1]}
        chosen = "validation loss" if by_loss else "validation"
        finish(one, errors[one.method], validation=validation, selected_on=chosen)
    table = assemble(asked(), cells, [State(DONE)] * len(cells))
    assert table.comparison is not None
    (flag,) = [flag for flag in table.comparison.flags if flag.kind == "mixed-conditions"]
    assert flag.refuses
    choices = "by loss, by metric"
    assert flag.text == f"different choices of the epoch on task {TASKS[0]}: {choices}"
    assert json.dumps(table.as_dict(), allow_nan=False)


def test_a_run_without_a_score_has_failed(tmp_path: Path) -> None:
    cells = [cell(tmp_path, method, TASKS[0], seed) for seed in range(3) for method in ("x", "y")]
    for one in cells:
        error = None if (one.method, one.seed) == ("y", 1) else 0.1
        finish(one, 0.1, test={"metric": error, "loss": 1.0, "smallest": 0.01})
    table = assemble(asked(), cells, [State(DONE)] * len(cells))
    assert (table.summary("y", TASKS[0]).n, table.summary("y", TASKS[0]).failed) == (2, 1)
    assert "failed-runs" in kinds(table)


@pytest.mark.parametrize("name", ["result.json", "manifest.json", "metrics.jsonl"])
def test_a_run_with_a_damaged_file_has_failed(tmp_path: Path, name: str) -> None:
    """It costs the others nothing, and the table says which file it is."""
    cells = [cell(tmp_path, method, TASKS[0], seed) for seed in range(3) for method in ("x", "y")]
    for one in cells:
        finish(one, 0.1)
    assert cells[0].directory is not None
    (cells[0].directory / name).write_text("[1]\n")
    table = assemble(asked(), cells, [State(DONE)] * len(cells))
    assert [state.word for _, state in table.standing] == [FAILED] + [DONE] * 5
    assert str(cells[0].directory / name) in table.states[0].detail
    assert (table.summary("x", TASKS[0]).n, table.summary("x", TASKS[0]).failed) == (2, 1)
    assert [row.seed for row in table.rows if row.method == "x"] == [1, 2]
    (cells[0].directory / "result.json").unlink()
    assert rows(cells[:1], [State(DONE)])[1][0].word == FAILED


def test_learning_rates_are_searched_by_the_loss_where_there_is_no_metric(tmp_path: Path) -> None:
    rates, losses = ("1e-4", "1e-3", "1e-2"), (0.2, 0.4, 0.9)
    settings = [f"training.optimizer.lr={rate}" for rate in rates]
    cells = [cell(tmp_path, "x", TASKS[0], 0, (setting,)) for setting in settings]
    for one, loss in zip(cells, losses, strict=True):
        validation = {"metric": None, "loss": loss, "at": [0, 1]}
        finish(one, 0.1, validation=validation, selected_on="validation loss")
    found, _ = rows(cells, [State(DONE)] * len(cells))
    (best,) = _searched(cells, found)
    assert best.learning_rate == 1e-4
    assert best.searched == (1e-4, 1e-3, 1e-2)


def test_runs_of_an_earlier_version_stay_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their results are those of other computations under the same names."""

    def finished(name: str, version: int | None, error: float) -> Cell:
        one = cell(tmp_path, "pare", "a", 0)
        one = replace(one, directory=tmp_path / name)
        finish(one, error)
        kept = forms.manifest(hash=name, **({} if version is None else {"format": version}))
        (tmp_path / name / "manifest.json").write_text(json.dumps(kept))
        return one

    finished("seed0-old", None, 0.9)
    finished("seed0-changed", runs.FORMAT, 0.8)  # the recipe or the code was another one
    finished("seed1-old", None, 0.7)  # no cell of this comparison
    now = finished("seed0-new", runs.FORMAT, 0.1)
    request = Request(Suite(methods=("pare",), tasks=("a",), seeds=1))
    table = assemble(request, [now], [State(DONE)])
    assert [row.test for row in table.rows] == [0.1]
    (note,) = table.notes
    assert note.startswith("1 finished run of an earlier version of xmodal")
    assert table.as_dict()["notes"] == [note]
    show(table, ())
    assert f"note: {note}" in capsys.readouterr().err
