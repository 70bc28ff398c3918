"""Every method on a few real tasks, several seeds: a table of test scores and cost.

    python benchmarks/packs.py PACKS
    python benchmarks/methods.py --tasks car crop --methods nft pare --seeds 3 [--jobs 2]

Tasks are ``benchmarks/tasks/*.yaml``; seeds are paired (same split, order and heads for every
method). A cell that was run before is read, not repeated. One thread a job; processor seconds
are those of the whole run with loading.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REFERENCE = "nft"
Cell = tuple[str, str, int]


def one(cell: Cell, root: str) -> dict[str, Any]:
    """Run one cell in this process and return its result."""
    import torch

    import xmodal

    torch.set_num_threads(1)
    method, task, seed = cell
    begun = time.process_time()
    outcome = xmodal.run(
        f"methods/{method}",
        str(HERE / "tasks" / f"{task}.yaml"),
        overrides=[f"seed={seed}"],
        root=root,
        report=False,
    )
    return {**outcome.result, "fresh": outcome.fresh, "cpu": time.process_time() - begun}


def run(cells: list[Cell], root: Path, jobs: int) -> dict[Cell, dict[str, Any]]:
    """Every cell's result, or what went wrong under ``error``; kept in ``table.json``."""
    found = known(root)
    cells = [cell for cell in cells if "test" not in found.get(cell, {})]
    # Fresh interpreters: torch does not survive a fork once it has used threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting = {pool.submit(one, cell, str(root)): cell for cell in cells}
        for number, future in enumerate(as_completed(waiting), start=1):
            cell = waiting[future]
            try:
                found[cell] = future.result()
                score = f"{found[cell]['test']['metric']:.4g}"
            except Exception as error:
                found[cell] = {"error": f"{type(error).__name__}: {error}"}
                score = found[cell]["error"]
            print(f"{number}/{len(cells)} {'/'.join(map(str, cell))}: {score}", flush=True)
            named = {"/".join(map(str, cell)): result for cell, result in found.items()}
            (root / "table.json").write_text(json.dumps(named, indent=1))
    return found


def known(root: Path) -> dict[Cell, dict[str, Any]]:
    """The cells of earlier calls, whose processor time a second run would not show."""
    root.mkdir(parents=True, exist_ok=True)
    kept = root / "table.json"
    table = json.loads(kept.read_text()) if kept.exists() else {}
    return {(m, t, int(s)): v for k, v in table.items() for m, t, s in [k.split("/")]}


def row(task: str, method: str, seeds: int, found: dict[Cell, dict[str, Any]]) -> str:
    """One line of the table: score, paired log-ratio to the reference, cost."""
    cells = [found.get((method, task, seed), {"error": "not run"}) for seed in range(seeds)]
    errors = [cell["error"] for cell in cells if "error" in cell]
    if errors:
        return f"| {method} | {errors[0].splitlines()[0][:90]} | | | | |"
    scores = [cell["test"]["metric"] for cell in cells]
    others = [found.get((REFERENCE, task, seed), {}) for seed in range(seeds)]
    ratio = ""
    if all("test" in other for other in others):
        logs = [
            math.log(max(score, 1e-6) / max(other["test"]["metric"], 1e-6))
            for score, other in zip(scores, others, strict=True)
        ]
        spread = statistics.stdev(logs) if len(logs) > 1 else math.nan
        ratio = f"{math.exp(statistics.mean(logs)):.3f} (± {spread:.3f})"
    sd = statistics.stdev(scores) if len(scores) > 1 else math.nan
    encoded = statistics.mean(cell["encoded_samples"] for cell in cells)
    seconds = statistics.mean(cell["cpu"] for cell in cells)
    trained = cells[0]["parameters"]["trainable"] / 1e6
    return (
        f"| {method} | {statistics.mean(scores):.4g} ± {sd:.2g} | {ratio} | {encoded:,.0f} | "
        f"{seconds:.0f} | {trained:.2f} |"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--root", default="runs/methods")
    given = parser.parse_args()
    cells = [
        (method, task, seed)
        for seed in range(given.seeds)
        for task in given.tasks
        for method in given.methods
    ]
    begun = time.perf_counter()
    found = run(cells, Path(given.root), given.jobs)
    for task in given.tasks:
        metric = next((c["metric"] for k, c in found.items() if k[1] == task and "metric" in c), "")
        print(f"\n## {task} ({metric}, lower is better; {given.seeds} seeds)\n")
        print(
            f"| method | test: mean ± sd | ratio to {REFERENCE}, geometric mean (sd of the log) | "
            "encoded samples | processor s | trained M |\n|---|---|---|---|---|---|"
        )
        for method in given.methods:
            print(row(task, method, given.seeds, found))
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
