"""Step time on a CPU: the engine over a loop by hand, PaRe over NFT, and what settings cost.

    python benchmarks/step_time.py [--steps 30] [--threads 2] [--settings] [recipe overrides ...]

Two trainings take turns in one process, step by step, and the order alternates too, so that the
drift of a busy machine meets both. Medians of processor and wall-clock time are printed; where
other work runs on the machine, take the processor's, and one thread. The recipes are the demo's
(ViT-S/14 with 6 layers, 25 tokens, batches of 8), with random weights: they cost the same, and
nothing is fetched. PaRe makes two encoder passes a step. Validation falls into one step of 25.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from side_by_side import ByHand, engine_steps

from xmodal import plugins
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession

Step = Callable[[], object]
WARM_UP = 3
ENGINE_GOAL, PARE_GOAL = 1.00, 1.9
SETTINGS = (
    "training.batch={size: 8, micro: 4}",
    "training.batch={size: 8, micro: 2}",
    "precision=bf16",
    "activation_checkpointing=true",
)
COMMON = ("training.epochs=100", "backbone={pretrained: false}")


def session(recipe: str, overrides: list[str]) -> RunSession:
    """Build the session of a recipe."""
    store = Store()
    made = compose_plan([recipe], plugins.registry(), store, [*COMMON, *overrides])
    builder = Builder(made, store, lambda line: None)
    return builder.session(builder.data())


def timed(step: Callable[[], object]) -> tuple[float, float]:
    """Processor and wall-clock seconds of a step."""
    processor, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - processor, time.perf_counter() - wall


def compare(name: str, goal: float | None, a: Step, b: Step, steps: int) -> None:
    """Print what a step of ``a`` costs over one of ``b``."""
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for n in range(steps + WARM_UP):
        for first in (True, False) if n % 2 else (False, True):
            times[first].append(timed(a if first else b))
    print(name if goal is None else f"{name} (goal: at most {goal})")
    for clock, what in ((1, "wall clock"), (0, "processor")):
        one, other = ([t[clock] for t in times[first][WARM_UP:]] for first in (True, False))
        mine, others = statistics.median(one), statistics.median(other)
        pairs = statistics.quantiles((x / y for x, y in zip(one, other, strict=True)), n=4)
        end = ""
        if goal is not None:
            end = f", goal {'reached' if mine / others <= goal else 'NOT reached'}"
        print(
            f"  {what:<10} {1e3 * mine:7.1f} ms over {1e3 * others:7.1f} ms: {mine / others:.3f} "
            f"(pairs of steps: median {pairs[1]:.3f}, quartiles {pairs[0]:.3f} to {pairs[2]:.3f})"
            f"{end}",
            flush=True,
        )


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--settings", action="store_true", help="also NFT with other settings")
    parser.add_argument("overrides", nargs="*", help="recipe overrides, such as precision=bf16")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads, {given.steps} steps a side")
    nft = session("demo/nft", given.overrides)
    hand = ByHand(session("demo/nft", given.overrides)).step
    compare("engine over a loop by hand, NFT", ENGINE_GOAL, engine_steps(nft), hand, given.steps)
    both = [engine_steps(session(f"demo/{name}", given.overrides)) for name in ("pare", "nft")]
    compare("PaRe over NFT", PARE_GOAL, *both, given.steps)
    for setting in SETTINGS if given.settings else ():
        changed = session("demo/nft", [*given.overrides, setting])
        compare(f"NFT with {setting}", None, engine_steps(changed), both[1], given.steps)


if __name__ == "__main__":
    main()
