"""The task ``esc10``: which of ten sounds a clip is (Piczak 2015), a stand-in for ``fsd50k``.

400 clips of Freesound, as FSD50K's are, heard in pieces of a second by the same spectrograms
(``xmodal.data.sound``); but ten kinds, one for each clip. Five folds: recordings of one source are
in one fold.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from xmodal import ready
from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation
from xmodal.data.mapped import ArrayWriter
from xmodal.data.sound import BANDS, FRAMES, Changes, Clips, Pieces, centred, log_mel, packed
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Settings, Target, Task, TaskData, TaskFacts
from xmodal.settings import Use, default
from xmodal_standins.pack import Array, members, pack, read_pack, repository

KINDS = (
    "dog bark", "rain", "sea waves", "baby cry", "clock tick", "person sneeze", "helicopter",
    "chainsaw", "rooster", "fire crackling",
)  # fmt: skip
CLIPS, STEP = 400, 50
"""Pieces begin every 50 frames: half a second."""
SILENCE = -99.0
"""Clips are filled up with digital silence (-100 dB): a piece of nothing else is left out."""
PACK = pack("esc10_logmel.npz", "b57e628e62198225db043c3914932deaf103990b37c8e645eb5695f51ea35f00")
FILES = repository("karolpiczak", "ESC-10", "553c8f1743b9dba6b282e1323c3ca8fa76923448")
CARD = DataCard(
    name="esc10",
    benchmark="stand-in",
    source="Piczak 2015, https://github.com/karolpiczak/ESC-50 (ESC-10)",
    licence="CC BY 3.0 (every clip has a licence of its own)",
    size=42_000_000,
    prepared=80_000_000,
    files=(FILES, PACK),
    note="400 clips of 10 kinds, one kind each, instead of 51,197 of 200",
)


class Esc10(Task):
    """Ten kinds of sound; three folds train, one validates, one tests, scored by clip."""

    citation = "Piczak 2015 (ESC)"

    class Config(Settings):
        """Where the clips are, and which fold tests."""

        path: Path | None = Field(
            None,
            description=f"{PACK.name}, {FILES.name}, or a prepared folder; default: the cache.",
        )
        fold: int = Field(5, ge=1, le=5, description="The fold that tests; the next one validates.")
        mask: float = Field(
            0.5, ge=0, le=1, description="How often bands and frames are masked (SpecAugment)."
        )
        loss: Use[Loss] = Field(default("cross-entropy"), description="The training loss.")
        metric: Use[Metric] = Field(default("grouped-error-rate"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The repository, or the pack."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; pieces are those of fold 5 while the clips are missing."""
        found = ready.look(cls, config, store)
        samples = {"train": 240, "validation": 654, "test": 681}
        if found is not None:
            samples = {part: len(rows) for part, rows in _rows(found, config.fold).items()}
            samples["train"] = 3 * CLIPS // 5
        shape = (1, BANDS, FRAMES + 1)
        target = Target("classification", len(KINDS))
        return TaskFacts("esc10", shape, target, samples, family="sound")

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Cut the spectrograms of the pack, or of the sound files, into pieces."""
        path = wanted.files.get(PACK.name) or wanted.files[FILES.name]
        clip_N: list[int] = []
        labels, folds = [], []
        clips = _of_pack(path) if path.suffix == ".npz" else _of_files(path)
        with ArrayWriter(folder / "x.npy", (BANDS, FRAMES), np.int16) as writer:
            for number, (db_MF, kind, fold) in enumerate(clips):
                starts = range(0, db_MF.shape[1] - FRAMES + 1, STEP)
                pieces = [db_MF[:, start : start + FRAMES] for start in starts]
                heard = [piece for piece in pieces if piece.max() > SILENCE] or pieces[:1]
                if not heard:
                    raise DataError(f"{path}: clip {number} is shorter than a second")
                writer.add(packed(centred(torch.stack(heard))))
                clip_N += [number] * len(heard)
                labels.append(kind)
                folds.append(fold)
        if len(labels) != CLIPS or sorted(set(folds)) != [1, 2, 3, 4, 5]:
            raise DataError(f"{path}: {len(labels)} clips, expected {CLIPS} in 5 folds")
        for name, numbers in (("clip", clip_N), ("y", labels), ("fold", folds)):
            np.save(folder / f"{name}.npy", np.array(numbers, dtype=np.int64))
        return {"pieces": len(clip_N)}

    def load(self, seed: int) -> TaskData:
        """Split by fold. Nothing depends on ``seed``."""
        config = self.config
        found = ready.get(type(self), config, self.store)
        label_G = torch.from_numpy(np.load(found / "y.npy"))
        clip_N = np.load(found / "clip.npy")
        parts = {
            part: Pieces(found / "x.npy", clip_N, label_G, rows)
            for part, rows in _rows(found, config.fold).items()
        }
        return TaskData(
            train=Clips(parts["train"], Changes(config.mask, 0.0)),
            validation=parts["validation"],
            test=parts["test"],
            checksum=found.checksum(),
            notes=(f"esc10, a stand-in for fsd50k: fold {config.fold} tests, scored by clip",),
            classes=KINDS,
            groups={part: parts[part].groups for part in ("validation", "test")},
        )


def _rows(found: ready.Ready, tested: int) -> dict[str, Array]:
    """Pieces by part."""
    fold_N = np.load(found / "fold.npy")[np.load(found / "clip.npy")]
    validated = tested % 5 + 1
    return {
        "train": np.flatnonzero((fold_N != tested) & (fold_N != validated)),
        "validation": np.flatnonzero(fold_N == validated),
        "test": np.flatnonzero(fold_N == tested),
    }


def _of_pack(path: Path) -> Iterator[tuple[Tensor, int, int]]:
    """Spectrograms of whole clips in dB, with kind and fold."""
    arrays = read_pack(path, "logmel", "offset", "y", "fold", "scale", "zero")
    offset, scale, zero = arrays["offset"], float(arrays["scale"]), float(arrays["zero"])
    for number, (start, end) in enumerate(pairwise(offset)):
        values = arrays["logmel"][:, start:end].astype(np.float32) * scale + zero
        yield torch.from_numpy(values), int(arrays["y"][number]), int(arrays["fold"][number])


def _of_files(path: Path) -> Iterator[tuple[Tensor, int, int]]:
    """``001 - Dog bark/1-100032-A.ogg``: the folder's number is the kind's, the file's the fold's.

    Sound at 44.1 kHz is brought to 22.05 kHz.
    """
    from scipy.signal import resample_poly

    try:
        import soundfile  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise DataError(
            "reading the clips of esc10 (.ogg) needs soundfile: pip install 'xmodal[sound]'"
        ) from error
    files = members(path, lambda name: name.endswith(".ogg") and name[:3].isdigit())
    for name, read in files.items():
        try:
            sound, rate = soundfile.read(io.BytesIO(read()), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise DataError(f"{path}: {name} cannot be read ({error})") from error
        if rate != 44_100:
            raise DataError(f"{path}: {name} has {rate} Hz, expected 44,100")
        half = resample_poly(sound.mean(axis=1), 1, 2).astype(np.float32)
        fold = int(name.rsplit("/", 1)[-1].split("-")[0])
        yield log_mel(torch.from_numpy(half)[None])[0], int(name[:3]) - 1, fold
