"""What finished cells say: one row a cell, the input of every table, verdict and picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from xmodal.compare.cells import Cell


@dataclass(frozen=True)
class Row:
    """The result of one cell. ``test`` and ``validation`` are the task's metric."""

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
    fraction: float
    labelled: float
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
        fraction=float(cell.resolved["fraction"]),
        labelled=float(cell.resolved["labelled"]),
        directory=str(cell.directory),
        command=by_hand(cell),
    )


def by_hand(cell: Cell) -> str:
    """What to type to get this cell alone."""
    scale = ["--scale", cell.scale] if cell.scale else []
    parts = [*cell.references, *scale, *cell.overrides]
    return "xmodal run " + " ".join(f"'{p}'" if set(p) & set(" []{}'") else p for p in parts)
