"""What was asked for: suites, defaults, the command that repeats it, launchers with settings."""

from __future__ import annotations

import shlex
from math import prod
from pathlib import Path
from typing import Any

import pytest

from xmodal.comparison.grid import Contender, Request, find_suite, grid, requested
from xmodal.comparison.run import compare, default_launcher
from xmodal.comparison.table import by_hand
from xmodal.data.store import Store
from xmodal.errors import DataError, RecipeError, UsageError
from xmodal.plugins import registry
from xmodal.recipe.choice import choose
from xmodal.recipe.lookup import all_recipes, all_suites
from xmodal.settings import Use

SUITE = """
methods:
  - pare
  - {use: pare, label: piecewise, set: [scheduler=piecewise]}
tasks: [openml/car]
seeds: 2
scale: smoke
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(SUITE)
    return path


def test_fresh_seeds_begin_where_they_are_told_to(suite: Path, tmp_path: Path) -> None:
    made = requested(registry(), suite=str(suite), seeds=3, first_seed=2)
    assert made.command.endswith("--seeds 3 --first-seed 2")
    cells = grid(made, registry(), Store(), tmp_path)
    assert {cell.seed for cell in cells} == {2, 3, 4}
    suite.write_text(SUITE + "first_seed: 5\n")
    assert requested(registry(), suite=str(suite)).suite.first_seed == 5
    assert requested(registry(), suite=str(suite), first_seed=0).suite.first_seed == 0
    with pytest.raises(UsageError, match="first_seed: -1, and 0 is the least"):
        requested(registry(), suite=str(suite), first_seed=-1)


def test_a_suite_is_a_grid(suite: Path, tmp_path: Path) -> None:
    made = requested(registry(), suite=str(suite))
    assert made.suite.seeds == 2
    assert made.command == f"xmodal compare --suite {suite}"
    assert made.name.startswith("grid_")
    cells = grid(made, registry(), Store(), tmp_path)
    assert [cell.method for cell in cells[:2]] == ["pare", "piecewise"]
    assert [cell.added for cell in cells[:3]] == [False, False, True]
    assert [c.resolved["scheduler"]["use"] for c in cells[:2]] == ["linear", "piecewise"]
    assert "piecewise" in str(cells[1].directory)


def test_recipes_beside_a_suite_are_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: methods/nft")
    (tmp_path / "task.yaml").write_text("extends: tasks/openml/car")
    (tmp_path / "s.yaml").write_text(
        "methods: [mine.yaml, {use: ./mine.yaml, label: two}, nft]\ntasks: [task.yaml, darcy]"
    )
    _, suite = find_suite(str(tmp_path / "s.yaml"), registry())
    mine, task = str(tmp_path / "mine.yaml"), str(tmp_path / "task.yaml")
    assert [Path(one.use) for one in suite.contenders] == [Path(mine), Path(mine), Path("nft")]
    assert suite.tasks == (task, "darcy")
    (cell, *_) = grid(Request(suite), registry(), Store(), tmp_path)
    assert cell.skipped == ""
    assert f"xmodal run {mine} {task} " in by_hand(cell)


def test_options_win_over_the_suite(suite: Path) -> None:
    options = {"suite": str(suite), "seeds": 5, "scale": "cpu", "trivial": False}
    request = requested(registry(), ("nft",), ("darcy",), **options)  # type: ignore[arg-type]
    chosen = request.suite
    assert chosen.contenders == (Contender(use="nft"),)
    assert (chosen.tasks, chosen.seeds, chosen.scale) == (("darcy",), 5, "cpu")
    assert not request.trivial


@pytest.mark.parametrize("numbers", [{"seeds": 0}, {"fraction": 0.0}, {"fraction": 1.5}])
def test_numbers_that_mean_nothing(numbers: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(numbers))):
        requested(registry(), ("nft",), ("openml/car",), **numbers)  # type: ignore[arg-type]


def test_the_command_repeats_the_request() -> None:
    settings = ("selector={use: gate, temperature: 0.5},random",)
    request = requested(
        registry(), ("pare", "nft"), ("openml/car", "darcy"), seeds=4, fraction=0.5,
        settings=settings, scale="cpu", against="nft", trivial=False,
    )  # fmt: skip
    words = shlex.split(request.command)
    assert words[:4] == ["xmodal", "compare", "pare", "nft"]
    assert words[words.index("--set") + 1] == settings[0]
    assert words[words.index("--task") :][1:3] == ["openml/car", "darcy"]
    assert words[-1] == "--no-trivial"


def test_the_cheap_answers_of_the_data_are_added_once(tmp_path: Path) -> None:
    for methods in (("nft",), ("nft", "baseline"), ("methods/baseline", "nft")):
        made = requested(registry(), methods, ("openml/car",), seeds=1)
        cells = grid(made, registry(), Store(), tmp_path)
        roles = {cell.method: cell.resolved["role"] for cell in cells}
        assert len(roles) == len(cells)
        cheap = {method for method, role in roles.items() if role == "trivial"}
        assert {"baseline", "majority"} <= cheap
        assert {cell.method for cell in cells if cell.added} == cheap - set(methods) - {
            method.removeprefix("methods/") for method in methods
        }
    none = requested(registry(), ("nft",), ("openml/car",), seeds=1, trivial=False)
    assert [cell.method for cell in grid(none, registry(), Store(), tmp_path)] == ["nft"]


def test_a_file_called_like_a_cheap_answer(tmp_path: Path) -> None:
    (tmp_path / "majority.yaml").write_text("extends: methods/nft")
    made = requested(registry(), (str(tmp_path / "majority.yaml"),), ("openml/car",), seeds=1)
    with pytest.raises(UsageError, match="2 methods are called 'majority'"):
        grid(made, registry(), Store(), tmp_path)


def test_names_of_reports_tell_comparisons_apart() -> None:
    def name(task: str = "darcy", **options: Any) -> str:
        return requested(registry(), ("pare", "nft"), (task,), **options).name

    names = {name(), name(scale="cpu"), name("psicov")}
    assert len(names) == 3
    assert name(seeds=9) in names


# What a suite of the paper's asks for and a method here cannot do. For table 11 print has a dash
# there, too; 'pinn' is for smooth fields on a line alone.
IMPOSSIBLE = {
    *(
        ("table2", "pinn", task)
        for task in ("navier-stokes", "darcy-pdebench", "shallow-water", "diffusion-reaction-2d")
    ),
    ("table11", "pare [source=voc-foreground, all samples]", "spherical"),
    ("table11", "pare [source=voc-foreground, all samples]", "ninapro"),
}


@pytest.mark.long
def test_every_shipped_suite_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))
    found = all_suites(registry())
    tables = {f"suites/table{number}" for number in (*range(1, 8), 11, *range(14, 19))}
    assert {one.name for one in found} == {"suites/demo", *tables}
    assert not [f for f in all_recipes(registry()) if f.name.startswith("suites/")]
    for one in found:
        name = one.name.removeprefix("suites/")
        _, suite = find_suite(name, registry())
        made = requested(registry(), suite=name, seeds=1, scale="smoke", trivial=False)
        cells = grid(made, registry(), Store(), tmp_path)
        settings = prod(len(text.partition("=")[2].split(",")) for text in suite.set)
        assert len(cells) == len(suite.contenders) * len(suite.tasks) * settings
        wrong = {(name, c.method, c.task): c.skipped for c in cells if c.skipped and not c.absent}
        assert set(wrong) - IMPOSSIBLE == set(), wrong


def test_suites_have_the_tasks_of_their_tables() -> None:
    tasks = {f"table{n}": find_suite(f"table{n}", registry())[1].tasks for n in (1, 2, 6, 14, 16)}
    assert {name: len(found) for name, found in tasks.items()} == {
        "table1": 10, "table2": 8, "table6": 7, "table14": 30, "table16": 4,
    }  # fmt: skip
    for name in ("table4", "table5", "table15"):
        assert find_suite(name, registry())[1].tasks == tasks["table1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [nft]\ntask: [darcy]\n", "tasks"),
        ("methods: [nft]\ntasks: []\n", "grid.yaml:2"),
        ("methods: [{use: nft, set: [lr]}]\ntasks: [darcy]\n", "is not of the form key=value"),
        ("methods: [nft]\ntasks: [darcy]\nseeds: 0\n", "grid.yaml:3"),
    ],
)
def test_a_wrong_suite_is_explained(text: str, message: str, suite: Path) -> None:
    suite.write_text(text)
    with pytest.raises(RecipeError) as error:
        requested(registry(), suite=str(suite))
    assert message in str(error.value)
    assert "grid.yaml" in str(error.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no suite 'table44'; did you mean 'table4'"):
        requested(registry(), suite="table44")
    with pytest.raises(UsageError, match="no file"):
        requested(registry(), suite=str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="name the methods"):
        requested(registry(), tasks=("darcy",))
    with pytest.raises(UsageError, match="name tasks"):
        requested(registry(), ("nft",))
    made = requested(registry(), ("nft",), ("darcy",), seeds=1, against="ntf")
    cells = grid(made, registry(), Store(), tmp_path)
    with pytest.raises(UsageError, match="did you mean 'nft'"):
        made.check_against(cells)


def test_launchers_by_name_block_and_file(tmp_path: Path) -> None:
    def launcher(text: str, **settings: Any) -> Use[Any]:
        return choose("launcher", text, registry(), "--launcher", settings)

    assert launcher("local").dump() == {
        "use": "local",
        "jobs": None,
        "pack": None,
        "threads": None,
        "grace": 120.0,
    }
    assert launcher("{use: local, grace: 5}", jobs=3).dump() == {
        "use": "local",
        "jobs": 3,
        "pack": None,
        "threads": None,
        "grace": 5.0,
    }
    assert default_launcher(registry()) == "local"
    file = tmp_path / "where.yaml"
    file.write_text("use: local\njobs: 2\n")
    assert launcher(str(file)).config.jobs == 2
    file.write_text("use: local\njob: 2\n")
    with pytest.raises(RecipeError, match=r"where\.yaml:2"):
        launcher(str(file))
    with pytest.raises(UsageError, match="did you mean 'local'"):
        launcher("locl")


def test_nothing_starts_where_only_the_trivial_answer_could_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no cell can run\n.*did you mean 'epochs'"):
        compare(["nft"], ["openml/car"], settings=["training.epoch=1"], root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_only_data_are_missing_the_error_is_one_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))
    with pytest.raises(DataError) as caught:
        compare(["pare", "nft"], ["cosmic"], seeds=1)
    said = str(caught.value)
    # The baseline lacks no source, so its reason is another.
    assert said.startswith("no cell can run\npare, nft on cosmic: no data for 'cosmic'")
    assert said.count("xmodal data fetch cosmic\n") == 2
    assert "--task cosmic-simulated" in said


def test_cheap_answers_get_the_symmetries_that_methods_get(tmp_path: Path) -> None:
    made = requested(registry(), ("nft",), ("darcy",), seeds=1, settings=("augment=true,false",))
    cells = grid(made, registry(), Store(), tmp_path)
    ridge = [cell for cell in cells if cell.method.startswith("baseline")]
    assert {cell.method: cell.resolved["augment"] for cell in ridge} == {
        "baseline [augment=true]": True,
        "baseline [augment=false]": False,
    }
    assert all(cell.added for cell in ridge)
    made = requested(registry(), ("nft",), ("darcy",), seeds=1, settings=("workers=0,1",))
    cells = grid(made, registry(), Store(), tmp_path)
    assert [cell.method for cell in cells if cell.method.startswith("baseline")] == ["baseline"]
