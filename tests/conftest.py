"""Fixtures shared by all tests: a run small enough to repeat, and where real data lies."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from .paths import DATA

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.fsync = lambda descriptor: None  # runs save hundreds of files, and no test cuts the power

TINY = [
    "task.train=10",
    "training.epochs=3",
    "training.max_steps=null",
    "training.batch={size: 4, micro: 2}",
    "selector.network=mlp-dropout",
]
"""Overrides of ``methods/pare tasks/darcy --scale smoke``: 9 steps, micro-batches, drop-out."""


def _build_once() -> None:
    """Let Typer build the command line once, not at every call of it, which takes half a second."""
    build, built = typer.main.get_command, {}

    def get_command(app: typer.Typer) -> Any:
        key = (id(app), len(app.registered_commands), len(app.registered_groups))
        if key not in built:
            built[key] = (build(app), app)  # the app too, so that its id stays its own
        return built[key][0]

    typer.main.get_command = get_command


_build_once()


def pytest_collection_finish() -> None:
    """What was imported stays: to search it for garbage at every full collection costs seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests start in an empty folder, where no recipes of the checkout hide the installed ones."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of packed real data sets beside the checkout; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no folder {DATA.parent.name}/{DATA.name} beside the checkout")
    return DATA


@pytest.fixture
def tiny_run(tmp_path: Path) -> Callable[..., object]:
    """Run PaRe on a tiny Darcy problem in this process; keyword arguments go to ``xmodal.run``."""
    from xmodal import api

    def run(*overrides: str, recipe: str = "methods/pare", **options: object) -> object:
        settings: dict[str, object] = {"root": tmp_path / "runs", "report": False, **options}
        return api.run(
            recipe,
            "tasks/darcy",
            scale="smoke",
            overrides=[*TINY, *overrides] if recipe == "methods/pare" else list(overrides),
            **settings,
        )

    return run
