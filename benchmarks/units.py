"""What changes when inputs and labels come in other units: nothing but rounding.

    python benchmarks/units.py

For every form of samples and every kind of labels, each channel becomes a * x + b and each output
c * y + d, with another scale for each channel and output (s, 1 / s, s, ...) and a shift of 1,000
times the size of the values, of labels only where the loss is not relative. A cell is the largest
difference of the tensors that embedder and loss read, as a share of their largest number, or that
of the score of a short run on the CPU, loaded again; scores that have a unit are divided by it.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import xmodal
from xmodal.data import Store, loader
from xmodal.interfaces import Context
from xmodal_arrays.task import Arrays
from xmodal_basics import metrics

Array = NDArray[Any]
SCALES = (1e-200, 1e-13, 1e-5, 1e3, 1e13, 1e200)
METHODS = ("nft", "pare", "baseline")
LEARN = ("training.max_steps=null", "training.batch.size=16", "training.optimizer.lr=3e-3")
COUNT, SHIFT = 96, 1000.0
METRICS = {
    "error-rate": metrics.ErrorRate,
    "rmse": metrics.RootMeanSquaredError,
    "mae": metrics.MeanAbsoluteError,
    "r2-error": metrics.R2Error,
    "relative-l2": metrics.RelativeL2Error,
}
WITH_UNIT = ("rmse", "mae")


@dataclass(frozen=True)
class Case:
    """Samples of one form with labels of one kind."""

    form: str
    labels: str
    x: Array
    y: Array
    metrics: tuple[str, ...]

    def at(self, scale: float) -> tuple[Array, Array]:
        """The same samples and labels in other units."""
        x = moved(self.x, scale, SHIFT)
        if self.labels == "classes":
            return x, self.y
        return x, moved(self.y, scale, 0.0 if "field" in self.labels else SHIFT)


def cases() -> list[Case]:
    """Rows, sequences and grids with classes, numbers, several numbers, fields."""
    draw = np.random.default_rng(0)
    found = []
    for form, shape in {"row": (4,), "sequence": (2, 24), "grid": (2, 28, 28)}.items():
        x_N = draw.normal(size=(COUNT, *shape))
        first, second = x_N[:, 0], x_N[:, 1]
        if form != "row":
            first, second = (x.reshape(COUNT, -1)[:, :20].sum(axis=1) / 4 for x in (first, second))
        both = np.stack([first + second, first - 0.5 * second], axis=1)
        found += [
            Case(form, "classes", x_N, (first > 0).astype(np.int64), ("error-rate",)),
            Case(form, "one number", x_N, both[:, :1], ("rmse", "mae", "r2-error")),
            Case(form, "two numbers", x_N, both, ("r2-error",)),
        ]
        if form != "row":
            field = np.stack([x_N[:, 0] + 3, 2 * x_N[:, 1] - 5], axis=1)
            found += [
                Case(form, "field", x_N, field[:, :1], ("relative-l2", "rmse", "r2-error")),
                Case(form, "two fields", x_N, field, ("relative-l2", "r2-error")),
            ]
    return found


def moved(values: Array, scale: float, shift: float) -> Array:
    """Values ``[n, C, ...]`` in another unit for each channel, shifted by ``shift`` of it."""
    side = [1] * values.ndim
    side[1] = values.shape[1]
    unit = np.power(scale, np.where(np.arange(side[1]) % 2, -1.0, 1.0)).reshape(side)
    return values * unit + shift * unit


@dataclass(frozen=True)
class Seen:
    """What was trained on, and the scores of the trained model by method and metric."""

    tensors: tuple[torch.Tensor, torch.Tensor]
    scores: dict[tuple[str, str], float]


def look(case: Case, x: Array, y: Array, unit: float, folder: Path) -> Seen:
    """Read the tensors, train, load again, and score."""
    path = folder / "data.npz"
    kept = (
        {}
        if case.labels == "classes"
        else {"kind": "dense" if "field" in case.labels else "regression"}
    )
    np.savez(path, x=x, y=y)
    task = {"path": path, "form": case.form, "channels": "first", **kept}
    train = Arrays(Arrays.Config(**task), None).load(0).train  # type: ignore[arg-type]
    scores = {}
    for method in METHODS:
        outcome = xmodal.run(
            f"methods/{method}",
            f"arrays/{case.form}",
            overrides=[
                *(f"task.{key}={value}" for key, value in task.items()),
                *(("training.epochs=3", *LEARN) if method != "baseline" else ()),
                "device=cpu",
            ],
            scale="smoke",
            root=folder / "runs",
            force=True,
            report=False,
        )
        model = xmodal.load(outcome.run.path)
        context = Context(model.facts, torch.Generator(), Store(), output=model.facts.task.target)
        for name in case.metrics:
            metric = METRICS[name](METRICS[name].Config(), context)
            metric.update(model.outputs(x), model.labels(y))
            scores[method, name] = metric.compute() / (unit if name in WITH_UNIT else 1.0)
    x_N = loader.first(train, loader.count(train))[0]
    return Seen((x_N, loader.labels(train)), scores)


def share(one: float, other: float) -> float:
    """The difference as a share of the larger."""
    return abs(one - other) / (max(abs(one), abs(other)) or 1.0)


def apart(usual: Seen, other: Seen) -> dict[str, float]:
    """How far the tensors are apart, and the score of each metric, the largest of all methods."""
    found = {
        "tensors": max(
            float((a - b).abs().max() / a.abs().max())
            for a, b in zip(usual.tensors, other.tensors, strict=True)
        )
    }
    for (method, name), score in usual.scores.items():
        found[name] = max(found.get(name, 0.0), share(score, other.scores[method, name]))
    return found


def main() -> None:
    """Print a line for every form and metric: the largest difference at each scale."""
    torch.set_num_threads(1)
    largest: dict[tuple[str, str], dict[float, float]] = {}
    for case in cases():
        with tempfile.TemporaryDirectory() as root:
            usual = look(case, case.x, case.y, 1.0, Path(root))
            for scale in SCALES:
                for name, value in apart(
                    usual, look(case, *case.at(scale), scale, Path(root))
                ).items():
                    row = largest.setdefault((case.form, name), {})
                    row[scale] = max(row.get(scale, 0.0), value)
        print(f"{case.form}, {case.labels}: {dict(usual.scores)}", file=sys.stderr, flush=True)
    print("| samples | |", *(f"{scale:g} |" for scale in SCALES))
    print("|---|---|" + "---|" * len(SCALES))
    for (form, name), row in largest.items():
        print(f"| {form} | {name} |", *(f"{row[scale]:.0e} |" for scale in SCALES))


if __name__ == "__main__":
    main()
