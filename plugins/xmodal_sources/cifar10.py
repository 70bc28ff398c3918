"""CIFAR-10: the published 2-D proxy.

Read from its archive, from the folder that it unpacks to, or from an ``.npz`` of uint8 images. The
published pickles are read by a reader that runs no code, after their checksums.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from xmodal.data import Store
from xmodal.data.arrays import open_container
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import ArrayWriter, open_mapped
from xmodal.data.unpickle import read_pickle
from xmodal.errors import DataError
from xmodal.files import contents, digest
from xmodal.interfaces import Pair, SourceFacts, SourceRequest, Target
from xmodal_sources.images import Batch, balanced_draw, collect, image_size, resize, seeded
from xmodal_sources.published import FileSettings, FileSource

FILE = "cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
"""The pickles of the training images, with their published MD5."""
IN_A_BATCH, CLASSES = 10_000, 10
CARD = DataCard(
    name="cifar10",
    benchmark="proxy",
    source="Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated by its author",
    size=170_498_071,
    files=(RemoteFile(FILE, (f"https://www.cs.toronto.edu/~kriz/{FILE}",), 170_498_071, md5=MD5),),
    prepared=350_000_000,
)

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Cifar10(FileSource):
    """The 50,000 training images of CIFAR-10, 10 classes (Krizhevsky 2009)."""

    HELP = f"{FILE}, the folder {FOLDER}, or an .npz with train_x (uint8, [n, 3, 32, 32]), train_y"
    config: FileSettings

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """What is known of the data."""
        return CARD

    @classmethod
    def describe(cls, config: FileSettings) -> SourceFacts:
        """Images of 10 classes."""
        return SourceFacts("cifar10", "image", Target("classification", CLASSES))

    @classmethod
    def contents(cls, config: FileSettings, store: Store) -> Mapping[str, str]:
        """The file of arrays, or the published files, against whose checksums loading checks."""
        if config.path is None:
            return {}
        path = config.path
        return {"path": contents(path) if path.suffix == ".npz" else MD5}

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Copy the images and classes out of the pickles of the archive."""
        _unpack(wanted.files[FILE], wanted.scratch)
        _convert(wanted.scratch / FOLDER, folder)
        return {"samples": IN_A_BATCH * len(BATCHES)}

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Draw the samples, balanced over the classes, and resize them."""
        size = image_size(request, "cifar10")
        images, labels = self._arrays()
        generator = seeded("cifar10", seed)
        chosen = balanced_draw(labels.tolist(), self.config.samples, generator)

        def make(positions: Sequence[int]) -> Batch:
            rows = [chosen[i] for i in positions]
            x = torch.from_numpy(images[rows]).float().div_(255)
            return resize(x, size), torch.from_numpy(labels[rows])

        return collect(request, len(chosen), make)

    def _arrays(self) -> Arrays:
        path = self.found()
        if path.suffix == ".npz":
            return read_npz(path)
        if not (path / "images.npy").is_file():
            path = self.store.build("cifar10", {"md5": MD5}, lambda to: _read(path, to))
        return open_mapped(path / "images.npy"), np.array(open_mapped(path / "classes.npy"))


def _read(path: Path, folder: Path) -> None:
    """Convert what a user's path names: the archive, or what it unpacks to."""
    if path.is_dir():
        _convert(path if path.name == FOLDER else path / FOLDER, folder)
        return
    if (found := digest(path, "md5")) != MD5:
        raise DataError(f"{path} is not {FILE}: its MD5 is {found}, expected {MD5}")
    scratch = folder / "unpacked"
    scratch.mkdir()
    _unpack(path, scratch)
    _convert(scratch / FOLDER, folder)
    for file in sorted(scratch.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    scratch.rmdir()


def _unpack(archive: Path, folder: Path) -> None:
    """Take the training pickles out of the archive."""
    wanted = {f"{FOLDER}/{name}" for name in BATCHES}
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                if member.name in wanted:
                    opened.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from error


def _convert(unpacked: Path, folder: Path) -> None:
    """Check the pickles, and copy images ``[n, 3, 32, 32]`` and classes out of them."""
    shape = (3, 32, 32)
    count = IN_A_BATCH * len(BATCHES)
    with (
        ArrayWriter(folder / "images.npy", shape, np.uint8, count) as images,
        ArrayWriter(folder / "classes.npy", (), np.int64, count) as classes,
    ):
        for name, md5 in BATCHES.items():
            file = unpacked / name
            if not file.is_file() or digest(file, "md5") != md5:
                raise DataError(
                    f"{unpacked} is not a complete CIFAR-10: {name} is missing or damaged; "
                    f"expected MD5 {md5}"
                )
            batch = read_pickle(file, mapped=True)
            images.add(np.asarray(batch["data"]).reshape(-1, *shape))
            classes.add(np.asarray(batch["labels"], dtype=np.int64))


def read_npz(path: Path) -> Arrays:
    """``train_x`` uint8 ``[n, 3, 32, 32]`` and ``train_y`` of an ``.npz``. Raises DataError."""
    pack = open_container(path)
    images, labels = (pack.get(key, "path:").read(slice(None)) for key in ("train_x", "train_y"))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, 32, 32):
        raise DataError(
            f"{path}: train_x must be uint8 [n, 3, 32, 32], not {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: train_y must be {len(images)} integers, not {labels.shape}")
    if len(labels) and not (labels.min() >= 0 and labels.max() <= 9):
        raise DataError(f"{path}: train_y must lie in 0 .. 9")
    return images, labels.astype(np.int64)
