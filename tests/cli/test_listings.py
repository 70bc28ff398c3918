"""Commands that show things: tables for people, ``--json`` for programs, nothing on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

Cli = Callable[..., Any]


def test_help_names_every_command(xmodal: Cli) -> None:
    done = xmodal("--help")
    assert (done.code, done.err) == (0, "")
    for command in ("run", "resume", "demo", "doctor", "schema", "recipes", "plugins"):
        assert f" {command} " in done.out
        assert xmodal(command, "--help").code == 0


def test_version(xmodal: Cli) -> None:
    from xmodal._version import __version__

    assert xmodal("--version").out == f"xmodal {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("recipes", "list"),
        ("recipes", "show", "demo/pare"),
        ("recipes", "show", "demo/pare", "--resolved"),
        ("recipes", "show", "demo/pare", "--origins"),
        ("recipes", "validate", "demo/pare"),
        ("plugins", "list"),
        ("plugins", "info", "selector", "gate"),
    ],
    ids=" ".join,
)
def test_tables_and_json(xmodal: Cli, arguments: tuple[str, ...]) -> None:
    shown, raw = xmodal(*arguments), xmodal(*arguments, "--json")
    assert (shown.code, raw.code) == (0, 0)
    assert (shown.err, raw.err) == ("", "")
    assert shown.out.strip()
    assert json.loads(raw.out)


def test_recipes_list_narrows(xmodal: Cli) -> None:
    rows = json.loads(xmodal("recipes", "list", "methods/*", "--json").out)
    names = [row["name"] for row in rows]
    assert "methods/pare" in names
    assert all(name.startswith("methods/") for name in names)
    assert all(row["description"] for row in rows)


def test_recipes_list_without_a_pattern_leaves_out_what_nobody_types(xmodal: Cli) -> None:
    shown = xmodal("recipes", "list").out.splitlines()
    names = [line.split()[0] for line in shown if line]
    assert {"methods/pare", "tasks/car", "scales/smoke"} <= set(names)
    hidden = {"tasks/openml/car", "scales/smoke/crop", "methods/fno/scales/cpu"}
    assert not hidden & set(names)
    everything = xmodal("recipes", "list", "*").out.splitlines()
    assert hidden <= {line.split()[0] for line in everything}
    kept = len(names) - 2  # the head of the table, and the last line, which counts the others
    assert shown[-1].startswith(f"{len(everything) - 1 - kept} more are old names")


def test_every_recipe_says_what_it_is(xmodal: Cli) -> None:
    rows = json.loads(xmodal("recipes", "list", "--json").out)
    assert not [row["name"] for row in rows if not row["description"]]


def test_show_prints_a_recipe_that_validates(xmodal: Cli) -> None:
    for flags in ([], ["--resolved"]):
        text = xmodal("recipes", "show", "demo/pare", "seed=7", *flags).out
        assert YAML(typ="safe").load(text)["seed"] == 7
        Path("shown.yaml").write_text(text)
        assert xmodal("recipes", "validate", "shown.yaml").code == 0


def test_origins_name_files_and_the_command_line(xmodal: Cli) -> None:
    done = xmodal("recipes", "show", "demo/pare", "seed=7", "--origins", "--json")
    origins = json.loads(done.out)
    assert origins["seed"] == "command line 'seed'"
    assert origins["selector.temperature"].startswith("recipes/methods/pare.yaml:")


def test_cp_copies_once(xmodal: Cli) -> None:
    assert xmodal("recipes", "cp", "demo/pare", "mine.yaml").out == "mine.yaml\n"
    assert xmodal("recipes", "validate", "mine.yaml").code == 0
    again = xmodal("recipes", "cp", "demo/pare", "mine.yaml")
    assert again.code == 2
    assert "mine.yaml exists; --force overwrites it" in again.err
    assert xmodal("recipes", "cp", "demo/pare", "mine.yaml", "--force").code == 0


@pytest.mark.long
def test_schema(xmodal: Cli) -> None:
    printed = json.loads(xmodal("schema").out)
    assert xmodal("schema", "--out", "schema.json").out == ""
    assert json.loads(Path("schema.json").read_text()) == printed
    assert {"extends", "task", "training"} <= set(printed["properties"])


def test_doctor_is_content_here(xmodal: Cli) -> None:
    findings = json.loads(xmodal("doctor", "--json").out)
    wrong = [finding for finding in findings if not finding["ok"] and finding["check"] != "cache"]
    assert not wrong


@pytest.mark.parametrize("as_json", [False, True])
def test_doctor_says_what_to_install(
    xmodal: Cli, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    """A torchvision built for another torch has no working operators."""
    import torchvision.ops

    def nms(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore lines")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    done = xmodal("doctor", *(["--json"] if as_json else []))
    assert done.code == 3
    text = " ".join(done.out.split())
    assert "operator torchvision::nms does not exist" in text
    assert "pip install --force-reinstall torch torchvision" in text
    assert "more lines" not in text


def test_doctor_names_a_missing_library(xmodal: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from xmodal.cli import doctor

    def version(name: str) -> str:
        if name == "timm":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    done = xmodal("doctor")
    assert done.code == 3
    assert "pip install timm" in done.out
