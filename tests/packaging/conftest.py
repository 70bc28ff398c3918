"""A fresh environment: xmodal and the example plugin from their own wheels, the rest borrowed.

The environment sees the packages of the current one through a path file, so nothing is downloaded
and no editable install leaks in (path files inside a borrowed folder are not read).
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..paths import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "xmodal-topnorm"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Environment:
    """A virtual environment and how to run its Python."""

    python: Path
    cache: Path

    def run(self, *arguments: str, cwd: Path, **variables: str) -> Outcome:
        """Run ``python -m xmodal`` there, away from the source tree."""
        return self.execute("-m", "xmodal", *arguments, cwd=cwd, **variables)

    def execute(self, *arguments: str, cwd: Path, **variables: str) -> Outcome:
        """Run Python there."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XMODAL_", "PYTHON"))}
        settings = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "XMODAL_CACHE": str(self.cache)}
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd,
            env={**kept, **settings, **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of xmodal and of the example plugin."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, EXAMPLE):
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(project))
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="session")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The fresh environment."""
    folder = tmp_path_factory.mktemp("environment")
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True, timeout=120)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    _pip("--python", str(python), "install", "--no-deps", "--no-index", *map(str, wheels.values()))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / ("Lib" if os.name == "nt" else f"lib/{version}") / "site-packages"
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return Environment(python, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def pretend(tmp_path: Path) -> Callable[[str, str], str]:
    """Lay out an installed plugin distribution by hand; returns the folder for PYTHONPATH."""
    folder = tmp_path / "installed"

    def add(name: str, source: str) -> str:
        module = f"example_{name}"
        info = folder / f"xmodal_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: xmodal-{name}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[xmodal]\n{name} = {module}\n")
        (folder / f"{module}.py").write_text(source)
        return str(folder)

    return add
