"""Files in the published layout with random values, and small tasks, for the tests beside this."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np

from xmodal.data.store import Store
from xmodal_pdebench.task import PDETask

from ...any_parts import PARTS


def config(kind: type[PDETask], **settings: Any) -> Any:
    return kind.Config(**{**PARTS, **settings})


def task(kind: type[PDETask], store: Store, **settings: Any) -> PDETask:
    return kind(config(kind, **settings), SimpleNamespace(store=store))  # type: ignore[arg-type]


def of(kind: type[PDETask], samples: int) -> type[PDETask]:
    """The task as if so many samples had been published."""
    problem = replace(kind.problem, samples=samples)
    return type(kind.__name__, (kind,), {"problem": problem})


def write_file(kind: type[PDETask], folder: Path, samples: int, seed: int = 0) -> Path:
    """A file in the task's published layout, all values random."""
    layout, rng = kind.problem.layout, np.random.default_rng(seed)
    path = folder / kind.problem.file.name
    with h5py.File(path, "w") as file:
        for name, shape in layout.shapes.items():
            if layout.grouped:
                for row in range(samples):
                    file[f"{row:04d}/{name}"] = rng.normal(size=shape).astype(np.float32)
            else:
                file[name] = rng.normal(size=(samples, *shape)).astype(np.float32)
    return path
