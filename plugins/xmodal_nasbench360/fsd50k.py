"""The task ``fsd50k``: which of 200 kinds of sound a clip holds (Fonseca et al. 2020).

A clip is heard in pieces of a second, as log-mel spectrograms (``xmodal.data.sound``). Training
meets one piece of a clip in each pass; a score is that of clips, by the mean over all their pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from xmodal import randomness, ready
from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.sound import BANDS, FRAMES, Changes, Clips, Pieces
from xmodal.interfaces import Loss, Metric, Settings, Target, Task, TaskData, TaskFacts
from xmodal.settings import Use, default
from xmodal_nasbench360 import fsd50k_files as files
from xmodal_nasbench360.scored import SPLITS, limited, scored_field, size, sizes

PUBLISHED = {"train": 36_796, "validation": 4_170, "test": 10_231}
"""Clips; a split is scored by its pieces, of which there are many more."""
CARD = DataCard(
    name="fsd50k",
    benchmark="NAS-Bench-360",
    source="Fonseca et al. 2020, https://doi.org/10.5281/zenodo.4060432; cut by NAS-Bench-360, "
    "https://github.com/rtu715/NAS-Bench-360",
    licence="CC BY 4.0 (every clip has a licence of its own)",
    size=24_000_000_000,
    prepared=16_000_000_000,
    files=(
        RemoteFile(
            files.ARCHIVE,
            urls=("https://pde-xd.s3.amazonaws.com/audio/audio.zip",),
            by_hand="Google Drive, file 1IDOkm7IpFfgByDZNM6daxZaVzVJVBNid",
        ),
    ),
    stand_in="esc10",
)


def _default_loss() -> Any:
    return {"use": "bce", "pos_weight": 10.0}


class Fsd50k(Task):
    """200 kinds of sound, several in a clip; 36,796 clips train, 4,170 validate, 10,231 test."""

    citation = "Fonseca et al. 2020 (FSD50K); Tu et al. 2022 (NAS-Bench-360)"

    class Config(Settings):
        """Where the clips are, and what training meets of them."""

        path: Path | None = Field(
            None,
            description=f"{files.ARCHIVE}, its folder, or a prepared folder; default: the cache.",
        )
        piece: Literal["each-pass", "once"] = Field(
            "each-pass",
            description="each-pass: another piece of a clip, with other changes, in each pass; "
            "once: drawn once and kept, as the released ORCA and PaRe.",
        )
        mask: float = Field(
            0.5, ge=0, le=1, description="How often bands and frames are masked (SpecAugment)."
        )
        noise: float = Field(
            0.75, ge=0, le=1, description="How often background noise is mixed in."
        )
        partial: bool = Field(
            False, description="Accept fewer clips than published, and an archive without noise."
        )
        scored: int | None = scored_field()
        loss: Use[Loss] = Field(default_factory=_default_loss, description="The training loss.")
        metric: Use[Metric] = Field(
            default("grouped-average-precision-error"), description="The score."
        )

    config: Config
    sides: ClassVar[tuple[int, int, int]] = (1, BANDS, FRAMES + 1)

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published archive."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; while the archive is missing, sizes are clips, as published."""
        # Reading 24 GB is too much for this; only a partial archive may be of any size.
        at_once = config.path is not None and config.partial
        found = ready.get(cls, config, store) if at_once else ready.find(cls, config, store)
        if found is None:
            samples = sizes(PUBLISHED, config.scored)
        else:
            samples = dict(found.about["samples"])
            for part in SPLITS if config.scored else ():
                groups_N = np.load(found / f"{part}_clip.npy")
                samples[part] = size(samples[part], config.scored, groups_N)
        target = Target("multi-label", files.KINDS)
        return TaskFacts("fsd50k", cls.sides, target, samples, family="sound")

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Read the pieces out of the archive one by one; their spectrograms are kept."""
        fewest = {} if config.partial else {part: 0.9 * n for part, n in PUBLISHED.items()}
        return files.prepare(wanted.files[files.ARCHIVE], folder, fewest)

    def load(self, seed: int) -> TaskData:
        """Map the spectrograms. The split is fixed; with ``piece: once``, ``seed`` draws pieces."""
        config = self.config
        found = ready.get(type(self), config, self.store)
        pieces = {part: self._pieces(found, part) for part in PUBLISHED}
        noise = found / "noise_x.npy" if found.about["noise"] and config.noise else None
        length = np.load(found / "noise_length.npy") if noise else ()
        change = Changes(config.mask, config.noise, noise, length)
        once = randomness.derive(seed, "fsd50k") if config.piece == "once" else None
        counts = found.about
        left_out = f"; {counts['left_out']:,} pieces not of a second" if counts["left_out"] else ""
        data = TaskData(
            train=Clips(pieces["train"], change, once),
            validation=pieces["validation"],
            test=pieces["test"],
            checksum=found.checksum(),
            notes=(
                f"fsd50k: {', '.join(f'{n:,}' for n in counts['clips'].values())} clips to train, "
                f"validate and test, {counts['noise']} noises{left_out}",
            ),
            classes=tuple(counts["kinds"]),
            groups={part: pieces[part].groups for part in ("validation", "test")},
            validation_joins=False,
        )
        return limited(data, config.scored, "fsd50k")

    def _pieces(self, found: ready.Ready, part: str) -> Pieces:
        label_G: Tensor = torch.from_numpy(np.load(found / f"{part}_y.npy").astype(np.float32))
        return Pieces(found / f"{part}_x.npy", np.load(found / f"{part}_clip.npy"), label_G)
