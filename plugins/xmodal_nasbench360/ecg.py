"""The task ``ecg``: rhythm of a heart from a single lead (PhysioNet/CinC 2017, NAS-Bench-360).

Records are standardised one by one and cut into windows of 1,000 steps (3.3 s). Rare classes are
cut more densely, in all splits, as published. All windows of a record are in one split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from xmodal import ready
from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.unpickle import read_pickle
from xmodal.data.windows import Counts, Records, cut
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Settings, Target, Task, TaskData, TaskFacts
from xmodal.settings import Use, default
from xmodal_nasbench360.scored import SPLITS, limited, scored_field, size, sizes

FILE = "challenge2017.pkl"
CLASSES = ("N", "A", "O", "~")
NAMES = ("normal", "atrial fibrillation", "other rhythm", "noise")
STRIDES = (500, 83, 250, 25)
"""Steps between windows of each class: 500 divided by 1, 6, 2 and 20."""
WINDOW = 1000
RECORDS = 8528
PUBLISHED = {"train": 261_000, "validation": 33_000, "test": 33_000}
"""Windows, to the thousand, as NAS-Bench-360 states them: for facts without the data."""
CARD = DataCard(
    name="ecg",
    benchmark="NAS-Bench-360",
    source="Clifford et al. 2017, https://physionet.org/content/challenge-2017; packed by "
    "NAS-Bench-360, https://github.com/rtu715/NAS-Bench-360",
    licence="ODC-By 1.0",
    size=150_000_000,
    prepared=165_000_000,
    files=(
        RemoteFile(
            FILE,
            urls=(f"https://pde-xd.s3.amazonaws.com/ECG/{FILE}",),
            by_hand="Google Drive, file 1vp41dhFqCAsEBUld8tXfzC1lRiGm27Aq",
        ),
    ),
    stand_in="ecg-subset",
)


class Ecg(Task):
    """Four classes of heart rhythm; the records are split, then cut into windows."""

    citation = "Clifford et al. 2017 (CinC challenge); Hong et al. 2019; Tu et al. 2022"

    class Config(Settings):
        """Where the records are and how they are split."""

        path: Path | None = Field(
            None, description=f"{FILE}, its folder, or a prepared folder; default: the cache."
        )
        split: Literal["orca", "nas-bench-360"] = Field(
            "orca",
            description="Which records test: ORCA's 10 % (PaRe's, too), or the last of "
            "NAS-Bench-360's 80/10/10.",
        )
        partial: bool = Field(
            False, description="Accept fewer records than published; reports say so."
        )
        scored: int | None = scored_field()
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("f1-error"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published file."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; sizes are those published while the file is missing."""
        found = ready.look(cls, config, store)
        samples = sizes(PUBLISHED, config.scored)
        if found is not None:
            records = Records.open(found.folder)
            strides_R = np.array(STRIDES)[records.label_R]
            _, _, count_R = cut(records.length_R, WINDOW, strides_R, last=False)
            parts = split_records(len(count_R), config.split)
            groups = {part: np.repeat(index, count_R[index]) for part, index in parts.items()}
            samples = {part: len(groups_W) for part, groups_W in groups.items()}
            for part in SPLITS:
                samples[part] = size(samples[part], config.scored, groups[part])
        return TaskFacts(
            name="ecg",
            shape=(1, WINDOW),
            target=Target("classification", len(CLASSES)),
            samples=samples,
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Copy the records out of the pickle, whose values are mapped."""
        path = wanted.files[FILE]
        content = read_pickle(path, mapped=True)
        try:
            data, names = content["data"], [str(name) for name in content["label"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: expected a dictionary with 'data' and 'label'") from error
        if len(data) != len(names):
            raise DataError(f"{path}: {len(data):,} records and {len(names):,} labels")
        if len(data) != RECORDS and not config.partial:
            raise DataError(
                f"{path}: {len(data):,} records, {RECORDS:,} are published\n"
                "way out: fetch the whole file, or set partial: true to use what is there"
            )
        if wrong := sorted({*names} - {*CLASSES}):
            raise DataError(f"{path}: label {wrong[0]!r}, expected one of {', '.join(CLASSES)}")
        records = (np.asarray(record) for record in data)
        kind = np.result_type(*{np.asarray(record).dtype for record in data})
        try:
            Records.write(folder, records, map(CLASSES.index, names), kind)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        return {"records": len(data)}

    def load(self, seed: int) -> TaskData:
        """Split and cut. Nothing depends on ``seed``."""
        found = ready.get(type(self), self.config, self.store)
        records = Records.open(found.folder)
        parts = {
            part: records.windows(index, WINDOW, np.array(STRIDES)[records.label_R], last=False)
            for part, index in split_records(len(records.length_R), self.config.split).items()
        }
        notes = (f"ecg: {len(records.length_R):,} records, split by record ({self.config.split})",)
        data = TaskData(
            train=parts["train"],
            validation=parts["validation"],
            test=parts["test"],
            checksum=found.checksum(),
            notes=notes,
            classes=NAMES,
            groups={part: windows.groups for part, windows in parts.items()},
        )
        return limited(data, self.config.scored, "ecg")


def split_records(count: int, how: str) -> dict[str, Counts]:
    """Which records train, validate and test.

    ``orca``: scikit-learn's ``train_test_split(test_size=0.1, random_state=0)`` tests, as released;
    a ninth of the others validates (the released code has no validation part and trains on all).
    ``nas-bench-360``: 0.2 are split off in the same way, and of these half: that half tests.
    """
    everything = np.arange(count)
    if how == "orca":
        known, test = _train_test(everything, 0.1)
        train, validation = _train_test(known, 1 / 9)
    else:
        train, rest = _train_test(everything, 0.2)
        validation, test = _train_test(rest, 0.5)
    return {"train": train, "validation": validation, "test": test}


def _train_test(index: Counts, share: float) -> tuple[Counts, Counts]:
    """What ``sklearn.model_selection.train_test_split(..., random_state=0)`` returns."""
    order = np.random.RandomState(0).permutation(len(index))
    tested = int(np.ceil(share * len(index)))
    return index[order[tested:]], index[order[:tested]]
