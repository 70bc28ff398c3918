"""Two letters swapped in any key of the demo's recipe: the place and the right key are named."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from xmodal import plugins
from xmodal.errors import RecipeError
from xmodal.recipe.compose import compose, validate

from ..paths import ROOT

pytestmark = pytest.mark.slow

DEMO = "demo/pare"


def misspelt(key: str) -> str:
    """The key with two unequal neighbours swapped, as near to its middle as there are any."""
    places = [i for i in range(len(key) - 1) if key[i] != key[i + 1]]
    i = min(places, key=lambda place: abs(place - len(key) / 2 + 0.5))
    return key[:i] + key[i + 1] + key[i] + key[i + 2 :]


def test_misspelt_swaps_two_letters() -> None:
    assert [misspelt(key) for key in ("lr", "seed", "optimizer")] == ["rl", "sede", "optiimzer"]


def keys(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key path of a recipe."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from keys(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from keys(item, (*path, index))


def complaint(recipe: str, wrong: str, right: object, line: int) -> str:
    """What is wrong with the message about one misspelt key; empty where it is as it should be."""
    registry = plugins.registry()
    try:
        validate(compose([recipe], registry), registry)
    except RecipeError as error:
        found = [p for p in error.problems if p.key.split(".")[-1] == wrong]
        if not any(
            f":{line}:" in p.where and f"did you mean '{right}'?" in p.message for p in found
        ):
            return f"line {line}, {wrong} for {right}:\n{error}"
        return "" if error.exit_code == 2 else "exit code"
    return f"line {line}: {wrong} for {right} was accepted"


@pytest.mark.long
def test_every_key_of_the_resolved_recipe() -> None:
    registry = plugins.registry()
    recipe = validate(compose([DEMO], registry), registry).model_dump(mode="json")
    complaints = []
    paths = list(keys(recipe))
    for path in paths:
        changed = copy.deepcopy(recipe)
        block: Any = changed
        for part in path[:-1]:
            block = block[part]
        right, wrong = str(path[-1]), misspelt(str(path[-1]))
        items = [(wrong if key == right else key, value) for key, value in block.items()]
        block.clear()
        block.update(items)
        with Path("changed.yaml").open("w", encoding="utf-8") as stream:
            YAML().dump(changed, stream)
        starts = [line.strip(" -") for line in Path("changed.yaml").read_text().splitlines()]
        (line,) = [n for n, text in enumerate(starts, 1) if text.startswith(f"{wrong}:")]
        complaints.append(complaint("changed.yaml", wrong, right, line))
    assert len(paths) > 80
    assert not list(filter(None, complaints))


@pytest.mark.long
def test_every_key_of_every_layer_of_the_recipe() -> None:
    """The same in the files as people write them; keys that a later layer replaces are moot."""
    shutil.copytree(ROOT / "recipes", "recipes")
    registry = plugins.registry()
    layered = compose([DEMO], registry)
    # Components named without a block have a "use" that stands in no file.
    places = {
        (origin.file, origin.line, origin.column, str(path[-1]))
        for path, origin in layered.origins.items()
        if isinstance(path[-1], str)
    }
    complaints, tried = [], 0
    for name, line, column, right in sorted(places):
        file = Path(name)
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        here = lines[line - 1][column - 1 :]
        if not here.startswith(f"{right}:"):
            continue
        wrong = misspelt(right)
        lines[line - 1] = lines[line - 1][: column - 1] + wrong + here[len(right) :]
        file.write_text("".join(lines), encoding="utf-8")
        told = complaint(DEMO, wrong, right, line)
        complaints.append(told)
        file.write_text(text, encoding="utf-8")
        tried += 1
    assert tried > 40
    assert not list(filter(None, complaints))


@pytest.mark.parametrize("command", [("run",), ("recipes", "validate"), ("run", "--dry-run")])
def test_the_command_line_says_it(xmodal: Callable[..., Any], command: tuple[str, ...]) -> None:
    text = "extends: demo/pare\nselector:\n  temprature: 0.5\nmixer: {beta_mxi: 1}\nsede: 1\n"
    Path("mine.yaml").write_text(text)
    done = xmodal(*command, "mine.yaml")
    assert done.code == 2
    assert done.out == ""
    assert "mine.yaml:3:3  selector.temprature" in done.err
    assert "unknown setting for gate; did you mean 'temperature'?" in done.err
    assert "mine.yaml:4:9  mixer.beta_mxi" in done.err
    assert "mine.yaml:5:1  sede" in done.err
    assert "3 problems (exit 2)" in done.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("selector.temprature=0.5", "temperature"),
        ("sede=1", "seed"),
        ("training.epohcs=1", "epochs"),
        ("stages.0.opitmizer={}", "optimizer"),
        ("training.optimizer.use=adamww", "adamw"),
        ("training.optimizer.rl=1", "lr"),
        ("selector=gat", "gate"),
    ],
)
def test_overrides_are_checked_alike(xmodal: Callable[..., Any], override: str, right: str) -> None:
    done = xmodal("recipes", "validate", DEMO, override)
    assert done.code == 2
    assert "command line" in done.err
    assert f"did you mean '{right}'?" in done.err


@pytest.mark.long
def test_names_come_first_where_torch_is_not_loaded(process: Callable[..., Any]) -> None:
    """A process of its own says at once what is wrong outside the parts, then what is inside."""
    Path("mine.yaml").write_text(
        "extends: demo/pare\nselector:\n  temprature: 0.5\nsede: 1\nmixer: nonne\n"
    )
    done = process("run", "mine.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(
        "error: mine.yaml:4:1  sede\n    unknown setting; did you mean 'seed'?"
    )
    assert "mine.yaml:5:1  mixer\n    unknown mixer 'nonne'; did you mean 'none'?" in done.err
    assert done.err.endswith("2 problems (exit 2); not checked yet: the settings of the parts\n")
    Path("mine.yaml").write_text("extends: demo/pare\nselector:\n  temprature: 0.5\n")
    done = process("run", "mine.yaml")
    first, rest = done.err.split("\n", 1)
    assert first == "loading torch and the required components ..."
    assert rest.startswith("error: mine.yaml:3:3  selector.temprature")
    assert rest.endswith("1 problem (exit 2)\n")
    assert process("run", "mine.yaml", "--quiet").err == rest


def test_training_settings_are_a_block(xmodal: Callable[..., Any]) -> None:
    Path("mine.yaml").write_text("extends: demo/pare\ntraining: 3\n")
    done = xmodal("run", "mine.yaml")
    assert done.code == 2
    assert "mine.yaml:2:1  training\n    expected a block of settings" in done.err
