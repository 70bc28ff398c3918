"""What finished cells say: one row a cell, the input of every table, verdict and picture."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xmodal.compare.cells import Cell


@dataclass(frozen=True)
class Row:
    """The result of one cell. ``test`` and ``validation`` are the task's metric.

    ``smallest`` is the least error above 0 that the test split can show, None if there is none;
    ``learning_rate`` that of the last stage with an optimizer.
    """

    method: str
    task: str
    seed: int
    metric: str
    better: str
    test: float
    validation: float
    protocol: str
    selected_on: str
    encoded_samples: int
    seconds: float
    memory_bytes: int
    trainable: int
    scale: str
    fraction: float
    labelled: float
    smallest: float | None
    learning_rate: float | None
    directory: str
    command: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def rows(cells: Iterable[Cell]) -> list[Row]:
    """One row for every cell that is done."""
    return [_row(cell) for cell in cells if cell.directory is not None and cell.run.state == "done"]


def _row(cell: Cell) -> Row:
    result = cell.run.read("result.json")
    return Row(
        method=cell.method,
        task=cell.task,
        seed=cell.seed,
        metric=result["metric"],
        better=result["better"],
        test=float(result["test"]["metric"]),
        validation=float(result["validation"]["metric"]),
        protocol=result["protocol"],
        selected_on=result["selected_on"],
        encoded_samples=int(result["encoded_samples"]),
        seconds=float(result["seconds"]["training"]),
        memory_bytes=int(result["memory_bytes"]),
        trainable=int(result["parameters"]["trainable"]),
        scale=cell.scale or "",
        fraction=float(cell.resolved["fraction"]),
        labelled=float(cell.resolved["labelled"]),
        smallest=result["test"].get("smallest"),
        learning_rate=_learning_rate(cell.resolved),
        directory=str(cell.directory),
        command=by_hand(cell),
    )


def _learning_rate(resolved: Mapping[str, Any]) -> float | None:
    rates = [stage["optimizer"]["lr"] for stage in resolved["stages"] if "optimizer" in stage]
    return float(rates[-1]) if rates else None


def by_hand(cell: Cell) -> str:
    """What to type to get this cell alone."""
    scale = ["--scale", cell.scale] if cell.scale else []
    files = [word for file in cell.plugin_files for word in ("--plugin", file)]
    return shlex.join(["xmodal", "run", *cell.references, *scale, *files, *cell.overrides])
