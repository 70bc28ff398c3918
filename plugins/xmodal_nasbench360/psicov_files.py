"""The files of the PSICOV task: where they are, and how a protein becomes an input and a label.

Formats and channels are those of PDNET (Adhikari 2020), which NAS-Bench-360 packed into
``protein.zip``. Every pickle goes through a reader that runs no code.

Shapes: L residues; S side of the canvas for all proteins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmodal.data.unpickle import read_npy, read_pickle
from xmodal.errors import DataError
from xmodal.files import contents

Array = npt.NDArray[np.float32]

CHANNELS = 57
MARGIN = 5
"""Empty pixels before a protein on its canvas and, if there is room, after it."""
PADDING = 100.0
"""Label of pixels outside the protein, in angstroms; larger than the distance of any contact."""
CLIP = 16.0
"""Largest training label in angstroms; larger ones, including padding, are clipped as published."""

ARCHIVE = "https://pde-xd.s3.amazonaws.com/protein.zip"
DRIVE = "1nBs6qJJPK8qNzsmFo3waPsGzHFHplLMo"
PROJECT = "https://github.com/ba-lab/pdnet"


@dataclass(frozen=True)
class Protein:
    """One protein's two files."""

    name: str
    features: Path
    distance: Path


def find_root(path: Path) -> Path | None:
    """The unpacked ``protein`` folder: ``path`` itself or a folder in it; None if not found."""
    for candidate in (path / "protein", path):
        if (candidate / "deepcov").is_dir() and (candidate / "psicov").is_dir():
            return candidate
    return None


def read_list(root: Path, subset: str) -> tuple[Protein, ...]:
    """The proteins of ``deepcov`` or ``psicov`` in the order of their list. Raises DataError."""
    places = (root / f"{subset}.lst", root / subset / f"{subset}.lst")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(f"neither {places[0]} nor {places[1]} exists; unzip protein.zip again")
    lines = found.read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    for name in names:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise DataError(f"{found}: '{name}' is not the name of a protein")
    folder = root / subset
    return tuple(
        Protein(name, folder / "features" / f"{name}.pkl", folder / "distance" / f"{name}-cb.npy")
        for name in names
    )


def fingerprint(proteins: Sequence[Protein]) -> str:
    """One digest of all files, in their order. Raises DataError if one is missing."""
    files = (file for protein in proteins for file in (protein.features, protein.distance))
    return contents(
        {f"{n:06d} {file.parent.name}/{file.name}": file for n, file in enumerate(files)}
    )


def _array(features: Mapping[str, Any], key: str, shape: tuple[int, ...], path: Path) -> Array:
    try:
        array = np.asarray(features[key], dtype=np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no usable '{key}' ({type(error).__name__}: {error})") from error
    if array.shape != shape:
        raise DataError(f"{path}: '{key}' has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: '{key}' has NaN or infinite values")
    return array


def read_values(path: Path) -> tuple[Array, Array]:
    """What the file says of residues ``[27, L]`` and of pairs ``[3, L, L]``. Raises DataError.

    Of a residue: 3 secondary-structure, 22 profile, 1 accessibility and 1 entropy values. Of a
    pair: CCMpred, FreeContact, contact potential.
    """
    features = read_pickle(path)
    if not isinstance(features, dict) or not isinstance(features.get("seq"), str):
        raise DataError(f"{path}: expected a dictionary of features with 'seq'")
    length = len(features["seq"])
    rows = [
        _array(features, "ss", (3, length), path),
        _array(features, "pssm", (length, 22), path).T,
        _array(features, "sa", (length,), path)[None],
        _array(features, "entropy", (length,), path)[None],
    ]
    pairs = [
        _array(features, key, (length, length), path) for key in ("ccmpred", "freecon", "potential")
    ]
    return np.concatenate(rows), np.stack(pairs)


def channels(rows: Array, pairs: Array) -> Array:
    """The 57 channels ``[57, L, L]`` of a protein.

    Each value of a residue gives two channels: constant down the columns, then along the rows.
    """
    x = np.empty((CHANNELS, *pairs.shape[1:]), np.float32)
    x[0 : 2 * len(rows) : 2] = rows[:, None, :]
    x[1 : 2 * len(rows) : 2] = rows[:, :, None]
    x[2 * len(rows) :] = pairs
    return x


def read_distances(path: Path, length: int) -> Array:
    """C-beta distances ``[L, L]`` in angstroms, at least 1. Raises DataError.

    Diagonal entries become the mean of their neighbours in the row; unknown distances become
    padding.
    """
    content = read_npy(path)
    try:
        _, _, distances = content.tolist()
        y = np.array(distances, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected (length, sequence, distances): {error}") from error
    if y.shape != (length, length) or length < 3:
        raise DataError(f"{path}: distances have shape {y.shape}, expected ({length}, {length})")
    y = np.where(np.isfinite(y), y, np.float32(PADDING))
    y = np.maximum(y, np.float32(1.0))
    inner = np.arange(1, length - 1)
    y[inner, inner] = (y[inner, inner - 1] + y[inner, inner + 1]) / 2
    y[0, 0], y[-1, -1] = y[0, 1], y[-1, -2]
    return y


def place(array: Array, side: int, fill: float) -> Array:
    """Put ``[..., L, L]`` on a canvas ``[..., side, side]`` of ``fill``, 5 pixels from its corner.

    A protein too long for the canvas and its margins is cut to its central part, so a sample
    depends only on its index. (The published code cuts at random, but no published protein is that
    long.)
    """
    room = side - 2 * MARGIN
    start = max(0, array.shape[-1] - room) // 2
    part = array[..., start : start + room, start : start + room]
    canvas = np.full((*array.shape[:-2], side, side), fill, np.float32)
    end = MARGIN + part.shape[-1]
    canvas[..., MARGIN:end, MARGIN:end] = part
    return canvas
