"""Proteins of different lengths in flat, mapped arrays: written once, read one protein at a time.

``residues.npy`` float32 ``[R, 27]`` holds the values of all residues, ``pairs.npy`` ``[3 * P]``
three maps of every protein one after the other, ``distance.npy`` ``[P]`` its distances, and
``index.npy`` int64 ``[n, 3]`` of each protein: its length, its first residue, and its first pair.

Shapes: n proteins, R residues and P pairs of all of them, L residues of one.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from xmodal.data.mapped import ArrayWriter, MappedArray
from xmodal.data.progress import meter
from xmodal.errors import DataError
from xmodal_nasbench360 import psicov_files as files
from xmodal_nasbench360.psicov_files import Array

SUBSETS = ("deepcov", "psicov")
ROWS, MAPS = 27, 3
_LARGEST = 1 << 28
"""Bytes of one file; a protein of 1,000 residues takes 32 MB."""


class FlatProteins:
    """The proteins of a prepared folder."""

    def __init__(self, folder: Path) -> None:
        self.index_NI = np.load(folder / "index.npy", allow_pickle=False)
        self.residues, self.pairs, self.distance = (
            MappedArray(folder / f"{name}.npy") for name in ("residues", "pairs", "distance")
        )
        ends = self.index_NI[-1] if len(self.index_NI) else np.zeros(3, np.int64)
        length, residue, pair = (int(value) for value in ends)
        expected = (residue + length, MAPS * (pair + length**2), pair + length**2)
        found = tuple(len(a.array) for a in (self.residues, self.pairs, self.distance))
        if found != expected:
            raise DataError(f"{folder}: arrays of {found} rows, the index says {expected}")

    def __len__(self) -> int:
        return len(self.index_NI)

    def features(self, number: int) -> Array:
        """The 57 channels ``[57, L, L]`` of a protein."""
        length, residue, pair = (int(value) for value in self.index_NI[number])
        size = length * length
        rows = self.residues.array[residue : residue + length].T
        maps = self.pairs.array[MAPS * pair : MAPS * (pair + size)]
        return files.channels(rows, maps.reshape(MAPS, length, length))

    def distances(self, number: int) -> Array:
        """Its distances ``[L, L]``."""
        length, _, pair = (int(value) for value in self.index_NI[number])
        flat = self.distance.array[pair : pair + length * length]
        return np.array(flat.reshape(length, length))


def write(root: Path, fetch: Callable[[Path], None] | None, folder: Path) -> dict[str, int]:
    """Convert all proteins of the two lists below ``root``; returns how many each list has.

    ``fetch`` brings a file to where it is read from, and it is removed after that.
    """
    lists = {subset: files.read_list(root, subset) for subset in SUBSETS}
    proteins = [protein for subset in SUBSETS for protein in lists[subset]]
    index, residue, pair = [], 0, 0
    with (
        ArrayWriter(folder / "residues.npy", (ROWS,), np.float32) as residues,
        ArrayWriter(folder / "pairs.npy", (), np.float32) as pairs,
        ArrayWriter(folder / "distance.npy", (), np.float32) as distance,
        meter("PSICOV, proteins", len(proteins)) as count,
    ):
        for protein in proteins:
            places = (protein.features, protein.distance)
            for place in places if fetch else ():
                assert fetch is not None
                fetch(place)
            rows, maps = files.read_values(protein.features)
            length = rows.shape[1]
            residues.add(rows.T)
            pairs.add(maps.ravel())
            distance.add(files.read_distances(protein.distance, length).ravel())
            index.append((length, residue, pair))
            residue, pair = residue + length, pair + length**2
            for place in places if fetch else ():
                place.unlink()
            count(1)
    np.save(folder / "index.npy", np.array(index, dtype=np.int64).reshape(-1, 3))
    return {subset: len(lists[subset]) for subset in SUBSETS}


class ZippedProteins:
    """``protein.zip``, whose files are taken out one by one, into ``scratch``."""

    def __init__(self, archive: Path, scratch: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(archive)
        except (zipfile.BadZipFile, OSError) as error:
            raise self._damaged(archive, error) from error
        self.archive = archive
        self.root = scratch / "protein"
        self._names = {}
        for name in self._zip.namelist():
            _, mark, inner = f"/{name}".partition("/protein/")
            if mark and not name.endswith("/"):
                self._names[inner] = name
        for subset in SUBSETS:
            for place in (f"{subset}.lst", f"{subset}/{subset}.lst"):
                if place in self._names:
                    self.fetch(self.root / place)

    def __enter__(self) -> ZippedProteins:
        return self

    def __exit__(self, *raised: object) -> None:
        self._zip.close()

    def fetch(self, place: Path) -> None:
        """Take a file below ``root`` out of the archive. Raises DataError."""
        inner = place.relative_to(self.root).as_posix()
        if inner not in self._names:
            raise DataError(f"{self.archive}: holds no protein/{inner}")
        member = self._zip.getinfo(self._names[inner])
        if member.file_size > _LARGEST:
            raise DataError(f"{self.archive}: {member.filename} has {member.file_size:,} bytes")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._zip.open(member) as packed, place.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
            raise self._damaged(self.archive, error) from error

    @staticmethod
    def _damaged(archive: Path, error: Exception) -> DataError:
        return DataError(
            f"{archive}: cannot be unpacked: {error}\nway out: delete it and fetch it again"
        )
