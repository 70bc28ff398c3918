"""Brings the finished cells of several machines together in one folder.

A cell is a folder ``TASK/METHOD/seedS-HASH``. Its hash covers everything that can change its
result, so cells of one name are one experiment, wherever they ran. Cells are copied whole; the
folders they come from stay as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xmodal.engine.identity import RunIdentity
from xmodal.errors import DataError, UsageError
from xmodal.files import atomically
from xmodal.runs import Run


@dataclass
class Merged:
    """What became of the cells: ``taken``, ``known`` already, or ``left`` (and why)."""

    taken: list[Path] = field(default_factory=list)
    known: list[Path] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    differ: dict[str, str] = field(default_factory=dict)
    """Cells that are here with another score, and both scores; what is here stays."""


def merge(sources: Sequence[Path], root: Path) -> Merged:
    """Copy every finished cell below ``sources`` into ``root``, which may have others.

    ``root`` may be among them. Raises UsageError for a source that has no cells at all, and if
    there is no other folder.
    """
    merged = Merged()
    if all(root.resolve() == source.resolve() for source in sources):
        raise UsageError(f"{root} is where the cells are taken to; name folders of other machines")
    for source in sources:
        if not source.is_dir():
            raise UsageError(f"no folder '{source}'")
        if root.resolve() == source.resolve():
            continue
        cells = list(_cells(source))
        if not cells:
            raise UsageError(
                f"{source} holds no cells of comparisons (folders TASK/METHOD/seedS-HASH, such as "
                "those in runs/cells)"
            )
        for cell in cells:
            _take(cell, root / cell.relative_to(source), merged)
    return merged


def _cells(source: Path) -> Iterator[Path]:
    yield from sorted(path.parent for path in source.glob("*/*/seed*-*/manifest.json"))


def _take(cell: Path, target: Path, merged: Merged) -> None:
    run = Run(cell)
    try:
        reason = _unfit(run)
        if reason is None and target.exists():
            mine, theirs = _score(Run(target)), _score(run)
            if mine == theirs:
                merged.known.append(target)
            elif mine is None:
                reason = f"{target} is here and not done"
            else:
                merged.differ[str(cell)] = f"{theirs} there, {mine} here"
        elif reason is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomically(target, durable=False) as new:
                shutil.copytree(cell, new)
            merged.taken.append(target)
    except DataError as error:
        reason = str(error)
    if reason is not None:
        merged.left[str(cell)] = reason


def _unfit(run: Run) -> str | None:
    """Why a cell cannot be taken; None if it can."""
    if run.state != "done":
        return f"it is not done ({run.state})"
    if run.older:
        return "an earlier version of xmodal made it, with other results"
    # A cell is named before its data are read; see xmodal.comparison.grid.
    content = {**run.read("manifest.json").get("ingredients", {}), "data": ""}
    digest = RunIdentity(content, {}).hash[:10]
    if run.path.name.rpartition("-")[2] != digest:
        return f"its name does not fit its content ({digest}); it was renamed"
    return None


def _score(run: Run) -> float | None:
    if run.state != "done":
        return None
    test: float | None = run.read("result.json").get("test", {}).get("metric")
    return test
