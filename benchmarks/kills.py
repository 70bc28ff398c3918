"""Kills small runs at random moments until they are done, and compares them with undisturbed ones.

Half of the kills are SIGKILL, some of them after SIGSTOP; the others are SIGTERM and SIGINT, which
must end in their exit codes. Some courses save after each step, others as runs do by themselves,
and in the last kind three runs take turns in the process. Bits must be equal to those of runs that
were alone: weights after the last step and of the best epoch, every line of the metrics, the test
score. Exits with 1 if they are not.

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

from xmodal import api, plugins, runs
from xmodal.data.store import Store
from xmodal.engine import checkpoint, saving
from xmodal.engine.plan import compose_plan
from xmodal.engine.run import Interrupted, RunOrder
from xmodal.engine.together import Work, execute_together

RUN = ("methods/pare", "tasks/darcy")
COMMON = ["task.train=12", "task.validation=4", "task.test=4", "training.max_steps=null"]
COURSES: list[tuple[list[str], int]] = [
    (["training.epochs=6", "saving.every_steps=1"], 1),
    (["training.epochs=40"], 1),
    (["training.epochs=6", "saving.every_steps=2"], 3),
]
"""Settings, and how many runs with different seeds share the process."""
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT)


def run(root: Path, settings: list[str], seeds: int, together: bool = True) -> list[runs.Run]:
    """Begin the runs, or go on with them."""
    orders = [
        (RunOrder(f"seed-{n}", root), [*COMMON, *settings, f"seed={n}"]) for n in range(seeds)
    ]
    if seeds == 1 or not together:
        return [
            api.run(*RUN, scale="smoke", overrides=more, root=root, name=o.name, report=False).run
            for o, more in orders
        ]
    known, store = plugins.registry(), Store()
    works = [Work(compose_plan([*RUN], known, store, more, "smoke"), o) for o, more in orders]
    found = []
    for result in execute_together(works, known, store):
        if isinstance(result, BaseException):
            raise result
        found.append(result.run)
    return found


def killed(root: Path, course: tuple[list[str], int], after: float) -> bool:
    """Let a process run, and kill it after so many seconds; whether it was done before."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            run(root, *course)
            code = 0
        except (Interrupted, KeyboardInterrupt) as error:
            code = getattr(error, "exit_code", 130)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    time.sleep(after)
    sent = random.choice((signal.SIGKILL, *SIGNALS))
    os.kill(child, sent)
    if sent == signal.SIGSTOP:
        time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Python may be between two handlers, where a signal ends it as it ends any program.
    if code not in (0, -signal.SIGKILL, 128 + sent, -sent):
        raise SystemExit(f"after {sent.name} the exit code is {code}")
    return code == 0


def content(done: runs.Run) -> dict[str, Any]:
    """What must be equal."""
    # A run that is killed when it is done, and sweeps, leaves others too.
    best, *_ = checkpoint.complete(done.checkpoints, checkpoint.BEST)
    timed = ("seconds", "samples_per_second", "share_of_peak")
    lines = [{k: v for k, v in line.items() if k not in timed} for line in done.metrics()]
    result = {k: done.read("result.json")[k] for k in ("test", "validation", "steps", "notes")}
    result["notes"] = [note for note in result["notes"] if not note.startswith("it took turns")]
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
        for number, (settings, seeds) in enumerate(COURSES):
            begun = time.monotonic()
            undisturbed = run(Path(folder) / f"whole-{number}", settings, seeds, together=False)
            whole.append(([content(one) for one in undisturbed], time.monotonic() - begun))
        while kills < wanted:
            number = courses % len(COURSES)
            root, (right, seconds) = Path(folder) / f"course-{courses}", whole[number]
            patience = 0.5
            while not killed(root, COURSES[number], random.uniform(0, patience * seconds)):
                kills, patience = kills + 1, min(2.0, patience * 1.15)
            found = [content(one) for one in run(root, *COURSES[number])]
            equal += all(map(same, found, right))
            courses += 1
            print(f"{kills} kills in {courses} courses, {equal} equal", file=sys.stderr, flush=True)
    print(f"{kills} kills in {courses} courses; {equal} of {courses} ended bit-equal")
    sys.exit(equal != courses)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
