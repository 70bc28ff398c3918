"""What a run spends beside its steps: evaluation over a bare forward pass, probes, and saving.

Evaluation and a bare forward pass take turns; medians of ratios are printed. The shares of saving
(with what its thread computes, and the waiting at the end) and of probes are those of whole runs,
with loading and report, at two scales; goals: 1.1, and 2 % together.

    python benchmarks/around_steps.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xmodal import api, plugins
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine import checkpoint, evaluate, loop, saving
from xmodal.engine.build import Builder
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession

CASES = (
    ("smoke", "tasks/darcy", ["task.validation=64"], 30),
    ("smoke", "tasks/openml/car", [], 30),
    ("cpu", "tasks/darcy", [], 5),
)
RUNS: tuple[tuple[str, list[str]], ...] = (
    ("smoke", []),
    ("smoke", ["training.epochs=60", "training.max_steps=20"]),
    ("cpu", ["training.epochs=3"]),
)


def session(scale: str, task: str, overrides: list[str]) -> RunSession:
    """Build the session of PaRe on a task."""
    recipes = ["methods/pare", task]
    made = compose_plan(recipes, plugins.registry(), Store(), overrides, scale)
    builder = Builder(made, Store(), lambda line: None)
    return builder.session(builder.data())


@torch.no_grad()
def bare(s: RunSession) -> None:
    """Predict the validation split, and nothing else."""
    s.model.eval()
    x, _ = loader.first(s.data.validation, loader.count(s.data.validation))
    for part in x.split(s.evaluation_batch):
        s.model.predict(part)
    s.model.train()


def timed(act: Callable[[], object]) -> float:
    """The processor seconds of a call: other processes of a busy machine do not count."""
    begun = time.process_time()
    act()
    return time.process_time() - begun


def compare(scale: str, task: str, overrides: list[str], rounds: int) -> None:
    """Evaluate and predict in turn."""
    s = session(scale, task, overrides)
    ours, theirs = partial(evaluate.evaluate, s, s.data.validation), partial(bare, s)
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds + 1)][1:]
    one, other = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{scale} {task}: evaluation {one:.1f} ms, bare {other:.1f} ms, ratio {ratio:.3f}")


def shares(scale: str, overrides: list[str]) -> None:
    """The shares of one whole run."""
    spent = {"saving": 0.0, "writing": 0.0, "probes": 0.0}

    def counted(name: str, function: Callable[..., Any], clock: Callable[[], float]) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            begun = clock()
            try:
                return function(*given, **named)
            finally:
                spent[name] += clock() - begun

        return call

    before = {n: getattr(saving.Saver, n) for n in ("save", "keep_best", "flush", "__exit__")}
    before_write, before_look = checkpoint.write, loop.look_at_tokens
    before["save_best"], before["save_final"] = saving.Saver.save_best, saving.Saver.save_final
    depth = [0]

    def outermost(function: Callable[..., Any]) -> Any:
        timer = counted("saving", function, time.perf_counter)

        def call(*given: Any, **named: Any) -> Any:
            depth[0] += 1
            try:
                return (timer if depth[0] == 1 else function)(*given, **named)
            finally:
                depth[0] -= 1

        return call

    for name, function in before.items():
        setattr(saving.Saver, name, outermost(function))
    checkpoint.write = counted("writing", before_write, time.thread_time)
    loop.look_at_tokens = counted("probes", before_look, time.thread_time)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        api.run("methods/pare", "tasks/darcy", scale=scale, overrides=overrides, root=Path(folder))
        total = time.perf_counter() - begun
    for name, function in before.items():
        setattr(saving.Saver, name, function)
    checkpoint.write, loop.look_at_tokens = before_write, before_look
    parts = ", ".join(f"{name} {value / total:.2%}" for name, value in spent.items())
    print(f"{scale} {' '.join(overrides)}: {total:.1f} s; {parts}")


def main() -> None:
    """Print everything."""
    torch.set_num_threads(1)
    for case in CASES:
        compare(*case)
    for scale, overrides in RUNS:
        shares(scale, overrides)


if __name__ == "__main__":
    main()
