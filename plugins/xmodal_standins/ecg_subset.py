"""The task ``ecg-subset``: heart rhythm from 300 records, a stand-in for NAS-Bench-360's ``ecg``.

They are the validation set of the PhysioNet/CinC challenge 2017, cut as the task that they stand
for. The challenge's training set holds them too: no model that saw it may be scored on them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from xmodal import ready
from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation
from xmodal.data.splits import split
from xmodal.data.windows import Counts, Records, cut
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Settings, Target, Task, TaskData, TaskFacts
from xmodal.settings import Use, default
from xmodal_standins.pack import Array, members, pack, read_pack, repository

CLASSES = ("N", "A", "O", "~")
NAMES = ("normal", "atrial fibrillation", "other rhythm", "noise")
STRIDES = (500, 83, 250, 25)
WINDOW = 1000
RECORDS = 300
PACK = pack(
    "ecg_cinc2017_validation300.npz",
    "03fe902cc051f7db1aadf919de62e58a3fb16f15dc549e6cd0daaade98dcbbb0",
)
FILES = repository("samyachour", "EKG_Analysis", "2d2f38d8c5b34dde9338031a64d6cb0f8c08c2a4")
CARD = DataCard(
    name="ecg-subset",
    benchmark="stand-in",
    source="Clifford et al. 2017, https://physionet.org/content/challenge-2017, the validation set",
    licence="ODC-By 1.0",
    files=(FILES, PACK),
    note="300 of the 8,528 records of the challenge",
)


class EcgSubset(Task):
    """Four heart rhythms in 300 records: 180 train, 60 validate, 60 test, by record."""

    citation = "Clifford et al. 2017 (CinC challenge)"

    class Config(Settings):
        """Where the records are and how they are split."""

        path: Path | None = Field(
            None,
            description=f"{PACK.name}, {FILES.name}, or a prepared folder; default: the cache.",
        )
        split: tuple[float, float, float] = Field(
            (0.6, 0.2, 0.2), description="Shares of the records to train, validate and test."
        )
        split_seed: int = Field(0, ge=0, description="Seed of the split, not that of the run.")
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("f1-error"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The repository, or the pack."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; sizes are those of the default split while the records are missing."""
        found = ready.look(cls, config, store)
        samples = {"train": 10_482, "validation": 3_960, "test": 3_708}
        if found is not None:
            records = Records.open(found.folder)
            strides_R = np.array(STRIDES)[records.label_R]
            _, _, count_R = cut(records.length_R, WINDOW, strides_R, last=False)
            parts = _split(records, config)
            samples = {part: int(count_R[index].sum()) for part, index in parts.items()}
        return TaskFacts("ecg-subset", (1, WINDOW), Target("classification", len(CLASSES)), samples)

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Write the records of the pack, or of the challenge's own files."""
        path = wanted.files.get(PACK.name) or wanted.files[FILES.name]
        found = list(_of_pack(path) if path.suffix == ".npz" else _of_files(path))
        if len(found) != RECORDS:
            raise DataError(f"{path}: {len(found)} records, expected {RECORDS}")
        if wrong := sorted({name for _, name in found} - {*CLASSES}):
            raise DataError(f"{path}: label {wrong[0]!r}, expected one of {', '.join(CLASSES)}")
        labels = [CLASSES.index(name) for _, name in found]
        Records.write(folder, (signal for signal, _ in found), labels, np.int16)
        return {"records": len(found)}

    def load(self, seed: int) -> TaskData:
        """Split by record, and cut. Nothing depends on ``seed``."""
        found = ready.get(type(self), self.config, self.store)
        records = Records.open(found.folder)
        strides_R = np.array(STRIDES)[records.label_R]
        parts = {
            part: records.windows(index, WINDOW, strides_R, last=False)
            for part, index in _split(records, self.config).items()
        }
        return TaskData(
            train=parts["train"],
            validation=parts["validation"],
            test=parts["test"],
            checksum=found.checksum(),
            notes=("ecg-subset: 300 records, a stand-in for ecg, split by record",),
            classes=NAMES,
            groups={part: windows.groups for part, windows in parts.items()},
        )


def _split(records: Records, config: Any) -> dict[str, Counts]:
    """Records by part; every part has its share of each class."""
    parts = split(len(records.label_R), config.split, config.split_seed, records.label_R)
    return dict(zip(("train", "validation", "test"), parts, strict=True))


def _of_pack(path: Path) -> Iterator[tuple[Array, str]]:
    arrays = read_pack(path, "signal", "length", "label")
    ends = np.cumsum(arrays["length"])
    for end, length, label in zip(ends, arrays["length"], arrays["label"], strict=True):
        yield arrays["signal"][end - length : end], str(label)


def _of_files(path: Path) -> Iterator[tuple[Array, str]]:
    """MATLAB files of one record each, and the table of labels, in the folder ``validation``."""
    from scipy.io import loadmat

    files = members(path, lambda name: name.startswith("validation/"))
    table = files.get("validation/REFERENCE.csv")
    if table is None:
        raise DataError(f"{path}: holds no validation/REFERENCE.csv")
    labels = dict(row[:2] for row in csv.reader(io.StringIO(table().decode())) if len(row) > 1)
    for name in sorted(labels):
        read = files.get(f"validation/{name}.mat")
        if read is None:
            raise DataError(f"{path}: holds no validation/{name}.mat")
        yield loadmat(io.BytesIO(read()))["val"][0].astype(np.int16), labels[name]
