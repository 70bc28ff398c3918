"""The grid of a comparison: names, settings, seeds, directories, and what cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.comparison.grid import Cell, Contender, Request, Suite, grid
from xmodal.comparison.table import by_hand
from xmodal.data.store import Store
from xmodal.errors import UsageError
from xmodal.plugins import registry

TASKS = ("openml/car", "openml/wdbc")
SUITE = Suite(methods=("nft", "pare"), tasks=("openml/car",), seeds=2, scale="smoke")


def changed(**fields: Any) -> Suite:
    return SUITE.model_copy(update=fields)


def cells(suite: Suite, tmp_path: Path) -> list[Cell]:
    return grid(Request(suite), registry(), Store(), tmp_path)


def test_every_method_meets_every_task_with_every_seed(tmp_path: Path) -> None:
    suite = changed(tasks=("openml/car", "tasks/openml/wdbc"))
    found = cells(suite, tmp_path)
    assert [(c.seed, c.task, c.method) for c in found] == [
        (seed, task, method)
        for seed in (0, 1)
        for task in ("openml/car", "openml/wdbc")
        for method in ("nft", "pare")
    ]
    assert len({c.directory for c in found}) == len(found)
    assert all(c.resolved["seed"] == c.seed for c in found)


def test_directories_depend_on_content_alone(tmp_path: Path) -> None:
    again = cells(changed(methods=("pare",)), tmp_path)
    assert {c.directory for c in again} < {c.directory for c in cells(SUITE, tmp_path)}
    other = cells(changed(methods=("pare",), fraction=0.5), tmp_path)
    assert not {c.directory for c in other} & {c.directory for c in again}


@pytest.mark.parametrize("label", ["..", ".", "con", "x" * 300, "a / b\0"])
def test_directories_lie_in_the_root_whatever_a_method_is_called(
    label: str, tmp_path: Path
) -> None:
    (cell,) = cells(changed(methods=(Contender(use="pare", label=label),), seeds=1), tmp_path)
    assert cell.directory is not None
    assert cell.directory.resolve().parents[2] == tmp_path.resolve()
    cell.directory.mkdir(parents=True)


def test_settings_make_variants_of_a_method(tmp_path: Path) -> None:
    settings = ("mixer.beta_mix=0.1,1e-1", "selector={use: gate, temperature: 0.5},random")
    suite = changed(methods=("pare",), set=settings, seeds=1)
    found = cells(suite, tmp_path)
    assert [c.method for c in found] == [
        "pare [mixer.beta_mix=0.1, selector={use: gate, temperature: 0.5}]",
        "pare [mixer.beta_mix=0.1, selector=random]",
        "pare [mixer.beta_mix=1e-1, selector={use: gate, temperature: 0.5}]",
        "pare [mixer.beta_mix=1e-1, selector=random]",
    ]
    assert [c.resolved["selector"]["use"] for c in found] == ["gate", "random"] * 2
    # Two ways to write one number are one run.
    assert found[0].directory == found[2].directory


def test_cheap_answers_that_are_added_learn_the_same(tmp_path: Path) -> None:
    """The same label of the same file, from the same share of its samples."""
    rows = "\n".join(f"{n % 7},{n},{n % 2}" for n in range(60))
    (tmp_path / "house.csv").write_text(f"a,price,b\n{rows}\n")
    more = ("task.y=price", "fraction=0.5", "training.epochs=3", "labelled=0.5,1")
    suite = changed(methods=("nft",), tasks=(str(tmp_path / "house.csv"),), set=more, seeds=1)
    found = grid(Request(suite, trivial=True), registry(), Store(), tmp_path)
    assert {c.added for c in found} == {False, True}
    assert [c.skipped for c in found if c.skipped] == []
    assert {c.resolved["task"]["y"] for c in found} == {"price"}
    assert {c.resolved["fraction"] for c in found} == {0.5}
    majority = [c.resolved["labelled"] for c in found if c.method.startswith("majority")]
    assert majority == [0.5, 1]


def test_a_test_file_of_a_data_file_is_one_of_its_settings(tmp_path: Path) -> None:
    for name in ("house", "later"):
        (tmp_path / f"{name}.csv").write_text("a,b\n" + "1,x\n2,y\n" * 30)
    suite = changed(
        tasks=(str(tmp_path / "house.csv"),), set=(f"task.test={tmp_path / 'later.csv'}",)
    )
    cell = grid(Request(suite), registry(), Store(), tmp_path)[0]
    assert cell.skipped == ""
    assert cell.resolved["task"]["train"] == str(tmp_path / "house.csv")


def test_stages_say_what_a_cell_will_take(tmp_path: Path) -> None:
    settings = (
        "training.epochs=4",
        "stages.1.stretch=1.5",
        "stages.0={epochs: 7, optimizer: {lr: 0.5}}",
        "stages.1.optimizer.lr=0.003",
    )
    (cell,) = cells(changed(methods=("orca",), set=settings, seeds=1), tmp_path)
    assert (cell.epochs, cell.learning_rate) == (7 + 6, 0.003)


@pytest.mark.parametrize("text", ["mixer.beta_mix", "=1", "a="])
def test_settings_must_be_assignments(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not of the form key=value"):
        cells(changed(set=(text,)), tmp_path)


def test_names_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no method 'paree'; did you mean 'pare'"):
        cells(changed(methods=("paree",)), tmp_path)
    with pytest.raises(UsageError, match="no task 'openml/cars'; did you mean 'openml/car'"):
        cells(changed(tasks=("openml/cars",)), tmp_path)


def test_a_cell_that_cannot_run_says_why(tmp_path: Path) -> None:
    (psicov,) = cells(Suite(methods=("nft",), tasks=("psicov",), seeds=1, scale="smoke"), tmp_path)
    assert "no data for 'psicov'" in psicov.skipped
    assert psicov.directory is None
    suite = changed(methods=("pare",), seeds=1, set=("mixer.match=same-position",))
    on_images = Contender(use="pare", set=("backbone=vit-s14",))
    (wrong,) = cells(suite.model_copy(update={"methods": (on_images,)}), tmp_path)
    assert wrong.skipped.startswith("mixer: match 'same-position' needs")


def test_a_recipe_written_for_the_pair_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "tasks").mkdir(parents=True)
    text = "extends: [methods/nft, tasks/openml/car]\ntraining: {epochs: 7}\n"
    (tmp_path / "recipes" / "nft_mine.yaml").write_text(text)
    for file in ("recipes/tasks/mine.yaml", "mine.yaml"):
        (tmp_path / file).write_text("extends: tasks/openml/car\n")
    (cell,) = cells(Suite(methods=("nft",), tasks=("mine",), seeds=1), tmp_path)
    assert cell.references == ("nft_mine",)
    assert cell.resolved["stages"][0]["epochs"] == 7
    # Who gives a file means that file.
    (cell,) = cells(Suite(methods=("nft",), tasks=("mine.yaml",), seeds=1), tmp_path)
    assert cell.references == ("methods/nft", "mine.yaml")


def test_the_command_of_a_cell_gives_the_same_recipe(tmp_path: Path) -> None:
    suite = changed(methods=("pare",), set=("selector={use: gate}",), seeds=1)
    (cell,) = cells(suite, tmp_path)
    assert by_hand(cell) == (
        "xmodal run methods/pare tasks/openml/car --scale smoke 'selector={use: gate}' seed=0"
    )


def test_two_that_no_table_could_tell_apart_are_refused(tmp_path: Path) -> None:
    other = Contender(use="pare", set=("selector=random",))
    with pytest.raises(UsageError, match="2 methods are called 'pare'"):
        cells(Suite(methods=("pare", other, "nft"), tasks=TASKS), tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text("extends: tasks/openml/car\n")
    files = tuple(str(tmp_path / folder / "mine.yaml") for folder in ("one", "two"))
    with pytest.raises(UsageError, match="2 tasks are called 'mine'"):
        cells(Suite(methods=("nft",), tasks=files), tmp_path)


def test_what_is_named_twice_is_one(tmp_path: Path) -> None:
    suite = Suite(methods=("nft", "methods/nft", "nft"), tasks=(*TASKS, *TASKS), seeds=1)
    assert len(grid(Request(suite), registry(), Store(), tmp_path)) == len(TASKS)


def test_directories_follow_the_content_of_the_data(tmp_path: Path) -> None:
    def directory(name: str) -> Path:
        suite = Suite(methods=("nft",), tasks=(str(tmp_path / name),), seeds=1)
        (cell,) = grid(Request(suite), registry(), Store(), tmp_path / "cells")
        assert cell.directory is not None, cell.skipped
        return cell.directory

    def task(name: str, data: Path) -> None:
        (tmp_path / name).write_text(f"extends: arrays/row\ntask: {{path: {data}}}\n")

    def write(data: Path, seed: int) -> None:
        data.parent.mkdir(exist_ok=True)
        random = np.random.default_rng(seed)
        np.savez(data, x=random.normal(size=(60, 4)), y=np.arange(60) % 2)

    write(tmp_path / "v1.npz", 1)
    write(tmp_path / "v2.npz", 2)
    write(tmp_path / "moved" / "v1.npz", 1)
    found = []
    for data in ("v1.npz", "v2.npz", "moved/v1.npz"):
        task("data.yaml", tmp_path / data)
        found.append(directory("data.yaml"))
    assert found[0] != found[1]
    assert found[0] == found[2]
    write(tmp_path / "v1.npz", 3)
    task("data.yaml", tmp_path / "v1.npz")
    assert directory("data.yaml") not in found
