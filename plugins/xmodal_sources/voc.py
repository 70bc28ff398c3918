"""The foreground of PASCAL VOC 2012: the dense source of the published PaRe code.

As published, a pixel is 1 if it belongs to any of the twenty object classes, otherwise 0; the void
border is 0. Images and masks are resized to the requested sizes, ignoring their aspect ratio.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data import Store
from xmodal.errors import DataError
from xmodal.files import contents
from xmodal.interfaces import Pair, Source, SourceFacts, SourceRequest
from xmodal_sources.files import FileSettings, missing
from xmodal_sources.images import (
    FOREGROUND,
    Batch,
    ForegroundSettings,
    balanced_draw,
    collect,
    image_size,
    mask_size,
    open_image,
    resize,
    resize_mask,
    seeded,
    to_tensor,
)

ARCHIVE = "VOCtrainval_11-May-2012.tar"
URL = f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{ARCHIVE}"
MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
INSIDE = Path("VOCdevkit/VOC2012")
HELP = (
    f"download {URL} (2.0 GB, md5 {MD5}), unpack it, and set 'path' to its folder {INSIDE}; "
    "or set 'download: true'; the sources digits-on-photos and stamps-foreground need no download"
)
VOID = 255


class VocForeground(Source):
    """Photographs of VOC 2012's segmentation lists with a 0/1 mask of all objects."""

    class Config(FileSettings, ForegroundSettings):
        """Settings of ``voc-foreground``."""

        split: Literal["train", "val", "trainval"] = Field(
            "train", description="The list of images under ImageSets/Segmentation."
        )

    config: Config

    @classmethod
    def describe(cls, config: Config) -> SourceFacts:
        """Images with one dense 0/1 channel."""
        return SourceFacts("voc-foreground", "image", FOREGROUND)

    @classmethod
    def missing(cls, config: Config, store: Store) -> Iterable[str]:
        """How to get the files, if they are missing and may not be downloaded."""
        problem = missing("voc-foreground", config, HELP)
        return (problem,) if problem else ()

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The list and all images and masks that it names."""
        if config.path is None:
            return {}
        root = _inside(config.path)
        found = [_list_file(root, config.split)]
        for name in read_list(root, config.split):
            found += _pair(root, name)
        return {"path": contents({file.relative_to(root).as_posix(): file for file in found})}

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Draw the samples, read and resize them."""
        name = "voc-foreground"
        size, label_size = image_size(request, name), mask_size(request, name)
        root = self._root()
        names = read_list(root, self.config.split)
        chosen = balanced_draw([0] * len(names), self.config.samples, seeded(name, seed))

        def make(positions: Sequence[int]) -> Batch:
            pairs = [_pair(root, names[chosen[i]]) for i in positions]
            x = [resize(to_tensor(open_image(image))[None], size)[0] for image, _ in pairs]
            y = [resize_mask(read_mask(mask), label_size) for _, mask in pairs]
            return torch.stack(x), torch.stack(y)

        return collect(request, len(chosen), make)

    def _root(self) -> Path:
        problem = missing("voc-foreground", self.config, HELP)
        if problem:
            raise DataError(problem)
        if self.config.path is not None:
            return _inside(self.config.path)
        archive = self.context.store.download([URL], ARCHIVE, md5=MD5)
        return self.context.store.unpack(archive, "voc2012") / INSIDE


def _inside(path: Path) -> Path:
    """The folder of VOC 2012, given itself or where the archive was unpacked."""
    return path / INSIDE if (path / INSIDE).is_dir() else path


def _list_file(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def _pair(root: Path, name: str) -> tuple[Path, Path]:
    """An image and its mask."""
    return root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png"


def read_list(root: Path, split: str) -> list[str]:
    """The image names of a segmentation list. Raises DataError if it is missing or empty."""
    file = _list_file(root, split)
    try:
        names = file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); {HELP}") from error
    if not names:
        raise DataError(f"{file}: lists no images")
    return names


def read_mask(path: Path) -> Tensor:
    """The boolean foreground ``[H, W]`` of a palette image. Raises DataError for other images."""
    image = open_image(path, None)
    if image.mode not in ("P", "L"):
        raise DataError(f"{path}: not a palette image of classes (mode {image.mode})")
    classes = torch.from_numpy(np.array(image, dtype=np.uint8))
    return (classes > 0) & (classes != VOID)
