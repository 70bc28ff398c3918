"""The task ``deepsea``: which proteins bind to DNA, and where it is open (Zhou & Troyanskaya 2015).

1,000 bases, 36 labels that are 0 or 1. A base takes one byte on disk, and becomes a column of four
numbers when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from xmodal.data.arrays import Rows, open_container
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import ArrayWriter
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Target, TaskFacts
from xmodal.settings import Use, default
from xmodal_nasbench360.parts import Array, Parts, PartsSettings, check_count

FILE = "deepsea_filtered.npz"
BASES, LABELS = 1000, 36
KEYS = {"train": "train", "validation": "val", "test": "test"}
_PIECE = 500
_BASE = np.concatenate([np.eye(4, dtype=np.float32), np.zeros((1, 4), np.float32)])
"""The column of each code; 4 is an unknown base."""


def _default_loss() -> Any:
    return {"use": "bce", "pos_weight": 4.0}


class DeepSea(Parts):
    """36 chromatin profiles of DNA; 71,753 train, 2,490 validate, 149,400 test."""

    citation = "Zhou & Troyanskaya 2015 (DeepSEA); Tu et al. 2022 (NAS-Bench-360)"
    data: ClassVar[DataCard] = DataCard(
        name="deepsea",
        benchmark="NAS-Bench-360",
        source="Zhou & Troyanskaya 2015; packed by NAS-Bench-360, "
        "https://github.com/rtu715/NAS-Bench-360",
        licence="CC BY 4.0 (NAS-Bench-360's table)",
        size=860_000_000,
        prepared=232_000_000,
        files=(
            RemoteFile(
                FILE,
                urls=(f"https://pde-xd.s3.amazonaws.com/deepsea/{FILE}",),
                by_hand="Google Drive, file 1wTCnpF91GYA043w8H14Q8riTLJNUGxGJ",
            ),
        ),
        stand_in="dna-rice",
    )
    facts: ClassVar[TaskFacts] = TaskFacts(
        "deepsea",
        (4, BASES),
        Target("multi-label", LABELS),
        {"train": 71_753, "validation": 2_490, "test": 149_400},
        family="dna",
    )

    class Config(PartsSettings):
        """Where the sequences are."""

        loss: Use[Loss] = Field(default_factory=_default_loss, description="The training loss.")
        metric: Use[Metric] = Field(default("auroc-error"), description="The score.")

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Read the arrays piece by piece out of the archive; a base becomes a code, a byte."""
        path = wanted.files[FILE]
        arrays = open_container(path)
        samples = {}
        for part, short in KEYS.items():
            x, y = (arrays.get(f"{name}_{short}", "path:") for name in "xy")
            count = x.shape[0]
            if x.shape[1:] != (BASES, 4) or y.shape != (count, LABELS):
                raise DataError(
                    f"{path}: x_{short} {x.shape} and y_{short} {y.shape}, expected "
                    f"(n, {BASES}, 4) and (n, {LABELS})"
                )
            published = cls.facts.samples[part]
            check_count(count, f"samples to {part}", published, config.partial)
            with ArrayWriter(folder / f"{part}_x.npy", (BASES,), np.uint8, count) as writer:
                for start in range(0, count, _PIECE):
                    writer.add(_codes(path, f"x_{short}", x, slice(start, start + _PIECE)))
            labels = y.read(slice(0, count))
            if not np.isin(labels, (0, 1)).all():
                raise DataError(f"{path}: y_{short} has values other than 0 and 1")
            np.save(folder / f"{part}_y.npy", labels.astype(np.uint8))
            samples[part] = count
        return {"samples": samples}

    def reader(self) -> Callable[[Array], Tensor]:
        """A column of four numbers for every base."""
        return columns


def columns(raw: Array) -> Tensor:
    """Codes ``[..., 1000]`` as ``[..., 4, 1000]`` of 0 and 1; rows in the order of the file."""
    return torch.from_numpy(np.ascontiguousarray(_BASE[raw].swapaxes(-1, -2)))


def _codes(path: Path, name: str, x: Rows, rows: slice) -> Array:
    """Which of the four values of each base is 1; 4 if none is. Raises DataError."""
    piece = x.read(rows)
    on = piece == 1
    total = on.sum(axis=2)
    if not (on | (piece == 0)).all() or (total > 1).any():
        raise DataError(f"{path}: {name} from row {rows.start} on is not one-hot")
    return np.where(total == 0, 4, on.argmax(axis=2)).astype(np.uint8)
