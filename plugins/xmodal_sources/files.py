"""Labelled photographs in the user's own files: CIFAR-10 and folders of images.

CIFAR-10 is read from its published archive, unpacked, or from an ``.npz`` of uint8 images. The
checksums are verified before anything is unpickled; pickles in an ``.npz`` are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import Dataset

from xmodal.data import Store
from xmodal.data.arrays import open_container
from xmodal.errors import DataError
from xmodal.files import below, contents
from xmodal.interfaces import Pair, Source, SourceFacts, SourceRequest, Target
from xmodal_sources.images import (
    Batch,
    ImageSettings,
    balanced_draw,
    collect,
    image_size,
    open_image,
    resize,
    seeded,
    to_tensor,
)

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_HELP = (
    f"download {CIFAR_URL} (163 MB, md5 {CIFAR_MD5}), unpack it, and set 'path' to the folder that "
    f"holds {CIFAR_FOLDER}; or set 'download: true'; or set 'path' to an .npz with train_x "
    "(uint8, [n, 3, 32, 32]) and train_y"
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision takes for an image."""

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


class FileSettings(ImageSettings):
    """Settings of a source that reads the user's files and can download them."""

    path: Path | None = Field(None, description="Where the files are.")
    download: bool = Field(False, description="Download the files into the cache if path is unset.")


def missing(name: str, config: FileSettings, help_text: str) -> str | None:
    """The message if a source's files are missing and may not be downloaded, otherwise None."""
    if config.path is not None and not config.path.exists():
        return f"source {name}: {config.path} does not exist; {help_text}"
    if config.path is None and not config.download:
        return f"source {name} needs files; {help_text}"
    return None


class Cifar10(Source):
    """The 50,000 training images of CIFAR-10, 10 classes (Krizhevsky 2009)."""

    Config = FileSettings
    config: FileSettings

    @classmethod
    def describe(cls, config: FileSettings) -> SourceFacts:
        """Images of 10 classes."""
        return SourceFacts("cifar10", "image", Target("classification", 10))

    @classmethod
    def missing(cls, config: FileSettings, store: Store) -> Iterable[str]:
        """How to get the files, if they are missing and may not be downloaded."""
        problem = missing("cifar10", config, CIFAR_HELP)
        return (problem,) if problem else ()

    @classmethod
    def contents(cls, config: FileSettings, store: Store) -> Mapping[str, str]:
        """The file of arrays, or the published files, against whose checksums loading checks."""
        if config.path is None:
            return {}
        path = config.path
        return {"path": contents(path) if path.suffix == ".npz" else CIFAR_MD5}

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
        problem = missing("cifar10", self.config, CIFAR_HELP)
        if problem:
            raise DataError(problem)
        if self.config.path is None:
            archive = self.context.store.download(
                [CIFAR_URL], "cifar-10-python.tar.gz", md5=CIFAR_MD5
            )
            return read_cifar(self.context.store.unpack(archive, "cifar-10-python"))
        path = self.config.path
        return read_npz(path) if path.suffix == ".npz" else read_cifar(path)


def read_cifar(folder: Path) -> Arrays:
    """The training part of an unpacked CIFAR-10 archive, after its checksums. Raises DataError."""
    from torchvision import datasets  # imports a compiler; only loading needs it

    root = folder.parent if folder.name == CIFAR_FOLDER else folder
    try:
        data: Any = datasets.CIFAR10(str(root), train=True, download=False)
    except RuntimeError as error:
        raise DataError(f"{folder} is not a complete CIFAR-10 ({error}); {CIFAR_HELP}") from error
    images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
    return images, np.asarray(data.targets, dtype=np.int64)


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


class FolderSettings(ImageSettings):
    """Settings of ``image-folder``."""

    path: Path = Field(description="A folder that holds one folder of images per class.")


class ImageFolder(Source):
    """The user's own images: one folder per class, in the order of the folder names."""

    Config = FolderSettings
    config: FolderSettings

    @classmethod
    def describe(cls, config: FolderSettings) -> SourceFacts:
        """Images with one class per folder. Raises DataError without class folders."""
        count = len(class_folders(config.path))
        return SourceFacts("image-folder", "image", Target("classification", count))

    @classmethod
    def contents(cls, config: FolderSettings, store: Store) -> Mapping[str, str]:
        """All images, by folder and name."""
        found = below(config.path).items()
        images = {name: file for name, file in found if file.suffix.lower() in IMAGE_SUFFIXES}
        return {"path": contents(images)}

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Draw the samples, balanced over the folders, then read and resize them (no cropping)."""
        size = image_size(request, "image-folder")
        files, labels = list_images(self.config.path)
        chosen = balanced_draw(labels, self.config.samples, seeded("image-folder", seed))

        def make(positions: Sequence[int]) -> Batch:
            rows = [chosen[i] for i in positions]
            x = [resize(to_tensor(open_image(files[row]))[None], size)[0] for row in rows]
            return torch.stack(x), torch.tensor([labels[row] for row in rows])

        return collect(request, len(chosen), make)


def class_folders(root: Path) -> list[Path]:
    """The folders of the classes, sorted by name. Raises DataError if there are fewer than two."""
    if not root.is_dir():
        raise DataError(f"source image-folder: {root} is not a folder")
    found = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.name)
    if len(found) < 2:
        raise DataError(
            f"source image-folder: {root} must hold one folder per class, and at least two"
        )
    return found


def list_images(root: Path) -> tuple[list[Path], list[int]]:
    """All image files and classes, in torchvision's order. Raises DataError for an empty class."""
    from torchvision import datasets  # imports a compiler; only loading needs it

    class_folders(root)
    try:
        listing = datasets.ImageFolder(str(root))
    except FileNotFoundError as error:
        raise DataError(f"source image-folder: {error}") from error
    samples = [(Path(path), int(label)) for path, label in listing.samples]
    return [path for path, _ in samples], [label for _, label in samples]
