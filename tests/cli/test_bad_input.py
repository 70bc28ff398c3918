"""Wrong names, files and options: one message, the right exit code, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

WRONG = [
    (("run", "demo/paer"), "no recipe 'demo/paer'; did you mean 'demo/pare'?"),
    (("run", "recipes/pare_darcyy.yaml"), "did you mean 'pare_darcy'?"),
    (("run", "methods/pare", "--scale", "smok"), "no scale 'smok'; did you mean 'smoke'?"),
    (("run", "demo/pare", "selector=gat"), "unknown selector 'gat'; did you mean 'gate'?"),
    (("run", "demo/pare", "task=darcie"), "unknown task 'darcie'; did you mean 'darcy'?"),
    (("run", "demo/pare", "stages.3.epochs=1"), "stages has 1 items"),
    (("run", "demo/pare", "seed=many"), "should be a number, not the text 'many'"),
    (("run", "demo/pare", "seed=-1"), "greater than or equal to 0"),
    (("run", "demo/pare", "protocol=clear"), "should be 'clean' or 'published'"),
    (("run", "demo/pare", "seed=[1"), "not valid YAML"),
    (("run", "seed=1"), "name at least one recipe"),
    (("run", "methods/pare"), "is missing"),
    (("resume", "nothing"), "no run 'nothing'"),
    (("recipes", "show", "demo/paer"), "did you mean 'demo/pare'?"),
    (("recipes", "cp", "demo/paer", "x.yaml"), "did you mean 'demo/pare'?"),
    (("plugins", "info", "selector", "gat"), "unknown selector 'gat'; did you mean 'gate'?"),
    (("plugins", "info", "selectr", "gate"), "unknown kind 'selectr'; did you mean 'selector'?"),
    (("plugins", "list", "mixxer"), "unknown kind 'mixxer'; did you mean 'mixer'?"),
    (("plugins", "list", "--plugin", "no.py"), "no.py: no such file"),
    (("rum",), "No such command 'rum'"),
    (("run", "demo/pare", "--sclae", "cpu"), "No such option: --sclae"),
    (("run", "demo/pare", "--seed", "x"), "unable to parse string as an integer"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a)[:40] for a, _ in WRONG])
def test_wrong_usage(xmodal: Cli, arguments: tuple[str, ...], message: str) -> None:
    done = xmodal(*arguments)
    assert done.code == 2
    assert done.out == ""
    # Boxes of the option parser break lines where the terminal ends.
    assert " ".join(message.split()) in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "a recipe is a mapping"),
        ("seed: 1\nseed: 2", "seed\n    is given twice"),
        ("seed: !!python/object/apply:os.system [echo]", "is not allowed"),
        ("a: &a [1]\nb: *a", "anchors and aliases are not allowed"),
        ("extends: mine.yaml", "extend each other in a circle"),
        ("extends: methods/paer", "mine.yaml:1:1  extends"),
        ("extends: {a: 1}", "expected a recipe name or path"),
        ("\x00", "not valid YAML"),
        ("", "is missing"),
    ],
)
def test_wrong_recipes(xmodal: Cli, text: str, message: str) -> None:
    Path("mine.yaml").write_text(text)
    done = xmodal("run", "mine.yaml")
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"- 1", b"a: &a 1"])
def test_a_malformed_file_in_the_folder_of_recipes(xmodal: Cli, content: bytes) -> None:
    """It is named in a note, and is an error only where it is asked for."""
    Path("recipes/methods").mkdir(parents=True)
    Path("recipes/methods/a-broken.yaml").write_bytes(content)
    done = xmodal("recipes", "list", "--json")
    assert done.code == 0
    assert {"name": "methods/a-broken", "description": "", "origin": "here"} in json.loads(done.out)
    assert "note: recipes/methods/a-broken.yaml" in done.err
    assert xmodal("recipes", "show", "methods/nft").code == 0
    done = xmodal("compare", "nft", "--task", "darci")
    assert "no task 'darci'" in done.err
    done = xmodal("compare", "nft", "--task", "tic-tac-toe", "--scale", "smoke", "--collect")
    assert "note: passed over: recipes/methods/a-broken.yaml" in done.err
    done = xmodal("run", "methods/a-broken")
    assert done.code == 2
    assert done.err.startswith("error: recipes/methods/a-broken.yaml")


LONG = "x" * 300
STRANGE = [
    ("run", LONG),
    ("run", f"{LONG}.yaml"),
    ("run", "~nobody/x.yaml"),
    ("run", "\0.yaml"),
    ("run", "demo/pare", "--scale", LONG),
    ("run", "demo/pare", "--plugin", f"{LONG}.py"),
    ("run", "demo/pare", f"{LONG}=1"),
    ("compare", "--suite", "~nobody/s.yaml"),
    ("compare", "nft", "--task", f"{LONG}.yaml"),
    ("compare", "nft", "--task", "tic-tac-toe", "--launcher", "~nobody/l.yaml"),
    ("resume", LONG),
    ("predict", "\0", "a.csv"),
]


@pytest.mark.parametrize("arguments", STRANGE, ids=range(len(STRANGE)))
def test_names_that_cannot_be_files(xmodal: Cli, arguments: tuple[str, ...]) -> None:
    done = xmodal(*arguments)
    assert (done.code, done.out) == (2, "")
    assert len(done.err) < 2500


def test_a_value_may_be_longer_than_a_file_name(xmodal: Cli) -> None:
    done = xmodal("recipes", "show", "demo/pare", f"description={'y' * 300}", "--json")
    assert done.code == 0
    assert json.loads(done.out)["description"] == "y" * 300


def test_a_plugin_that_fails_to_import(xmodal: Cli) -> None:
    Path("broken.py").write_text("import nothing_of_this_name")
    done = xmodal("run", "demo/pare", "--plugin", "broken.py")
    assert done.code == 3
    assert "nothing_of_this_name" in done.err


@pytest.mark.slow
def test_real_processes_agree(process: Cli) -> None:
    """The in-process calls above leave nothing out: exit codes and streams are those of a shell."""
    done = process("run", "demo/paer")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: no recipe 'demo/paer'; did you mean 'demo/pare'?")
    assert "Traceback" not in done.err
    assert process("--version").out.startswith("xmodal ")
