"""A failing, a misspelled, a slow and a colliding plugin harm nothing but themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xmodal._version import __version__

pytestmark = pytest.mark.slow

HOOK = "from xmodal import hookimpl\n@hookimpl\n"
SOURCES = {
    "failing": "raise RuntimeError('no driver\\nfound')",
    "leaving": "import sys; sys.exit(7)",
    "misspelled": HOOK + "def xmodal_selector():\n    return {}\n",
    "slow": "import time; time.sleep(1)\n"
    + HOOK
    + "def xmodal_selectors():\n    return {'late': 'xmodal.testing.tiny:TinySelector'}\n",
    "colliding": HOOK + "def xmodal_selectors():\n    return {'random': 'a.b:C'}\n",
    "recipes": HOOK + "def xmodal_recipes():\n    1 / 0\n",
    "commands": HOOK + "def xmodal_commands(app):\n    1 / 0\n",
}
LINES = {
    "failing": "plugin 'failing' (xmodal-failing): RuntimeError: no driver found",
    "leaving": "plugin 'leaving' (xmodal-leaving): SystemExit: 7",
    "misspelled": "plugin 'misspelled' (xmodal-misspelled): unknown hook 'xmodal_selector'; did "
    "you mean 'xmodal_selectors'?",
    "colliding": f"selector 'random' is claimed by xmodal {__version__} and xmodal-colliding 1.0",
}
Pretend = Callable[[str, str], str]


@pytest.fixture
def trouble(pretend: Pretend) -> str:
    """The folder of all these plugins, installed together."""
    folders = {pretend(name, source) for name, source in SOURCES.items()}
    return folders.pop()


@pytest.mark.long
def test_help_still_works(environment: Any, tmp_path: Path, trouble: str) -> None:
    done = environment.run("--help", cwd=tmp_path, PYTHONPATH=trouble)
    assert done.code == 0, done.err
    assert "Usage" in done.out
    assert done.err == "warning: plugin 'commands': ZeroDivisionError: division by zero\n"


@pytest.mark.long
def test_each_gets_one_clear_line(environment: Any, tmp_path: Path, trouble: str) -> None:
    done = environment.run("plugins", "list", cwd=tmp_path, PYTHONPATH=trouble)
    assert done.code == 0, done.err
    for line in LINES.values():
        assert done.err.splitlines().count(f"not loaded: {line}") == 1
    assert "Traceback" not in done.err
    assert "late" in done.out
    assert "gate" in done.out


@pytest.mark.long
def test_the_same_as_json(environment: Any, tmp_path: Path, trouble: str) -> None:
    done = environment.run("plugins", "list", "--json", cwd=tmp_path, PYTHONPATH=trouble)
    listed = json.loads(done.out)
    assert {b["plugin"] for b in listed["broken"]} == {"failing", "leaving", "misspelled"}
    (collision,) = listed["collisions"]
    assert collision["name"] == "random"
    assert "late" in {c["name"] for c in listed["components"]}


@pytest.mark.long
def test_unrelated_recipes_still_validate(environment: Any, tmp_path: Path, trouble: str) -> None:
    arguments = ("methods/pare", "tasks/darcy", "--scale", "smoke")
    done = environment.run("recipes", "validate", *arguments, cwd=tmp_path, PYTHONPATH=trouble)
    assert done.code == 0, done.err
    assert done.out.startswith("valid: darcy")


def test_a_recipe_that_needs_the_contested_name_says_so(
    environment: Any, tmp_path: Path, trouble: str
) -> None:
    arguments = ("methods/pare", "tasks/darcy", "selector=random", "--scale", "smoke")
    done = environment.run("recipes", "validate", *arguments, cwd=tmp_path, PYTHONPATH=trouble)
    assert done.code in (2, 3)
    assert f"provided by both xmodal {__version__} and xmodal-colliding 1.0" in done.err
    assert "Traceback" not in done.err


def test_a_missing_name_says_what_was_not_loaded(
    environment: Any, tmp_path: Path, trouble: str
) -> None:
    arguments = ("methods/pare", "tasks/darcy", "selector=driven", "--scale", "smoke")
    done = environment.run("recipes", "validate", *arguments, cwd=tmp_path, PYTHONPATH=trouble)
    assert done.code == 2
    assert "unknown selector 'driven'" in done.err
    assert "not loaded: plugin 'failing': RuntimeError: no driver found" in done.err


def test_strict_refuses(environment: Any, tmp_path: Path, trouble: str) -> None:
    done = environment.run(
        "plugins", "list", cwd=tmp_path, PYTHONPATH=trouble, XMODAL_STRICT_PLUGINS="1"
    )
    assert done.code == 3
    assert done.err == f"error: {LINES['failing']}\n"


def test_the_allow_list(environment: Any, tmp_path: Path, trouble: str) -> None:
    done = environment.run(
        "plugins", "list", "selector", "--json",
        cwd=tmp_path, PYTHONPATH=trouble, XMODAL_PLUGINS="slow,colliding",
    )  # fmt: skip
    listed = json.loads(done.out)
    assert [c["name"] for c in listed["components"]] == ["late", "random"]
    assert listed["broken"] == []
    assert listed["collisions"] == []


@pytest.mark.long
def test_a_single_file(environment: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        HOOK + "def xmodal_selectors():\n    return {'mine': f'{__name__}:Mine'}\n"
        "from xmodal.testing.tiny import TinySelector\n"
        "class Mine(TinySelector):\n    'My own.'\n"
    )
    done = environment.run(
        "run", "methods/pare", "tasks/darcy", "selector=mine", "--scale", "smoke",
        "--plugin", str(file), "--root", "runs", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = Path(tmp_path / json.loads(done.out)["run"] / "manifest.json").read_text()
    assert "mine.py" in manifest
    missing = environment.run("plugins", "list", "--plugin", "absent.py", cwd=tmp_path)
    assert missing.code == 2
    assert missing.err == "error: --plugin absent.py: no such file\n"
