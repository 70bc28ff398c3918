"""A data file where a recipe is expected: which recipe reads it, told from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.api import run_name
from xmodal.comparison.grid import Request, Suite, grid
from xmodal.data.store import Store
from xmodal.errors import DataError, UsageError
from xmodal.plugins import registry
from xmodal.recipe.compose import compose
from xmodal.recipe.own_data import own_data, spelled_out

CSV = "a,b,y\n" + "".join(f"{k},{k * k % 7},{k % 2}\n" for k in range(20))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(name: str = "table.csv") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(CSV)
    return name


def arrays(name: str, *shape: int, **more: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    np.savez(name, x=np.zeros((6, *shape)), y=np.arange(6) % 2, **more)
    return name


def spelled(*given: str, overrides: tuple[str, ...] = ()) -> tuple[list[str], dict[str, Any]]:
    """The recipes, and the task of the composed recipe."""
    recipes, _ = spelled_out(given, registry(), overrides)
    return list(recipes), dict(compose(given, registry(), overrides).data["task"])


def test_a_table_alone_is_learned_with_the_default_method(tmp_path: Path) -> None:
    recipes, task = spelled(table())
    assert recipes == ["methods/pare", "arrays/row"]
    assert task == {"use": "arrays", "form": "row", "path": str(tmp_path / "table.csv")}


@pytest.mark.parametrize("method", ["nft", "methods/nft"])
@pytest.mark.parametrize("name", ["my: table.tsv", "data/table.csv", "./table.csv"])
def test_a_method_may_be_named_with_it(method: str, name: str, tmp_path: Path) -> None:
    recipes, task = spelled(method, table(name))
    assert recipes == ["methods/nft", "arrays/row"]
    assert task["path"] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("shape", "override", "form"),
    [
        ((3, 40), "", "sequence"),
        ((40,), "", "sequence"),
        ((40,), "task.form=row", "row"),
        ((32, 32), "", "grid"),
        ((32, 32), "task.form=sequence", "sequence"),
        ((3, 16, 16), "", "grid"),
    ],
)
def test_the_form_of_arrays_is_told_from_their_axes(
    shape: tuple[int, ...], override: str, form: str
) -> None:
    overrides = (override,) if override else ()
    assert spelled("nft", arrays("mine.npz", *shape), overrides=overrides)[0][1] == f"arrays/{form}"


def test_keys_of_the_arrays_are_heeded() -> None:
    name = arrays("mine.npz", 4, z=np.zeros((6, 3, 16, 16)))
    assert spelled("nft", name, overrides=("task.x=z",))[0][1] == "arrays/grid"


def test_a_file_of_arrays_and_folders() -> None:
    Path("own").mkdir()
    np.save("own/x.npy", np.zeros((6, 2, 30)))
    np.save("own/y.npy", np.arange(6) % 2)
    table("split/train.csv")
    table("split/test.csv")
    Path("unequal/x").mkdir(parents=True)
    for k, length in enumerate((30, 44)):
        np.save(f"unequal/x/{k}.npy", np.zeros((2, length)))
    np.save("unequal/y.npy", np.arange(2))
    rule = ("task.lengths=pad",)
    found = {name: own_data(name, registry()) for name in ("own", "own/x.npy", "split")}
    found["unequal/"] = own_data("unequal/", registry(), rule)
    with pytest.raises(DataError, match="samples of 30 to 44 values; say how to make them equal"):
        own_data("unequal/", registry())
    assert {name: one and one.recipe for name, one in found.items()} == {
        "own": "arrays/sequence",
        "own/x.npy": "arrays/sequence",
        "split": "arrays/row",
        "unequal/": "arrays/sequence",
    }


def test_a_test_file_of_its_own(tmp_path: Path) -> None:
    table("later.csv")
    task = spelled(table(), overrides=("task.test=later.csv",))[1]
    assert {"train", "test"} < set(task)
    assert "path" not in task
    assert task["train"] == str(tmp_path / "table.csv")


def test_recipes_stay_what_they_are() -> None:
    Path("methods").mkdir()
    Path("empty").mkdir()
    for name in ("methods/nft", "pare_darcy", "empty", "mine.yaml", "nothing"):
        assert own_data(name, registry()) is None
    given = ("methods/nft", "tasks/darcy"), ("seed=1",)
    assert spelled_out(given[0], registry(), given[1]) == given


def test_what_cannot_be_read_is_said() -> None:
    table()
    with pytest.raises(DataError, match=r"tabel\.csv.*did you mean '.*table\.csv'"):
        own_data("tabel.csv", registry())
    with pytest.raises(UsageError, match="a run learns from one data file"):
        spelled_out([table(), arrays("mine.npz", 4)], registry())


def test_runs_are_called_after_the_file() -> None:
    assert run_name([table("data/table.csv")], "cpu") == "table_cpu"
    assert run_name(["nft", "data/table.csv"]) == "nft_table"


def test_it_is_compared_as_a_task(tmp_path: Path) -> None:
    suite = Suite(methods=("nft",), tasks=(table(),), seeds=1, scale="smoke")
    (cell,) = grid(Request(suite), registry(), Store(), tmp_path / "cells")
    assert (cell.task, cell.skipped) == ("table", "")
    assert cell.resolved["task"]["path"] == str(tmp_path / "table.csv")
    assert cell.directory is not None
    assert cell.directory.parts[-3:-1] == ("table", "nft")
