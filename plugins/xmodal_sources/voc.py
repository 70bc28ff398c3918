"""The foreground of PASCAL VOC 2012: the dense source of the published PaRe code.

As published, a pixel is 1 if it belongs to any of the twenty object classes, otherwise 0; the void
border is 0. Images and masks are resized to the requested sizes, ignoring their aspect ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.progress import meter
from xmodal.errors import DataError
from xmodal.files import contents, inside
from xmodal.interfaces import Pair, SourceFacts, SourceRequest
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
from xmodal_sources.published import FileSettings, FileSource, members, take

ARCHIVE = "VOCtrainval_11-May-2012.tar"
MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
INSIDE = Path("VOCdevkit/VOC2012")
LISTS = {"train": 1464, "val": 1449, "trainval": 2913}
"""The segmentation lists, with how many images they name."""
CARD = DataCard(
    name="voc-foreground",
    benchmark="proxy",
    source="Everingham et al. 2012, http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    licence="research use; photographs from Flickr under its terms",
    size=1_999_639_040,
    files=(
        RemoteFile(
            ARCHIVE,
            (f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{ARCHIVE}",),
            1_999_639_040,
            md5=MD5,
        ),
    ),
    prepared=420_000_000,
    note="the sources digits-on-photos and stamps-foreground need no download, or a smaller one",
)
VOID = 255


class VocForeground(FileSource):
    """Photographs of VOC 2012's segmentation lists with a 0/1 mask of all objects."""

    HELP = f"{ARCHIVE} or the folder {INSIDE} that it unpacks to"

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
    def card(cls, config: Any) -> DataCard:
        """What is known of the data."""
        return CARD

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Take the segmentation lists out of the archive, and the images and masks they name."""
        _take_lists(wanted.files[ARCHIVE], folder)
        for split, count in LISTS.items():
            if (found := len(read_list(folder, split))) != count:
                raise DataError(f"{ARCHIVE}: its list '{split}' names {found}, expected {count}")
        return {"samples": LISTS["trainval"]}

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The list and all images and masks that it names."""
        if config.path is None:
            return {}
        if config.path.is_file():
            return {"path": contents(config.path)}
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
        path = self.found()
        if path.is_file():
            key = self.contents(self.config, self.store)
            path = self.store.build("voc", key, lambda to: _take_lists(path, to))
        return _inside(path)


def _take_lists(archive: Path, folder: Path) -> None:
    """The lists, images and masks of the archive that segmentation needs, in its own folders."""
    with members(archive) as files:
        names = [f"ImageSets/Segmentation/{split}.txt" for split in LISTS]
        wanted = {name: take(files, (INSIDE / name).as_posix()) for name in names}
        listed = {word for text in wanted.values() for word in text.decode("utf-8").split()}
        with meter("PASCAL VOC", len(listed), unit="images") as count:
            for name in sorted(listed):
                pair = [path.relative_to(folder).as_posix() for path in _pair(folder, name)]
                wanted = {one: take(files, (INSIDE / one).as_posix()) for one in pair} | wanted
                for one in [*wanted]:
                    target = inside(folder, one)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(wanted.pop(one))
                count(1)


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
        raise DataError(
            f"{file}: cannot be read ({error}); 'path' must be {VocForeground.HELP}"
        ) from error
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
