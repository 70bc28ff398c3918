"""Kills a small run at random moments until it is done, and compares it with an undisturbed one.

Every other course saves after each step, the others as runs do by themselves. Bits must be equal:
weights after the last step and of the best epoch, every line of the metrics, the test score.
Exits with 1 if they are not.

    python benchmarks/kills.py [kills]
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from xmodal import api, runs
from xmodal.engine import checkpoint, saving

RUN = ("methods/pare", "tasks/darcy")
COMMON = ["task.train=12", "task.validation=4", "task.test=4", "training.max_steps=null"]
COURSES = (["training.epochs=6", "saving.every_steps=1"], ["training.epochs=40"])


def run(root: Path, settings: list[str]) -> runs.Run:
    """Begin the run, or go on with it."""
    overrides = [*COMMON, *settings]
    return api.run(*RUN, scale="smoke", overrides=overrides, root=root, report=False).run


def killed(root: Path, settings: list[str], after: float) -> bool:
    """Let a process run, and kill it after so many seconds; whether it was done before."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            run(root, settings)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a resumed run failed")
    return os.WIFEXITED(status)


def content(done: runs.Run) -> dict[str, Any]:
    """What must be equal."""
    (best,) = checkpoint.complete(done.checkpoints, checkpoint.BEST)
    timed = ("seconds", "samples_per_second", "share_of_peak")
    lines = [{k: v for k, v in line.items() if k not in timed} for line in done.metrics()]
    result = {k: done.read("result.json")[k] for k in ("test", "validation", "steps", "notes")}
    weights = {path.name: checkpoint.load(path)["model"] for path in (done.path / "final", best)}
    return {"lines": lines, "result": result, "weights": weights}


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def main(wanted: int) -> None:
    """Go through courses until there were enough kills."""
    torch.set_num_threads(1)
    saving._FILES = 0.002  # a small run would hardly save; this one shall, often
    kills, equal, courses = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = []
        for number, settings in enumerate(COURSES):
            begun = time.monotonic()
            whole.append((content(run(Path(folder) / f"whole-{number}", settings)), begun))
            whole[-1] = (whole[-1][0], time.monotonic() - begun)
        while kills < wanted:
            number = courses % len(COURSES)
            root, (right, seconds) = Path(folder) / f"course-{courses}", whole[number]
            patience = 0.5
            while not killed(root, COURSES[number], random.uniform(0, patience * seconds)):
                kills, patience = kills + 1, min(2.0, patience * 1.15)
            equal += same(content(run(root, COURSES[number])), right)
            courses += 1
    print(f"{kills} kills in {courses} courses; {equal} of {courses} ended bit-equal")
    sys.exit(equal != courses)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
