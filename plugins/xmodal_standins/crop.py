"""The task ``crop``: land cover from a year of one pixel, a stand-in for ``satellite``.

The UCR archive's "Crop" (Tan, Webb and Petitjean 2017): the same satellite, dates and classes as
NAS-Bench-360's Satellite, 22,558 series of the million.

The published files repeat series bit for bit: 114 of the 1,152 to validate equal one to train, and
2,412 of the 16,799 to test equal one to train or validate. Every series is kept in the first part
that has it and left out of the others, unless ``copies: keep``: a model that knows its training
series by heart would be selected for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset, TensorDataset

from xmodal import ready
from xmodal.data import RawForm, Store
from xmodal.data.datasets import DataCard, Preparation
from xmodal.data.unpickle import read_npy
from xmodal.errors import DataError
from xmodal.interfaces import (
    Loss,
    Metric,
    Pair,
    Settings,
    Target,
    Task,
    TaskData,
    TaskFacts,
)
from xmodal.settings import Use, default
from xmodal_standins.pack import Array, pack, raw, read_pack

STEPS, CLASSES = 46, 24
COUNTS = {"train": 4607, "validation": 1152, "test": 16_799}
COPIES = {"validation": 114, "test": 2412}
"""Series that equal one of a part before."""
_COMMIT = "e5ff77193660ffce29718807e6e603229d10b89f"
PACK = pack("ucr_crop.npz", "b7c523101b541c28a734c51ce5bd9858f1f05f73e25eee3c5c1684b9abf5201b")
FILES = {
    part: raw("femartip", "XAI_time_series", _COMMIT, f"data/Crop/Crop_{part.upper()}.npy")
    for part in COUNTS
}
CARD = DataCard(
    name="crop",
    benchmark="stand-in",
    source="Tan, Webb and Petitjean 2017, https://www.timeseriesclassification.com (Crop)",
    licence="UCR archive, none stated",
    size=8_500_000,
    files=(*FILES.values(), PACK),
    note="22,558 series of the same source as Satellite's million",
    form=2,
)


class Crop(Task):
    """24 kinds of land from series of 46 steps; 4,607 train, 1,038 validate, 14,387 test."""

    citation = "Tan, Webb and Petitjean 2017 (UCR archive)"

    class Config(Settings):
        """Where the series are, and what becomes of copies."""

        path: Path | None = Field(
            None,
            description=f"{PACK.name}, the folder of Crop_TRAIN.npy and its two neighbours, or a "
            "prepared folder; default: the cache.",
        )
        copies: Literal["drop", "keep"] = Field(
            "drop",
            description="Series that equal one of a part before: to train, then to validate.",
        )
        normalise: Literal["none", "series"] = Field(
            "none", description="none: values as they are; series: each with mean 0, deviation 1."
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("error-rate"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """Three files, or the pack."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; all files of this task are alike, so nothing is read."""
        left_out = COPIES if config.copies == "drop" else {}
        counts = {part: count - left_out.get(part, 0) for part, count in COUNTS.items()}
        return TaskFacts("crop", (1, STEPS), Target("classification", CLASSES), counts)

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Check and copy the series. Which are copies is found out here."""
        known: set[bytes] = set()
        for part, count in COUNTS.items():
            where, table = _table(part, wanted.files)
            if table.shape != (count, STEPS + 1) or table.dtype.kind != "f":
                raise DataError(
                    f"{where}: {table.dtype} {table.shape}, expected ({count}, {STEPS + 1})"
                )
            x, y = table[:, 1:].astype(np.float32), table[:, 0]
            if not np.isfinite(x).all() or not np.isin(y, np.arange(1, CLASSES + 1)).all():
                raise DataError(f"{where}: has NaN, or classes other than 1 .. {CLASSES}")
            rows = [row.tobytes() for row in x]
            copies = np.array([row in known for row in rows])
            if copies.sum() != COPIES.get(part, 0):
                raise DataError(
                    f"{where}: {copies.sum():,} copies of series before, expected "
                    f"{COPIES.get(part, 0):,}"
                )
            np.save(folder / f"{part}_copy.npy", copies)
            known |= {*rows}
            np.save(folder / f"{part}_x.npy", x)
            np.save(folder / f"{part}_y.npy", y.astype(np.int64) - 1)
        return {}

    def load(self, seed: int) -> TaskData:
        """Split as published. Nothing depends on ``seed``."""
        found = ready.get(type(self), self.config, self.store)
        sets = {part: self._part(found, part) for part in COUNTS}
        copies = (
            f"{COPIES['validation']:,} series to validate equal one to train, and "
            f"{COPIES['test']:,} to test one to train or validate"
        )
        done = "left out" if self.config.copies == "drop" else "kept"
        form = RawForm(shape=(STEPS,), laid=(1, STEPS), label_shape=())
        return TaskData(
            train=sets["train"],
            validation=sets["validation"],
            test=sets["test"],
            checksum=found.checksum(),
            notes=(f"crop, a stand-in for satellite: {copies}: {done}",),
            raw=form if self.config.normalise == "none" else None,
        )

    def _part(self, found: ready.Ready, part: str) -> Dataset[Pair]:
        x, y = (np.load(found / f"{part}_{name}.npy") for name in "xy")
        if self.config.copies == "drop":
            own = ~np.load(found / f"{part}_copy.npy")
            x, y = x[own], y[own]
        if self.config.normalise == "series":
            wide = x.astype(np.float64)
            spread = wide.std(axis=1, keepdims=True)
            spread[spread == 0] = 1
            x = ((wide - wide.mean(axis=1, keepdims=True)) / spread).astype(np.float32)
        tensors = torch.from_numpy(x)[:, None], torch.from_numpy(y)
        return cast("Dataset[Pair]", TensorDataset(*tensors))


def _table(part: str, files: Mapping[str, Path]) -> tuple[str, Array]:
    """Classes and values of a part, and where they come from."""
    if PACK.name in files:
        key = part.upper()
        return f"{files[PACK.name]}: {key}", read_pack(files[PACK.name], key)[key]
    path = files[FILES[part].name]
    return str(path), read_npy(path)
