"""Caltech-101: photographs of 101 kinds of objects, one of the paper's proxies.

Read from its zip, in which the images are an archive of their own, or from the folder of classes
that this unpacks to. The clutter of ``BACKGROUND_Google`` is no object and is left out.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.errors import DataError
from xmodal.files import below, contents
from xmodal.interfaces import Pair, SourceFacts, SourceRequest, Target
from xmodal_sources.images import (
    Batch,
    balanced_draw,
    collect,
    image_size,
    open_image,
    resize,
    seeded,
    to_tensor,
)
from xmodal_sources.published import FileSettings, FileSource, unpack

FILE, INNER, FOLDER = "caltech-101.zip", "101_ObjectCategories.tar.gz", "101_ObjectCategories"
BACKGROUND = "BACKGROUND_Google"
CLASSES, IMAGES = 101, 8_677
CARD = DataCard(
    name="caltech-101",
    benchmark="proxy",
    source="Fei-Fei, Fergus and Perona 2004, https://data.caltech.edu/records/mzrjq-6wc02",
    licence="CC BY 4.0, by the record at CaltechDATA",
    size=137_400_000,
    files=(
        RemoteFile(
            FILE,
            (f"https://data.caltech.edu/records/mzrjq-6wc02/files/{FILE}",),
            md5="3138e1922a9193bfa496528edbbc45d0",
        ),
    ),
    prepared=420_000_000,
)


class Caltech101(FileSource):
    """8,677 photographs of 101 kinds of objects (Fei-Fei et al. 2004)."""

    HELP = f"{FILE}, {INNER}, or the folder {FOLDER}"
    config: FileSettings

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """What is known of the data."""
        return CARD

    @classmethod
    def describe(cls, config: FileSettings) -> SourceFacts:
        """Images of 101 classes, or of as many as the user's folder holds."""
        classes = CLASSES
        if config.path is not None and config.path.is_dir():
            classes = len(_folders(_root(config.path)))
        return SourceFacts("caltech-101", "image", Target("classification", classes))

    @classmethod
    def contents(cls, config: FileSettings, store: Store) -> Mapping[str, str]:
        """The images of the classes, by folder and name, or the archive."""
        if config.path is None:
            return {}
        if not config.path.is_dir():
            return {"path": contents(config.path)}
        return {"path": contents(_images(_root(config.path)))}

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Unpack the images of the 101 classes, and count them."""
        _unpack(wanted.files[FILE], folder)
        classes, images = len(_folders(folder)), len(_images(folder))
        if (classes, images) != (CLASSES, IMAGES):
            raise DataError(
                f"{FILE} holds {images} images of {classes} classes; expected {IMAGES} of {CLASSES}"
            )
        return {"samples": images}

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Draw the samples, balanced over the classes, then read and resize them."""
        size = image_size(request, "caltech-101")
        path = self.found()
        if path.is_file():
            key = self.contents(self.config, self.store)
            path = self.store.build("caltech-101", key, lambda to: _unpack(path, to))
        root = _root(path)
        numbers = {name: number for number, name in enumerate(_folders(root))}
        files = sorted(_images(root).items())
        labels = [numbers[name.partition("/")[0]] for name, _ in files]
        chosen = balanced_draw(labels, self.config.samples, seeded("caltech-101", seed))

        def make(positions: Sequence[int]) -> Batch:
            rows = [chosen[i] for i in positions]
            x = [resize(to_tensor(open_image(files[row][1]))[None], size)[0] for row in rows]
            return torch.stack(x), torch.tensor([labels[row] for row in rows])

        return collect(request, len(chosen), make)


def _root(path: Path) -> Path:
    """The folder of the classes, given itself or where the archive was unpacked."""
    for place in (path / FOLDER, path / "caltech-101" / FOLDER):
        if place.is_dir():
            return place
    return path


def _folders(root: Path) -> list[str]:
    """The names of the classes, in their order. Raises DataError for fewer than two."""
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = [name for name in found if name != BACKGROUND]
    if len(found) < 2:
        raise DataError(f"source caltech-101: {root} holds no folders of classes")
    return found


def _images(root: Path) -> dict[str, Path]:
    """Every image by class and name."""
    names = set(_folders(root))
    return {
        name: file
        for name, file in below(root).items()
        if file.suffix.lower() in (".jpg", ".jpeg") and name.partition("/")[0] in names
    }


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the images from the published zip, or from the archive in it, into ``folder``."""
    inner = folder / "inner"
    inner.mkdir()
    if zipfile.is_zipfile(archive):
        unpack(archive, inner)
        found = next(iter(sorted(inner.rglob(INNER))), None)
        if found is None:
            raise DataError(f"{archive} holds no {INNER}")
        archive = found
    images = folder / "images"
    images.mkdir()
    unpack(archive, images)
    root = _root(images)
    for name in _folders(root):
        (root / name).rename(folder / name)
    shutil.rmtree(inner)
    shutil.rmtree(images)
