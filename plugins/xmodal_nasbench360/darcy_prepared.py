"""The data set ``darcy`` in the cache: thinned from the published files, or generated once.

``{train,test}_{a,u}.npy`` are float32 ``[n, 85, 85]``: NAS-Bench-360 keeps every 5th of 421 points.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.errors import DataError, UsageError
from xmodal_nasbench360.darcy_data import (
    GENERATOR,
    PUBLISHED_GRID,
    TEST_FILE,
    TEST_STREAM,
    TRAIN_FILE,
    TRAIN_STREAM,
    Fields,
    generate,
    thinned,
)
from xmodal_nasbench360.darcy_samples import HIGH, LOW, Grid

SIDE = 85
"""Points per side that are kept."""
PUBLISHED = 1024
"""Samples of each published file; NAS-Bench-360 uses the first 1000 and the first 100."""
FITTING, TEST = 1000, 100
TORSION = 0.07367
"""The largest u for a = 1 throughout; so u reaches between a 12th and a 3rd of it."""

_DRIVE = "1.6 GB, Google Drive of NAS-Bench-360, file"
CARD = DataCard(
    name="darcy",
    benchmark="NAS-Bench-360",
    source="Li et al. 2021, Fourier Neural Operator; split by Tu et al. 2022, NAS-Bench-360",
    licence="published files: MIT (NAS-Bench-360's table); generated data: yours",
    size=3_200_000_000,
    prepared=120_000_000,
    files=(
        RemoteFile(TRAIN_FILE, by_hand=f"{_DRIVE} 17anR-H_C7It5sytoNFOk7YmOeeCX11F6"),
        RemoteFile(TEST_FILE, by_hand=f"{_DRIVE} 1v0nJs7GMnT2JYfhPuKBm7KyXRSBxMEFW"),
    ),
    generable=True,
    note="recipes generate what they need; task.prepared=true reads this data set",
)


def prepare(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
    """Fill ``folder`` from the published files, or with generated samples.

    Raises DataError, and UsageError for samples or a resolution that cannot be made.
    """
    parts, about = _generated(wanted) if wanted.generate else _published(wanted.files)
    for split, arrays in parts.items():
        for name, array in zip("au", arrays, strict=True):
            np.save(folder / f"{split}_{name}.npy", array)
        about[split] = len(arrays[0])
    return about


Parts = dict[str, tuple[Fields, Fields]]


def _published(files: Mapping[str, Path]) -> tuple[Parts, dict[str, Any]]:
    parts = {}
    for split, name in (("train", TRAIN_FILE), ("test", TEST_FILE)):
        arrays = thinned(files[name], SIDE, PUBLISHED)
        values = np.unique(arrays["a"])
        if not np.array_equal(values, [LOW, HIGH]):
            found = ", ".join(f"{value:g}" for value in values[:4])
            raise DataError(
                f"{files[name]}: 'coeff' holds {found}; published are {LOW:g} and {HIGH:g}"
            )
        largest = float(arrays["u"].max())
        if not TORSION / HIGH < largest < TORSION / LOW:
            raise DataError(f"{files[name]}: 'sol' reaches {largest:g}, which no solution does")
        parts[split] = arrays["a"], arrays["u"]
    return parts, {"made": "published"}


def _generated(wanted: Preparation) -> tuple[Parts, dict[str, Any]]:
    side, steps = wanted.resolution or PUBLISHED_GRID, SIDE - 1
    if (side - 1) % steps or side < SIDE:
        nearest = max(1, round((side - 1) / steps)) * steps + 1
        raise UsageError(
            f"--resolution {side}: the solver's grid must contain the {SIDE} points per side that "
            f"are kept; try {nearest}"
        )
    total = FITTING + TEST if wanted.samples is None else wanted.samples
    test = max(1, round(total * TEST / (FITTING + TEST)))
    if total - test < 3:
        raise UsageError(f"--samples {total}: at least 4 are needed")
    grid, scratch, parts = Grid(SIDE, side, "published"), Store(wanted.scratch), {}
    for split, stream, samples in (
        ("train", TRAIN_STREAM, total - test),
        ("test", TEST_STREAM, test),
    ):
        title = f"Darcy flow, {split} samples"
        parts[split] = generate(scratch, grid, 0, stream, samples, title, wanted.jobs)
    return parts, {"made": "generated", "resolution": side, "solver": GENERATOR}


def read(folder: Path, split: str, resolution: int, samples: int) -> tuple[Fields, Fields]:
    """The first ``samples`` of a split, thinned to ``resolution``. Raises DataError, UsageError."""
    stride, rest = divmod(SIDE - 1, resolution - 1)
    if rest:
        raise UsageError(
            f"task.resolution={resolution}: {SIDE} points per side cannot be thinned to it; "
            "85, 43, 29 and 22 can"
        )
    found = []
    for name in "au":
        array = np.load(folder / f"{split}_{name}.npy", mmap_mode="r", allow_pickle=False)
        if len(array) < samples:
            raise DataError(
                f"{folder} has {len(array)} samples of '{split}', the recipe asks for {samples}; "
                "set task.train, task.validation and task.test, or make a larger data set"
            )
        found.append(np.ascontiguousarray(array[:samples, ::stride, ::stride]))
    return found[0], found[1]
