"""The files of the Cosmic task: which images it takes, and how they become arrays.

deepCR's data of HST ACS/WFC (Zhang & Bloom 2020) come as two tar files, or unpacked:
``npy_{train,test}/FILTER/PROPOSAL/VISIT/N_*.npy``, each float ``[3, 256, 256]`` (image in
electrons, mask of cosmic rays, mask of pixels to ignore; the last may be missing), and ``sky.npy``
in each visit: the brightness of the sky in each of its exposures N = 1, 2, ...
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from xmodal.data.mapped import Array
from xmodal.data.unpickle import read_npy
from xmodal.errors import DataError
from xmodal.text import shortlist

SIDE = 256
CROP = slice(64, 192)
"""The part of each image that the published code takes, along both axes."""
_LARGEST = 1 << 24
"""Bytes of an array; larger ones are none of these."""

FIELDS: Mapping[str, str] = {
    "GAL": "10760/2 10760/4 13737/2 13737/3 9490/a3 12513/2 12513/3 10182/pb 10182/pd 10584/13 "
    "10342/3 14343/1 13057/1 10260/7 10260/5 10407/3 13364/95 10190/28 10190/13 9490/a2 13691/11 "
    "12058/12 12058/16 12058/1 12058/6 14704/1 13804/6",
    "EX": "10631/3 10631/1 10631/4 12103/a3 13498/b1 14164/9 13718/6 9425/2 9425/4 9583/99 9978/5e "
    "15100/2 15647/13 13389/10 9694/6 10536/13 13375/4 13375/7 12438/1 13671/35 9405/6d 9405/4b "
    "9450/14 10092/1 9450/16",
    "GC": "10595/2 10595/7 9442/1 9442/3 9442/5 10349/30 10120/3 10005/10 10524/7 11340/11 10146/4 "
    "10146/3 10775/ab 11586/5 14164/1 10775/52 12602/1 12602/2 10775/29 10775/ad",
}
"""What each visit (proposal/visit) shows: galaxies, extragalactic fields, globular clusters.

The table of NAS-Bench-360's preprocessing, from deepCR (Zhang & Bloom 2020)."""

VISITS = {visit: kind for kind, visits in FIELDS.items() for visit in visits.split()}


@dataclass(frozen=True, order=True)
class Image:
    """Where an image is: its visit and file; ``name`` is its path below ``npy_train``."""

    visit: str
    exposure: int
    file: str
    name: str = field(compare=False)

    @property
    def sky(self) -> str:
        """The file of the visit's sky, beside the image."""
        return str(PurePosixPath(self.name).with_name("sky.npy"))


class Tree:
    """The arrays of one split by their path below ``npy_train`` or ``npy_test``."""

    def __init__(self, source: Path, part: str) -> None:
        self.source, self._folder = source, f"npy_{part}"
        self._tar: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo | Path] = {}
        if source.is_dir():
            for path in source.rglob("*.npy"):
                self._keep(path.relative_to(source).as_posix(), path, source.name)
            return
        try:
            self._tar = tarfile.TarFile(source)
            for member in self._tar:
                if member.isfile():
                    self._keep(member.name, member, "")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(
                f"{source}: not a tar file that can be read ({error})\n"
                "way out: delete it and fetch it again"
            ) from error

    def _keep(self, name: str, member: tarfile.TarInfo | Path, root: str) -> None:
        parts = (root, *PurePosixPath(name).parts)
        if self._folder in parts and name.endswith(".npy"):
            inner = parts[len(parts) - parts[::-1].index(self._folder) :]
            self._members["/".join(inner)] = member

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._tar is not None:
            self._tar.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def read(self, name: str) -> Array:
        """One array. Raises DataError."""
        member, place = self._members[name], f"{self.source}: {name}"
        size = member.stat().st_size if isinstance(member, Path) else member.size
        if size > _LARGEST:
            raise DataError(f"{place} has {size:,} bytes, more than an image of this data set")
        try:
            if isinstance(member, Path):
                return np.load(member, allow_pickle=False)  # type: ignore[no-any-return]
            assert self._tar is not None
            stream = self._tar.extractfile(member)
            assert stream is not None
            return np.load(io.BytesIO(stream.read()), allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            raise DataError(f"{place}: not an array that can be read ({error})") from error


def select(tree: Tree, camera_filter: str, fields: Sequence[str]) -> list[Image]:
    """The images of one filter and these kinds of fields, by visit and exposure. Raises DataError.

    A visit that the published table does not know has no kind; with all kinds wanted, it is taken.
    """
    images, unknown = [], set()
    for name in tree:
        found = re.fullmatch(r"([^/]+)/([^/]+)/([^/]+)/((\d+)_[^/]*\.npy)", name)
        if found is None or found[1] != camera_filter:
            continue
        visit = f"{found[2]}/{found[3]}"
        if visit not in VISITS and set(fields) != set(FIELDS):
            unknown.add(visit)
        elif VISITS.get(visit, fields[0]) in fields:
            images.append(Image(visit, int(found[5]), found[4], name))
    if unknown:
        raise DataError(
            f"{tree.source}: nobody says what these visits show: {shortlist(sorted(unknown))}\n"
            f"way out: fields: [{', '.join(FIELDS)}] takes all visits"
        )
    if not images:
        raise DataError(
            f"{tree.source}: no image of filter {camera_filter} and fields {', '.join(fields)}"
        )
    return sorted(images)


def listed(tree: Tree, file: Path, part: str) -> list[Image]:
    """The images that a published list of paths (``train_dirs.npy``) names, in its order."""
    images = []
    for entry in np.atleast_1d(read_npy(file)).tolist():
        _, _, name = str(entry).partition(f"npy_{part}/")
        parts = name.split("/")
        if name not in tree or len(parts) != 4 or not parts[3].split("_")[0].isdigit():
            raise DataError(f"{file} names '{entry}', which is not in {tree.source}")
        images.append(Image(f"{parts[1]}/{parts[2]}", int(parts[3].split("_")[0]), parts[3], name))
    if not images:
        raise DataError(f"{file}: names no image")
    return images


def read_image(tree: Tree, image: Image) -> tuple[NDArray[np.float32], Array, Array, int]:
    """The middle of an image, float32 ``[128, 128]``, its masks, uint8, and how much is not finite.

    Pixels that are not finite become 0 and are ignored. Raises DataError.
    """
    raw = tree.read(image.name)
    place = f"{tree.source}: {image.name}"
    if raw.dtype.kind not in "fiu" or raw.shape not in ((2, SIDE, SIDE), (3, SIDE, SIDE)):
        raise DataError(f"{place}: {raw.dtype} of shape {raw.shape}, expected (3, {SIDE}, {SIDE})")
    pixels = raw[0, CROP, CROP].astype(np.float32)
    mask = raw[1, CROP, CROP]
    ignore = raw[2, CROP, CROP] if len(raw) == 3 else np.zeros_like(mask)
    for name, values in (("mask", mask), ("mask of ignored pixels", ignore)):
        if not np.isin(values, (0, 1)).all():
            raise DataError(f"{place}: the {name} has other values than 0 and 1")
    finite = np.isfinite(pixels)
    ignored = ignore.astype(np.uint8) | ~finite
    return np.where(finite, pixels, 0), mask.astype(np.uint8), ignored, int((~finite).sum())


def read_sky(tree: Tree, image: Image, known: dict[str, Array]) -> float:
    """The brightness of the sky in an image, in electrons; 0 if the visit has no ``sky.npy``."""
    if image.sky not in tree:
        return 0.0
    if image.sky not in known:
        known[image.sky] = np.atleast_1d(tree.read(image.sky))
    skies = known[image.sky]
    if not 1 <= image.exposure <= len(skies) or not np.isfinite(skies[image.exposure - 1]):
        raise DataError(
            f"{tree.source}: {image.sky} has no number for exposure {image.exposure} of "
            f"{len(skies)}"
        )
    return float(skies[image.exposure - 1])
