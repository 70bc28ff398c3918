"""Runs the command line in this process, so that a hundred calls cost one import of torch."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.plugins import add_commands

from ..processes import Done


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, where no recipe of the checkout hides."""
    monkeypatch.chdir(tmp_path)


@functools.cache
def _add_commands(app: Any) -> list[str]:
    return add_commands(app)


@pytest.fixture
def xmodal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Call the console script's entry point; anything but SystemExit escapes and fails the test."""
    import torch  # noqa: F401  so that no command says that it is loading it

    from xmodal import plugins
    from xmodal.cli.app import main

    # A process adds them once.
    monkeypatch.setattr(plugins, "add_commands", _add_commands)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["xmodal", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture
def process() -> Callable[..., Done]:
    """Run the command line in a new Python, which costs seconds: for what a fork cannot show."""

    def call(*arguments: object, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "xmodal", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own file: sixty series of three kinds."""
    random = np.random.default_rng(0)
    file = tmp_path / "mine.npz"
    y = np.arange(60) % 3
    x = random.normal(size=(60, 46)) + y[:, None] * np.sin(np.arange(46))
    np.savez(file, x=x.astype(np.float32), y=y)
    return file
