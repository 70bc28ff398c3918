"""``xmodal demo``: runs the comparison in the suite ``demo``."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from xmodal import text
from xmodal.cli import output
from xmodal.cli.compare import ended, watched
from xmodal.cli.run import AsJson

SUITE = "demo"


def demo(
    root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    force: Annotated[bool, typer.Option(help="Repeat runs that are already done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a pretrained vision transformer to a PDE task, next to baselines (minutes on a CPU)."""
    from xmodal.cli import verdicts

    begun = time.monotonic()
    if force:
        _forget(root / "cells")
    table = watched(suite=SUITE, root=root / "cells")
    files = verdicts.write(root / SUITE, table)
    elapsed = time.monotonic() - begun
    if as_json:
        done = {row.directory for row in table.rows}
        cells = [cell for cell in table.cells if str(cell.directory) in done]
        runs = {c.method: {**c.run.read("result.json"), "run": str(c.directory)} for c in cells}
        output.print_json({"seconds": elapsed, "report": str(files[0]), "runs": runs})
    else:
        verdicts.show(table, ())
        said = f"{text.duration(elapsed)} in total.  Report: {files[0]}"
        output.stdout().print(said, markup=False)
    ended(table)


def _forget(root: Path) -> None:
    """Remove the finished runs of the demo, so that they are run again."""
    from xmodal.comparison import run

    for row in run.compare(suite=SUITE, root=root, launcher=None).rows:
        shutil.rmtree(row.directory)
