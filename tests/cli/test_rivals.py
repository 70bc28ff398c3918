"""``xmodal rivals setup`` prints one line for a shell, or runs it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from xmodal.data.store import Store
from xmodal_rivals import interpreters

from ..processes import Done

Cli = Callable[..., Done]


def test_setup_prints_what_makes_the_interpreter(xmodal: Cli) -> None:
    done = xmodal("rivals", "setup", "aeon")
    assert done.code == 0
    (line,) = done.out.splitlines()
    place = interpreters.INTERPRETERS["aeon"].python(Store())
    words = shlex.split(line)
    assert words[1:4] == ["-m", "venv", str(place.parents[1])]
    assert words[4:] == ["&&", str(place), "-m", "pip", "install", "aeon==1.6.0", "torch"]


def test_a_misspelt_interpreter(xmodal: Cli) -> None:
    done = xmodal("rivals", "setup", "aon")
    assert done.code == 2
    assert "no interpreter 'aon'; did you mean 'aeon'?" in done.err


@pytest.mark.long
def test_setup_runs_it(xmodal: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = interpreters.Interpreter("own", ("pip",), "a test")  # pip is there: no network
    monkeypatch.setitem(interpreters.INTERPRETERS, "own", own)
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    done = xmodal("rivals", "setup", "own", "--run")
    assert done.code == 0
    python = own.python(Store())
    assert python.is_relative_to(tmp_path)
    assert f"ready: {python}" in done.out
    assert subprocess.run([python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"])
    assert list(own.absent(Store())) == []
