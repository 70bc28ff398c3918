"""``xmodal demo``: runs every recipe of the folder ``demo`` and puts them side by side."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from xmodal.cli import output
from xmodal.cli.run import AsJson


def demo(
    root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    force: Annotated[bool, typer.Option(help="Repeat runs that are already done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a pretrained vision transformer to a solved PDE, beside its baselines (minutes on a
    CPU).
    """
    from xmodal import plugins
    from xmodal.errors import XModalError
    from xmodal.recipe.compose import all_recipes

    names = [f.name for f in all_recipes(plugins.registry()) if f.name.startswith("demo/")]
    begun = time.monotonic()
    outcomes: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        output.stderr().rule(name)
        command = [sys.executable, "-m", "xmodal", "run", name, "--json", "--root", str(root)]
        # A process each: memory is that method's own, and a crash costs one row.
        done = subprocess.run(
            [*command, *(["--force"] if force else [])],
            stdout=subprocess.PIPE,
            check=False,
            text=True,
        )
        if done.returncode != 0:
            error = XModalError(f"{name} failed (exit {done.returncode}); its message is above")
            error.exit_code = done.returncode
            raise error
        outcomes.append((name.removeprefix("demo/"), json.loads(done.stdout)))
    elapsed = time.monotonic() - begun
    page = _page(root, outcomes)
    if as_json:
        output.print_json({"seconds": elapsed, "report": str(page), "runs": dict(outcomes)})
        return
    _table(outcomes)
    console = output.stdout()
    console.print(f"\n{output.seconds(elapsed)} in all.  Report: {page}", markup=False)


def _page(root: Path, outcomes: list[tuple[str, dict[str, Any]]]) -> Path:
    from xmodal.report.summary import write_summary
    from xmodal.runs import Run

    pairs = [(name, Run(Path(result["run"]))) for name, result in outcomes]
    return write_summary(pairs, root / "demo" / "report.html", "Demo")


def _table(outcomes: list[tuple[str, dict[str, Any]]]) -> None:
    ranked = sorted(outcomes, key=lambda pair: pair[1]["test"]["metric"])
    rows = [
        (
            name,
            output.number(result["test"]["metric"]),
            output.number(result["validation"]["metric"]),
            output.seconds(result["seconds"]["training"]),
            output.size(result["memory_bytes"]),
            f"{output.count(result['parameters']['trainable'])} of "
            f"{output.count(result['parameters']['total'])}",
        )
        for name, result in ranked
    ]
    metric = outcomes[0][1]["metric"]
    columns = ("method", f"test {metric}", "validation", "training", "memory", "trained")
    output.print_table(columns, rows, title=f"{outcomes[0][1]['task']}: lower is better")
