"""The task ``psicov``: predict distances between residues from coevolution (NAS-Bench-360).

The published pickles are converted once into mapped arrays; a protein becomes a sample when it is
asked for, because all samples together would take 206 GB. Training uses DeepCov's proteins; testing
uses PSICOV's 150.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from xmodal import ready
from xmodal.data import RawForm, Store
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
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
from xmodal.settings import Use
from xmodal_nasbench360 import psicov_files as files
from xmodal_nasbench360.psicov_arrays import SUBSETS, FlatProteins, ZippedProteins, write

COUNTS = {"deepcov": 3456, "psicov": 150}
"""Proteins in the published lists: deepcov.lst (for training and validation) and psicov.lst."""
ARCHIVE, UNPACKED = "protein.zip", "protein"
CARD = DataCard(
    name="psicov",
    benchmark="NAS-Bench-360",
    source=f"Adhikari 2020 (PDNET, {files.PROJECT}), packed by NAS-Bench-360",
    licence="GPL (NAS-Bench-360's table)",
    size=1_100_000_000,
    prepared=2_600_000_000,
    files=(
        RemoteFile(
            ARCHIVE,
            urls=(files.ARCHIVE,),
            by_hand=f"{files.ARCHIVE}, or Google Drive, file {files.DRIVE}",
        ),
        RemoteFile(UNPACKED, aside=True),
    ),
    stand_in="proteins",
    note="whether the addresses still answer was not checked",
)

_LOSS: Any = "mse"
_METRIC: Any = "mae-lr-d8"


class Proteins(Dataset[Pair]):
    """Proteins as samples: x ``[57, S, S]``, y ``[1, S, S]`` in angstroms (padding: 100).

    ``clip`` is the largest label; larger ones, including padding, are clipped.
    """

    def __init__(
        self, flat: FlatProteins, rows: range, side: int, clip: float | None = None
    ) -> None:
        self.flat, self.rows, self.side, self.clip = flat, rows, side, clip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        number = self.rows[index]
        x = files.place(self.flat.features(number), self.side, 0.0)
        return torch.from_numpy(x), self._label(number)

    def labels(self, index_N: Tensor) -> Tensor:
        """The labels of some proteins; their features are not read."""
        return torch.stack([self._label(self.rows[int(index)]) for index in index_N])

    def _label(self, number: int) -> Tensor:
        y = files.place(self.flat.distances(number)[None], self.side, files.PADDING)
        if self.clip is not None:
            y = np.minimum(y, np.float32(self.clip))
        return torch.from_numpy(y)


class Psicov(Task):
    """Protein distance prediction (PDNET's data in NAS-Bench-360): 3356/100/150 proteins."""

    class Config(Settings):
        """Where the data are and how they are split."""

        path: Path | None = Field(
            None,
            description="protein.zip, or the folder that holds 'protein', or a prepared folder; "
            "default: the cache.",
        )
        size: int = Field(512, ge=32, description="Side of the canvas that holds each protein.")
        validation: int = Field(
            100, ge=1, description="Validation proteins, taken from the end of deepcov.lst."
        )
        partial: bool = Field(
            False, description="Accept an archive with fewer proteins than published."
        )
        loss: Use[Loss] = Field(_LOSS, description="The training loss.")
        metric: Use[Metric] = Field(_METRIC, description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """The published file."""
        return CARD

    @classmethod
    def ready(cls, config: Any, store: Store) -> bool:
        """Whether the data are in the cache, or where ``path`` says, or unpacked by hand."""
        return _unpacked(config, store) is not None or super().ready(config, store)

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; those of the published lists if the data are missing."""
        train, test = COUNTS["deepcov"], COUNTS["psicov"]
        root = _unpacked(config, store)
        at_once = root is None and config.path is not None and config.partial
        found = ready.get(cls, config, store) if at_once else ready.find(cls, config, store)
        if found is not None:
            train, test = int(found.about["deepcov"]), int(found.about["psicov"])
        elif root is not None:
            train, test = (len(files.read_list(root, subset)) for subset in SUBSETS)
        if train <= config.validation:
            raise DataError(
                f"validation takes {config.validation} of {train} proteins and leaves none to "
                "train on"
            )
        return TaskFacts(
            name="psicov",
            family="protein",
            shape=(files.CHANNELS, config.size, config.size),
            target=Target("dense", 1, (config.size, config.size)),
            samples={
                "train": train - config.validation,
                "validation": config.validation,
                "test": test,
            },
        )

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """The files of all proteins, wherever they lie."""
        root = _unpacked(config, store)
        if root is None:
            return super().contents(config, store)
        return {"path": _fingerprint(root)}

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Convert one protein after the other. Unpacked folders may hold fewer than published."""
        if UNPACKED in wanted.files:
            return write(wanted.files[UNPACKED], None, folder)
        with ZippedProteins(wanted.files[ARCHIVE], wanted.scratch) as archive:
            counts = {s: len(files.read_list(archive.root, s)) for s in SUBSETS}
            if counts != COUNTS and not config.partial:
                raise DataError(
                    f"{ARCHIVE} lists {counts['deepcov']:,} and {counts['psicov']:,} proteins, "
                    f"{COUNTS['deepcov']:,} and {COUNTS['psicov']:,} are published\nway out: fetch "
                    "the whole file, or set partial: true to use what is there (reports say so)"
                )
            return write(archive.root, archive.fetch, folder)

    def load(self, seed: int) -> TaskData:
        """Open the arrays; a sample is read only on demand. The split is fixed."""
        config, root = self.config, _unpacked(self.config, self.store)
        raw = None if root is None else ({UNPACKED: root}, _fingerprint(root))
        found = ready.get(type(self), config, self.store, raw=raw)
        known, test = (int(found.about[subset]) for subset in SUBSETS)
        if known <= config.validation or not test:
            raise DataError(
                f"{found.folder}: too few proteins ({known} in deepcov, {test} in psicov)"
            )
        flat, side = FlatProteins(found.folder), config.size
        end = known - config.validation
        shape = (files.CHANNELS, side, side)
        note = f"psicov: NOT the whole benchmark, but {known:,} and {test:,} proteins"
        return TaskData(
            train=Proteins(flat, range(end), side, files.CLIP),
            validation=Proteins(flat, range(end, known), side),
            test=Proteins(flat, range(known, known + test), side),
            checksum=found.checksum(),
            notes=() if (known, test) == tuple(COUNTS.values()) else (note,),
            images={"CCMpred": 54},
            raw=RawForm(shape=shape, laid=shape, label_shape=(1, *shape[1:])),
        )


def _unpacked(config: Any, store: Store) -> Path | None:
    """The unpacked ``protein`` folder that ``path`` names, or that lies in the cache by hand."""
    folder = store.root / "datasets" / CARD.name if config.path is None else Path(config.path)
    return files.find_root(folder.expanduser())


def _fingerprint(root: Path) -> str:
    """One digest of all files of all proteins."""
    return files.fingerprint([p for subset in SUBSETS for p in files.read_list(root, subset)])
