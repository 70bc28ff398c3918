"""The tasks ``dna-rice`` and ``dna-dhs``: labels of DNA, stand-ins for ``deepsea``.

Both are of the size of a fixture: 181 windows of rice of 1,024 bases with 58 kinds of binding, and
250 open sites of man of 200 bases with 733 kinds of cells. Labels that do not vary among the
sequences that are not tested are left out.

Which sequences test is given with the pack: of rice, windows that share 32 bases in a row are on
one side (its publisher's own files train and test on the same loci); of man, chromosomes 1, 8, 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from xmodal import ready
from xmodal.data import Store
from xmodal.data.augment import Symmetry
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import Mapped
from xmodal.data.splits import split
from xmodal.errors import DataError
from xmodal.interfaces import Loss, Metric, Pair, Settings, Target, Task, TaskData, TaskFacts
from xmodal.settings import Use, default
from xmodal_standins.pack import Array, read_pack

BASES = b"ACGT"
STRANDS = "the reverse complement"
PACK = RemoteFile(
    "dna_rice_dhs.npz",
    sha256="05b4fd7c8fe38111293db93f0dccee56e3a28e9a2e5fbdabeb307ab814c6148a",
    by_hand="a pack of the files in github.com/njuxka2333/DanQPlant (Original_data, at 17535af6) "
    "and github.com/pinellolab/DNA-Diffusion (tests/test_data/preprocessing, at fdc76071); its "
    "arrays are described in docs/tasks/standins.md",
)


def _default_loss() -> Any:
    return {"use": "bce", "pos_weight": 4.0}


class _Dna(Task):
    """Sequences with labels of 0 and 1; a subclass says which."""

    name: ClassVar[str]
    prefix: ClassVar[str]
    grouped: ClassVar[str]
    """What the pack calls the sequences that belong together."""
    length: ClassVar[int]
    labels: ClassVar[int]
    samples: ClassVar[Mapping[str, int]]
    data: ClassVar[DataCard]

    class Config(Settings):
        """Where the sequences are."""

        path: Path | None = Field(
            None,
            description="The pack, the published file, or a prepared folder; default: the cache.",
        )
        loss: Use[Loss] = Field(default_factory=_default_loss, description="The training loss.")
        metric: Use[Metric] = Field(default("auroc-error"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """Where the sequences come from."""
        return cls.data

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts, which are the same for every copy of the data."""
        shape, target = (4, cls.length), Target("multi-label", cls.labels)
        return TaskFacts(
            cls.name, shape, target, dict(cls.samples), family="dna", symmetry=STRANDS, moves=2
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Check and copy the sequences as codes, and the labels that vary."""
        where = wanted.files[PACK.name]
        keys = [f"{cls.prefix}_{key}" for key in ("seq", "y", "test", cls.grouped)]
        arrays = read_pack(where, *keys)
        text, y, test, together = (arrays[key] for key in keys)
        group = np.unique(together, return_inverse=True)[1]
        code = np.full(256, 255, np.uint8)
        code[list(BASES)] = np.arange(4)
        x = code[text]
        if x.ndim != 2 or x.shape[1] != cls.length or (x == 255).any():
            raise DataError(f"{where}: {text.shape}, expected {cls.length} of the bases A, C, G, T")
        if not np.isin(y, (0, 1)).all() or len(y) != len(x):
            raise DataError(f"{where}: labels are not 0 and 1, one row a sequence")
        known = np.flatnonzero(~test)
        varies = y[known].min(0) != y[known].max(0)
        train, validation = split(len(known), (0.8, 0.2), 0, groups_N=group[known])
        parts = {
            "train": known[train],
            "validation": known[validation],
            "test": np.flatnonzero(test),
        }
        sizes = {part: len(rows) for part, rows in parts.items()}
        if sizes != dict(cls.samples) or varies.sum() != cls.labels:
            raise DataError(
                f"{where}: {sizes} sequences and {varies.sum()} labels that vary, not all"
            )
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y[:, varies].astype(np.uint8).reshape(len(x), -1))
        np.save(folder / "group.npy", group.astype(np.int64))
        for part, rows in parts.items():
            np.save(folder / f"{part}.npy", rows)
        return {}

    def load(self, seed: int) -> TaskData:
        """Nothing depends on ``seed``."""
        found = ready.get(type(self), self.config, self.store)
        group = torch.from_numpy(np.load(found / "group.npy"))
        rows = {part: np.load(found / f"{part}.npy") for part in self.samples}
        sets = {
            part: Mapped(found / "x.npy", found / "y.npy", index, columns)
            for part, index in rows.items()
        }
        return TaskData(
            train=sets["train"],
            validation=sets["validation"],
            test=sets["test"],
            checksum=found.checksum(),
            notes=(f"{self.name}, a stand-in for deepsea: too small for a result",),
            groups={part: group[index] for part, index in rows.items()},
            symmetry=Symmetry(STRANDS, 2, reverse_complement),
        )


def reverse_complement(x: torch.Tensor, y: torch.Tensor, element: int) -> Pair:
    """The other strand, read in its own direction: A and T, C and G change places, backwards.

    Labels say what binds to both strands together.
    """
    return (x.flip(0, 1) if element else x), y


def columns(code: Array) -> torch.Tensor:
    """Codes ``[L]`` as ``[4, L]`` of 0 and 1: A, C, G, T."""
    return torch.from_numpy(np.ascontiguousarray(np.eye(4, dtype=np.float32)[code].T))


class DnaRice(_Dna):
    """181 windows of rice of 1,024 bases, 49 labels; 106 train, 27 validate, 48 test."""

    citation = "Fu et al. 2022 (ChIP-Hub)"
    name = "dna-rice"
    prefix, grouped, length, labels = "rice", "locus", 1024, 49
    samples: ClassVar[Mapping[str, int]] = {"train": 106, "validation": 27, "test": 48}
    data: ClassVar[DataCard] = DataCard(
        name="dna-rice",
        benchmark="stand-in",
        source="ChIP-Hub through https://github.com/njuxka2333/DanQPlant",
        licence="none stated",
        size=73_000,
        files=(PACK,),
        note="a fixture: 181 sequences",
    )


class DnaDhs(_Dna):
    """250 open sites of man of 200 bases, 703 labels; 176 train, 44 validate, 30 test."""

    citation = "Meuleman et al. 2020"
    name = "dna-dhs"
    prefix, grouped, length, labels = "dhs", "chrom", 200, 703
    samples: ClassVar[Mapping[str, int]] = {"train": 176, "validation": 44, "test": 30}
    data: ClassVar[DataCard] = DataCard(
        name="dna-dhs",
        benchmark="stand-in",
        source="Meuleman et al. 2020 through https://github.com/pinellolab/DNA-Diffusion",
        licence="ENCODE; the repository: Apache-2.0, for academic use",
        size=500_000,
        files=(PACK,),
        note="a fixture: 250 sequences",
    )
