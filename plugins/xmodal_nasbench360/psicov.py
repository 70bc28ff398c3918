"""The task ``psicov``: predict distances between residues from coevolution (NAS-Bench-360).

Proteins are read one by one from the user's copy of the data, because all inputs together would
take 206 GB. Training uses DeepCov's proteins; testing uses PSICOV's 150.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset

from xmodal.data import RawForm, Store
from xmodal.errors import DataError
from xmodal.interfaces import (
    Context,
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

TRAIN, TEST = 3456, 150
"""Proteins in the published lists deepcov.lst (for training and validation) and psicov.lst."""

_LOSS: Any = "mse"
_METRIC: Any = "mae-lr-d8"


class Proteins(Dataset[Pair]):
    """Reads proteins on demand: x ``[57, S, S]``, y ``[1, S, S]`` in angstroms (padding: 100).

    ``clip`` is the largest label; larger ones, including padding, are clipped.
    """

    def __init__(
        self, proteins: Sequence[files.Protein], side: int, clip: float | None = None
    ) -> None:
        self.proteins = tuple(proteins)
        self.side = side
        self.clip = clip

    def __len__(self) -> int:
        return len(self.proteins)

    def __getitem__(self, index: int) -> Pair:
        protein = self.proteins[index]
        features = files.read_features(protein.features)
        distances = files.read_distances(protein.distance, features.shape[-1])
        x = files.place(features, self.side, 0.0)
        y = files.place(distances[None], self.side, files.PADDING)
        if self.clip is not None:
            y = np.minimum(y, np.float32(self.clip))
        return torch.from_numpy(x), torch.from_numpy(y)


class Psicov(Task):
    """Protein distance prediction (PDNET's data in NAS-Bench-360): 3356/100/150 proteins."""

    class Config(Settings):
        """Where the data are and how they are split."""

        path: Path | None = Field(
            None, description="Folder that holds 'protein'; default: the cache's datasets/psicov."
        )
        size: int = Field(512, ge=32, description="Side of the canvas that holds each protein.")
        validation: int = Field(
            100, ge=1, description="Validation proteins, taken from the end of deepcov.lst."
        )
        loss: Use[Loss] = Field(_LOSS, description="The training loss.")
        metric: Use[Metric] = Field(_METRIC, description="The score.")

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.store = context.store

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; those of the published lists if the data are missing."""
        root = files.find_root(_folder(config, store))
        train, test = TRAIN, TEST
        if root is not None:
            train = len(files.read_list(root, "deepcov"))
            test = len(files.read_list(root, "psicov"))
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
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """How to get the data, if they are missing."""
        folder = _folder(config, store)
        return () if files.find_root(folder) else (files.how_to_fetch(folder),)

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """The files of all proteins, wherever they lie."""
        root = files.find_root(_folder(config, store))
        if root is None:
            return {}
        proteins = [*files.read_list(root, "deepcov"), *files.read_list(root, "psicov")]
        return {"path": files.fingerprint(proteins)}

    def load(self, seed: int) -> TaskData:
        """Find the files; a sample is read only on demand. The split is fixed."""
        config = self.config
        folder = _folder(config, self.store)
        root = files.find_root(folder)
        if root is None:
            raise DataError(files.how_to_fetch(folder))
        known, test = files.read_list(root, "deepcov"), files.read_list(root, "psicov")
        if len(known) <= config.validation or not test:
            raise DataError(
                f"{root}: too few proteins ({len(known)} in deepcov, {len(test)} in psicov)"
            )
        shape = (files.CHANNELS, config.size, config.size)
        train, validation = known[: -config.validation], known[-config.validation :]
        return TaskData(
            train=Proteins(train, config.size, files.CLIP),
            validation=Proteins(validation, config.size),
            test=Proteins(test, config.size),
            checksum=files.fingerprint([*known, *test]),
            images={"CCMpred": 54},
            raw=RawForm(shape=shape, laid=shape, label_shape=(1, *shape[1:])),
        )


def _folder(config: Any, store: Store) -> Path:
    if config.path is not None:
        return Path(config.path)
    return store.root / "datasets" / "psicov"
