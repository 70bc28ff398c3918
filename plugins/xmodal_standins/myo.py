"""The task ``myo``: hand gestures from the muscles of the forearm, a stand-in for ``ninapro``.

The armband of NinaPro DB5 (Myo, 8 electrodes, 200 Hz; Cote-Allard et al. 2019), other people, 7
gestures, windows of 52 steps. People are split, not windows.

Three folders of the publisher are copies: PreTraining Female7, 8 and 9 are the three sessions of
Evaluation Female0. They are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from xmodal import ready
from xmodal.data import Store
from xmodal.data.augment import Symmetry, shifted
from xmodal.data.datasets import DataCard, Preparation
from xmodal.data.splits import split
from xmodal.data.windows import Counts, Records, cut
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Pair, Settings, Target, Task, TaskData, TaskFacts
from xmodal.settings import Use, default
from xmodal_standins.pack import Array, members, pack, read_pack, repository

GESTURES = (
    "neutral", "radial deviation", "wrist flexion", "ulnar deviation", "wrist extension",
    "hand close", "hand open",
)  # fmt: skip
SUBSETS = ("PreTrainingDataset", "EvaluationDataset")
SESSIONS = ("training0", "Test0", "Test1")
COPIED = ("pre_Female7", "pre_Female8", "pre_Female9")
TESTED = (
    "pre_Female0", "pre_Female2", "pre_Male5", "pre_Male7", "eval_Male2", "eval_Male6",
    "eval_Male8", "eval_Male10",
)  # fmt: skip
"""A fixed eight of the 37 people."""
WINDOW, STRIDE, ELECTRODES = 52, 26, 8
ARMBAND = "turns of the armband by whole electrodes"
RECORDINGS = 2044
PACK = pack("myo_semg.npz", "48e010931a15c9b013c9f9812d73eae50f2752ec2586e56208fe59d1b0f439cd")
FILES = repository(
    "Giguelingueling", "MyoArmbandDataset", "62b886fc7014aeb81af65d77affedadf40de684c"
)
CARD = DataCard(
    name="myo",
    benchmark="stand-in",
    source="Cote-Allard et al. 2019, https://github.com/Giguelingueling/MyoArmbandDataset",
    licence="GPL-3.0",
    size=65_000_000,
    prepared=17_000_000,
    files=(FILES, PACK),
    note="8 electrodes and 7 gestures instead of 16 and 18; split by person",
)
_ABOUT = ("person", "repetition", "session", "subset")


class Myo(Task):
    """7 gestures of 37 people from windows of 8 electrodes, split by person."""

    citation = "Cote-Allard et al. 2019"

    class Config(Settings):
        """Where the recordings are and how they are split."""

        path: Path | None = Field(
            None,
            description=f"{PACK.name}, {FILES.name}, or a prepared folder; default: the cache.",
        )
        split: Literal["person", "session"] = Field(
            "person",
            description="person: a fixed 8 of 37 people test, 5 of the others validate; session: "
            "of the 18 people with three sessions, the first trains (its last repetition "
            "validates), the others test.",
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("error-rate"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The repository, or the pack."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; sizes are those of all recordings while they are missing."""
        found = ready.look(cls, config, store)
        samples = {"train": 47_657, "validation": 11_396, "test": 16_393}
        if config.split == "session":
            samples = {"train": 13_986, "validation": 4_662, "test": 37_296}
        if found is not None:
            _, _, count_R = cut(Records.open(found.folder).length_R, WINDOW, STRIDE)
            parts = _split(found, config.split)
            samples = {part: int(count_R[index].sum()) for part, index in parts.items()}
        target = Target("classification", len(GESTURES))
        return TaskFacts(
            "myo",
            (1, ELECTRODES, WINDOW),
            target,
            samples,
            family="series",
            symmetry=ARMBAND,
            moves=ELECTRODES,
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Write the recordings of the pack, or of the publisher's own files."""
        path = wanted.files.get(PACK.name) or wanted.files[FILES.name]
        found = list(_of_pack(path) if path.suffix == ".npz" else _of_files(path))
        order = ("subset", "person", "session", "repetition", "gesture")
        found.sort(key=lambda pair: [pair[1][key] for key in order])
        if len(found) != RECORDINGS:
            raise DataError(f"{path}: {len(found):,} recordings, expected {RECORDINGS:,}")
        try:
            Records.write(folder, (f[0] for f in found), [f[1]["gesture"] for f in found], np.int8)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        people = sorted({about["person"] for _, about in found})
        for key in _ABOUT:
            values = [about[key] for _, about in found]
            numbers = [people.index(v) for v in values] if key == "person" else values
            np.save(folder / f"{key}.npy", np.array(numbers, dtype=np.int64))
        return {"people": people}

    def load(self, seed: int) -> TaskData:
        """Split, cut, and standardise each electrode by the training recordings."""
        found = ready.get(type(self), self.config, self.store)
        records = Records.open(found.folder)
        parts = _split(found, self.config.split)
        mean, scale = _statistics(records, parts["train"])
        sets = {
            part: records.windows(index, WINDOW, STRIDE, mean=mean, scale=scale, grid=True)
            for part, index in parts.items()
        }
        person_R = torch.from_numpy(np.load(found / "person.npy"))
        people = {part: len(np.unique(person_R[index])) for part, index in parts.items()}
        return TaskData(
            train=sets["train"],
            validation=sets["validation"],
            test=sets["test"],
            checksum=found.checksum(),
            notes=(
                f"myo, a stand-in for ninapro: split by {self.config.split}; people to train, "
                f"validate and test: {', '.join(map(str, people.values()))}",
            ),
            classes=GESTURES,
            groups={part: person_R[windows.groups] for part, windows in sets.items()},
            symmetry=Symmetry(ARMBAND, ELECTRODES, Rotate(mean, scale)),
        )


class Rotate:
    """Turns the armband around the arm by whole electrodes; a gesture stays what it is.

    Each electrode is standardised by itself, so they change places in the unit of the device.
    """

    def __init__(self, mean_C: Array, scale_C: Array) -> None:
        self.mean, self.scale = (
            torch.from_numpy(v).float().view(1, -1, 1) for v in (mean_C, scale_C)
        )

    def __call__(self, x: torch.Tensor, y: torch.Tensor, element: int) -> Pair:
        """Move a window ``[1, 8, 52]``."""
        moved = shifted(x * self.scale + self.mean, element, axis=1)
        return (moved - self.mean) / self.scale, y


def _split(found: ready.Ready, how: str) -> dict[str, Counts]:
    """Recordings by part."""
    person_R, session_R, subset_R, repetition_R = (
        np.load(found / f"{key}.npy") for key in ("person", "session", "subset", "repetition")
    )
    everything = np.arange(len(person_R))
    if how == "session":
        first = (subset_R == 1) & (session_R == 0)
        last = repetition_R == repetition_R.max()
        masks = (first & ~last, first & last, (subset_R == 1) & (session_R > 0))
        return {
            part: everything[mask]
            for part, mask in zip(("train", "validation", "test"), masks, strict=True)
        }
    tested = np.array([name in TESTED for name in found.about["people"]])[person_R]
    known = everything[~tested]
    # Shares of people, each with as many votes as any other.
    people = np.unique(person_R[known])
    train, validation = split(len(people), (24, 5), 0)
    return {
        "train": known[np.isin(person_R[known], people[train])],
        "validation": known[np.isin(person_R[known], people[validation])],
        "test": everything[tested],
    }


def _statistics(records: Records, chosen_R: Counts) -> tuple[Array, Array]:
    """Mean and deviation of each electrode over some recordings."""
    signal = np.load(records.folder / "signal.npy", mmap_mode="r")
    ends_R = np.cumsum(records.length_R)
    count, total, square = 0, np.zeros(ELECTRODES), np.zeros(ELECTRODES)
    for record in chosen_R:
        values = signal[ends_R[record] - records.length_R[record] : ends_R[record]].astype(float)
        count, total = count + len(values), total + values.sum(0)
        square = square + (values**2).sum(0)
    mean = total / count
    return mean, np.sqrt(square / count - mean**2)


def _of_pack(path: Path) -> Iterator[tuple[Array, dict[str, Any]]]:
    keys = ("signal", "offset", "subject", "gesture", "repetition", "session", "subset")
    arrays = read_pack(path, *keys, "subject_name")
    signal, offset = arrays["signal"], arrays["offset"]
    if signal.shape != (offset[-1], ELECTRODES):
        raise DataError(f"{path}: signal {signal.shape}, expected ({offset[-1]}, {ELECTRODES})")
    for number, (start, end) in enumerate(pairwise(offset)):
        about = {key: int(arrays[key][number]) for key in keys[3:]}
        person = str(arrays["subject_name"][arrays["subject"][number]])
        yield signal[start:end], {**about, "person": person}


def _of_files(path: Path) -> Iterator[tuple[Array, dict[str, Any]]]:
    """``subset/person/session/classe_<number>.dat``: int16, 8 electrodes; 28 of each session."""
    files = members(path, lambda name: name.endswith(".dat") and name.split("/")[0] in SUBSETS)
    for name, read in files.items():
        parts = name.split("/")
        if len(parts) != 4 or parts[2] not in SESSIONS:
            continue
        subset = SUBSETS.index(parts[0])
        person = f"{('pre', 'eval')[subset]}_{parts[1]}"
        if person in COPIED:
            continue
        number = int("".join(filter(str.isdigit, parts[3])))
        values = np.frombuffer(read(), "<i2")
        if len(values) % ELECTRODES:
            raise DataError(f"{path}: {name} holds no whole number of steps")
        about = {
            "gesture": number % len(GESTURES),
            "repetition": number // len(GESTURES),
            "session": SESSIONS.index(parts[2]),
            "subset": subset,
            "person": person,
        }
        yield values.reshape(-1, ELECTRODES), about
