"""The launcher `ray` against a real Ray of two nodes, which are processes of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from xmodal.errors import UsageError
from xmodal.interfaces import Job
from xmodal.testing.surroundings import check_launcher
from xmodal.testing.tiny import tiny_context
from xmodal_launch.ray import Ray

from .conftest import numbers, two_cells, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]

# Says on which node it is, and stays there until it may end.
HOLDS = """
import os, pathlib, sys, time
said = pathlib.Path(sys.argv[1])
said.with_suffix('.pid').write_text(str(os.getpid()))
said.open('a').write(os.environ['RAY_RAYLET_PID'] + '\\n')
while not said.with_suffix('.go').exists():
    time.sleep(0.1)
said.open('a').write('done\\n')
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one processor each, on the loopback address."""
    import ray
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray takes the loopback address for an address of a cluster only where this says so.
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        node["object_store_memory"] = 100 * 2**20
        nodes = Cluster()
        try:
            started(nodes, node)
            nodes.second = started(nodes, node)
            patch.setenv("RAY_ADDRESS", nodes.address)
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


def started(nodes: Any, node: dict[str, Any]) -> Any:
    """A node, after some tries: Ray gives it half a minute, which a busy machine may exceed."""
    for left in reversed(range(3)):
        try:
            return nodes.add_node(**node)
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("unreachable")


def test_contract(cluster: Any) -> None:
    check_launcher(Ray)


@pytest.mark.long
def test_two_cells_measure_what_they_do_here(
    cluster: Any, tmp_path: Path, expected: list[Any]
) -> None:
    work = two_cells(tmp_path / "cells", Ray(Ray.Config(), tiny_context()))
    together: list[bool] = []
    work.work(lambda states: together.append([s.word for s in states] == ["running"] * 2))
    assert [state.word for state in work.states()] == ["done", "done"]
    assert any(together)
    assert numbers(work) == expected


def test_settings_reach_a_node_that_was_started_without_them(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = Ray(Ray.Config(), tiny_context())
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XMODAL_FETCH", "never")
    code = "import os; print(os.environ['XMODAL_CACHE'], os.environ['XMODAL_FETCH'])"
    launcher.submit([Job("a", (sys.executable, "-c", code), tmp_path / "a.log")])
    wait_for(lambda: not launcher.unfinished(), "end")
    assert (tmp_path / "a.log").read_text().splitlines()[1:] == [f"{tmp_path / 'cache'} never"]


def test_what_no_node_can_hold_is_refused(cluster: Any) -> None:
    with pytest.raises(UsageError, match="no node of the Ray cluster has 1 processors and 1 GPUs"):
        Ray(Ray.Config(gpus=1), tiny_context())
    Ray(Ray.Config(gpus=1, wait=True), tiny_context())


def test_tasks_withdrawn_and_cells_that_a_node_does_not_see(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory of the comparison is not there: Ray's own error reaches the log."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    launcher = Ray(Ray.Config(), tiny_context())
    jobs = [hold(tmp_path, name) for name in ("a", "b")]
    lost = Job("lost", ("true",), tmp_path / "lost.log")
    launcher.submit([*jobs, lost, hold(tmp_path, "withdrawn")])
    wait_for(lambda: said(tmp_path, "a") and said(tmp_path, "b"), "start")
    for _ in range(2):
        launcher.withdraw(["a", "b", "withdrawn"])
    running = {"a": "running", "b": "running"}
    wait_for(lambda: launcher.unfinished() == {**running, "lost": "queued"}, "withdrawal")
    assert (tmp_path / "withdrawn.log").read_text() == ""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").rmdir()
    for job in jobs:
        (tmp_path / f"{job.name}.go").touch()
    wait_for(lambda: not launcher.unfinished(), "end")
    assert "must be on a file system that all nodes share" in (tmp_path / "lost.log").read_text()
    launcher.stop()  # nothing is left, which is no trouble


def hold(folder: Path, name: str) -> Job:
    command = (sys.executable, "-c", HOLDS, str(folder / f"{name}.said"))
    return Job(name, command, folder / f"{name}.log")


def said(folder: Path, name: str) -> list[str]:
    file = folder / f"{name}.said"
    return file.read_text().split() if file.exists() else []


def test_a_job_outlives_its_node(cluster: Any, tmp_path: Path) -> None:
    """Both nodes are used; the job of the one that dies ends there, and goes on elsewhere."""
    launcher = Ray(Ray.Config(), tiny_context())
    jobs = [hold(tmp_path, name) for name in ("a", "b")]
    launcher.submit([*jobs, hold(tmp_path, "waits")])
    wait_for(lambda: said(tmp_path, "a") and said(tmp_path, "b"), "start on both nodes")
    places = {name: said(tmp_path, name)[0] for name in ("a", "b")}
    assert len(set(places.values())) == 2
    wait_for(lambda: list(launcher.unfinished().values()).count("running") == 2, "two that run")
    assert launcher.unfinished()["waits"] == "queued"
    dying = str(cluster.second.all_processes["raylet"][0].process.pid)
    (hit,) = [name for name, place in places.items() if place == dying]
    (other,) = set(places) - {hit}
    cluster.remove_node(cluster.second, allow_graceful=False)
    process = int((tmp_path / f"{hit}.pid").read_text())
    wait_for(lambda: not psutil.pid_exists(process), "end of the job with its node")
    for name in (hit, other, "waits"):
        (tmp_path / f"{name}.go").touch()
    wait_for(lambda: not launcher.unfinished(), "end")
    assert said(tmp_path, hit) == [dying, places[other], "done"]
    assert said(tmp_path, other) == [places[other], "done"]
    assert said(tmp_path, "waits") == [places[other], "done"]
