"""Labelled photographs in folders: the user's own, and Caltech-101."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch.utils.data import Dataset

from xmodal.data import Store
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

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision takes for an image."""


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
