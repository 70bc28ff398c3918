"""What the wheels hold, and that a third-party plugin works beside an installed xmodal."""

from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from xmodal import __version__

from ..paths import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "xmodal-topnorm"


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def _project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_recipe(wheels: dict[str, Path]) -> None:
    names = _names(wheels["xmodal"])
    packages = _project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    expected = {
        path.relative_to((ROOT / package).parent).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {
        f"xmodal_basics/recipes/{path.relative_to(ROOT / 'recipes').as_posix()}"
        for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert recipes
    assert (expected | recipes) - names == set()


def test_every_plugin_folder_is_packaged_and_announced() -> None:
    project = _project()
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/plugin.py")}
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    points = project["project"]["entry-points"]["xmodal"]
    assert {Path(package).name for package in packages} == folders | {"xmodal"}
    assert {point.partition(".")[0] for point in points.values()} == folders


@pytest.mark.slow
def test_the_wheel_holds_nothing_else(wheels: dict[str, Path]) -> None:
    tops = {name.partition("/")[0] for name in _names(wheels["xmodal"])}
    packages = _project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        Path(package).name for package in packages
    }


@pytest.mark.slow
def test_entry_points_and_licence(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["xmodal"]) as opened:
        info = next(n.partition("/")[0] for n in opened.namelist() if ".dist-info/" in n)
        points = opened.read(f"{info}/entry_points.txt").decode()
        names = set(opened.namelist())
    for name, target in _project()["project"]["entry-points"]["xmodal"].items():
        assert f"{name} = {target}" in points
    assert "xmodal = xmodal.cli.app:main" in points
    assert f"{info}/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_example_wheel_holds_its_recipes(wheels: dict[str, Path]) -> None:
    names = _names(wheels["xmodal_topnorm"])
    shipped = {p.relative_to(EXAMPLE).as_posix() for p in EXAMPLE.glob("*/recipes/**/*.yaml")}
    assert shipped
    assert shipped <= names


@pytest.mark.slow
def test_the_source_tree_does_not_leak_in(environment: Any, tmp_path: Path) -> None:
    done = environment.execute(
        "-c",
        "import xmodal, xmodal_basics; print(xmodal.__file__, xmodal_basics.__file__)",
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    assert str(ROOT) not in done.out


@pytest.mark.long
def test_installed_plugins_are_listed(environment: Any, tmp_path: Path) -> None:
    done = environment.run("plugins", "list", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    listed = json.loads(done.out)
    assert listed["broken"] == []
    assert listed["collisions"] == []
    found = {(c["kind"], c["name"]): c["from"] for c in listed["components"]}
    assert found["selector", "top-norm"] == "xmodal-topnorm 0.2.0"
    assert found["mixer", "swap-weakest"] == "xmodal-topnorm 0.2.0"
    owners = set(found.values())
    assert owners == {"xmodal-topnorm 0.2.0", f"xmodal {__version__}"}


@pytest.mark.slow
def test_installed_recipes_are_listed(environment: Any, tmp_path: Path) -> None:
    done = environment.run("recipes", "list", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    found = {recipe["name"]: recipe["origin"] for recipe in json.loads(done.out)}
    assert found["methods/pare-topnorm"] == "xmodal-topnorm"
    assert found["methods/pare"] == "xmodal"


@pytest.mark.long
def test_plugin_info(environment: Any, tmp_path: Path) -> None:
    done = environment.run("plugins", "info", "selector", "top-norm", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "temperature" in done.out
    assert "xmodal-topnorm 0.2.0" in done.out


@pytest.mark.long
@pytest.mark.parametrize("method", ["methods/pare-topnorm", "methods/swap-weakest"])
def test_a_recipe_of_the_plugin_runs(environment: Any, tmp_path: Path, method: str) -> None:
    done = environment.run(
        "run",
        method,
        "tasks/darcy",
        "--scale",
        "smoke",
        "--root",
        str(tmp_path),
        "--json",
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["fresh"] is True
    assert result["test"]["metric"] > 0


@pytest.mark.long
def test_the_example_passes_its_own_tests(environment: Any, tmp_path: Path) -> None:
    arguments = ("-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}")
    done = environment.execute(
        "-m",
        "pytest",
        *arguments,
        str(EXAMPLE / "tests"),
        cwd=tmp_path,
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert done.code == 0, done.out + done.err
