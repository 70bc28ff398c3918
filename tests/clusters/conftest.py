"""Real clusters on this machine, and what the same two cells give without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xmodal.comparison.grid import Contender, Request, Suite, grid
from xmodal.comparison.queue import Queue
from xmodal.data.store import Store
from xmodal.interfaces import Launcher
from xmodal.plugins import registry
from xmodal.recipe.choice import choose
from xmodal.testing.tiny import tiny_context

SCRIPT = Path(__file__).with_name("slurm.sh")
REQUEST = Request(
    Suite(
        methods=tuple(
            Contender(use=name, set=("training.epochs=150",)) for name in ("nft", "pare")
        ),
        tasks=("openml/wdbc",),
        seeds=1,
        scale="smoke",
    )
)
PATIENCE = 240.0


def two_cells(root: Path, launcher: Launcher) -> Queue:
    """The queue of two small training runs."""
    return Queue(grid(REQUEST, registry(), Store(), root), launcher)


def numbers(queue: Queue) -> list[Any]:
    """Everything that the cells measured and that is no time."""
    found = []
    for cell in queue.cells:
        result = cell.run.read("result.json")
        lines = [
            {key: line[key] for key in ("epoch", "total_steps", "train", "validation", "best")}
            for line in cell.run.metrics()
        ]
        found.append((result["test"], lines))
    return found


def wait_for(done: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until something is true, and return it."""
    until = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < until, f"no {what}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the two cells measure on the local launcher."""
    launcher = choose("launcher", "{use: local, jobs: 2}", registry(), "here").build(tiny_context())
    queue = two_cells(tmp_path_factory.mktemp("local"), launcher)
    queue.work(lambda states: None)
    assert [state.word for state in queue.states()] == ["done", "done"]
    return numbers(queue)


@pytest.fixture(scope="module")
def slurm(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A Slurm of one node with two processors; skips where it is not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [
        name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name, path=path)
    ]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    # A path of its own: those of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with pytest.MonkeyPatch.context() as patch:
        try:
            subprocess.run([str(SCRIPT), "start", str(folder)], check=True, timeout=60)
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield folder
        finally:
            subprocess.run(["scancel", "--me"], check=False)
            subprocess.run([str(SCRIPT), "stop", str(folder)], check=True, timeout=60)
            shutil.rmtree(folder, ignore_errors=True)
