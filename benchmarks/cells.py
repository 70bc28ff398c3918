"""What a cell of a comparison costs to start, and how many a machine runs with one slot and two.

Prints processor seconds of a smoke cell as a new process and as a fork, taken in turn, and cells
per minute with one and two slots of one thread each, also in turn, so that the drift of a noisy
machine cancels. Beside it stands what the machine gives two processes that only count, which is 2
if two cores are free; no number of slots can do better.

    OMP_NUM_THREADS=1 python benchmarks/cells.py [--runs 5] [--cells 8] [METHOD TASK]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import psutil

from xmodal import plugins
from xmodal.comparison.grid import grid, requested
from xmodal.comparison.queue import Queue
from xmodal.data.store import Store
from xmodal.interfaces import Context, Job
from xmodal_launch.local import Local

PAUSE = 0.02


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser()
    asked.add_argument("recipe", nargs="*", default=["nft", "darcy"])
    asked.add_argument("--runs", type=int, default=5)
    asked.add_argument("--cells", type=int, default=8)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launchers = {slots: warm(slots, folder) for slots in (1, 2)}
        start_up(*given.recipe, given.runs, launchers[1], folder)
        throughput(*given.recipe, given.runs, given.cells, launchers, folder)


def warm(slots: int, folder: Path) -> Local:
    """A launcher whose server is ready."""
    launcher = Local(Local.Config(jobs=slots), Context.outside(Store()))
    work(launcher, [job(folder / f"warm{slots}", "--version")])
    return launcher


def job(folder: Path, *arguments: str) -> Job:
    """A job whose output nobody reads."""
    return Job(str(folder), (sys.executable, "-m", "xmodal", *arguments), folder / "output.txt")


def work(launcher: Local, jobs: list[Job]) -> None:
    """Run jobs to their end."""
    launcher.submit(jobs)
    while launcher.unfinished():
        time.sleep(PAUSE)


def start_up(method: str, task: str, runs: int, launcher: Local, folder: Path) -> None:
    """Processor seconds of a smoke cell, new process and fork in turn."""
    new, fork = [], []
    assert launcher._server is not None
    server = psutil.Process(launcher._server.pid)
    recipe = ("run", f"methods/{method}", f"tasks/{task}", "--scale", "smoke", "--directory")
    for number in range(2 * runs):
        place = folder / f"cell{number}"
        one = job(place.with_suffix(".job"), *recipe, str(place))
        if number % 2:
            before = spent(server)
            work(launcher, [one])
            fork.append(spent(server) - before)
        else:
            before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            environment = os.environ | launcher._environment(0)
            subprocess.run(one.command, env=environment, capture_output=True, check=True)
            new.append(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before)
    print(f"processor seconds of one cell ({method} on {task}), median of {runs}")
    print(f"  new process  {statistics.median(new):6.2f}")
    print(f"  fork         {statistics.median(fork):6.2f}")
    print(f"  the server, once {sum(server.cpu_times()[:2]):6.2f}")


def spent(server: psutil.Process) -> float:
    """Processor seconds of the forks that have ended."""
    times = server.cpu_times()
    return float(times.children_user + times.children_system)


def throughput(
    method: str, task: str, runs: int, cells: int, launchers: dict[int, Local], folder: Path
) -> None:
    """Cells per minute with one slot and two, in turn."""
    rates: dict[int, list[float]] = {slots: [] for slots in launchers}
    costs: dict[int, list[float]] = {slots: [] for slots in launchers}
    counting = []
    for number in range(runs):
        for slots, launcher in launchers.items():
            assert launcher._server is not None
            server = psutil.Process(launcher._server.pid)
            registry = plugins.registry()
            request = requested(
                registry, [method], [task], seeds=cells, scale="smoke", trivial=False
            )
            made = grid(request, registry, Store(), folder / f"{number}-{slots}")
            before, begun = spent(server), time.perf_counter()
            Queue(made, launcher).work(lambda states: None)
            rates[slots].append(60 * cells / (time.perf_counter() - begun))
            costs[slots].append((spent(server) - before) / cells)
        counting.append(2 * count(1) / count(2))
    print(f"{cells} cells in a queue, one thread each, median of {runs}")
    for slots, found in rates.items():
        print(
            f"  {slots} slot{'s' if slots > 1 else ' '} {statistics.median(found):8.1f} cells a "
            f"minute, {statistics.median(costs[slots]):.2f} processor seconds each"
        )
    ratio = statistics.median(b / a for a, b in zip(rates[1], rates[2], strict=True))
    print(f"  2 slots over 1                   {ratio:.2f}")
    print(f"  2 counting processes over 1      {statistics.median(counting):.2f}")


def count(processes: int) -> float:
    """Seconds until processes that do nothing but count have ended."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", "for i in range(30_000_000): pass"]
    started = [subprocess.Popen(command) for _ in range(processes)]
    for process in started:
        process.wait()
    return time.perf_counter() - begun


if __name__ == "__main__":
    warnings.simplefilter("ignore", ResourceWarning)
    main()
