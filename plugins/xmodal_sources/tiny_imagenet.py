"""Tiny-ImageNet: 200 classes of ImageNet at 64 x 64, one of the paper's proxies.

Read from its zip, from the folder that it unpacks to, or from an ``.npz`` that holds the JPEG files
end to end. Images stay encoded as they were published, and are decoded when they are drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch.utils.data import Dataset

from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import ArrayWriter, open_mapped
from xmodal.data.progress import meter
from xmodal.errors import DataError
from xmodal.files import below
from xmodal.interfaces import Pair, SourceFacts, SourceRequest, Target
from xmodal_sources.images import (
    Batch,
    balanced_draw,
    collect,
    image_size,
    resize,
    seeded,
    to_tensor,
)
from xmodal_sources.published import FileSettings, FileSource, members, take

FILE, FOLDER = "tiny-imagenet-200.zip", "tiny-imagenet-200"
ANNOTATIONS = "val/val_annotations.txt"
CLASSES = 200
COUNTS = {"train": 100_000, "val": 10_000}
CARD = DataCard(
    name="tiny-imagenet",
    benchmark="proxy",
    source="Le and Yang 2015, http://cs231n.stanford.edu; images of ImageNet",
    licence="ImageNet's terms: research and education, no commercial use",
    size=248_100_043,
    files=(
        RemoteFile(
            FILE,
            (f"http://cs231n.stanford.edu/{FILE}",),
            248_100_043,
            md5="90528d7ca1a48142e341f4ef8d21d0de",
        ),
    ),
    prepared=260_000_000,
)
_TRAIN = re.compile(r"train/([^/]+)/images/[^/]+\.JPEG")


class JpegFiles:
    """JPEG files end to end ``[bytes]``, where each begins ``[n + 1]``, and its class ``[n]``."""

    def __init__(self, where: str, jpeg: Any, offset: Any, y: Any) -> None:
        self.jpeg, self.where = jpeg, where
        self.offset = np.asarray(offset, dtype=np.int64)
        self.y: NDArray[np.int64] = np.asarray(y).astype(np.int64)
        steps = np.diff(self.offset)
        whole = self.offset[:1].tolist() == [0] and self.offset[-1] == len(jpeg)
        if len(steps) != len(self.y) or not whole or (steps < 0).any() or jpeg.dtype != np.uint8:
            raise DataError(f"{where}: bytes, offsets and classes do not belong together")

    def image(self, index: int) -> Image.Image:
        """One image, decoded. Raises DataError."""
        raw = self.jpeg[self.offset[index] : self.offset[index + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(raw)) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.where}: image {index} cannot be read ({error})") from error


class TinyImageNet(FileSource):
    """Photographs of 200 classes at 64 x 64 (Le and Yang 2015): 100,000 to train, 10,000 more."""

    HELP = f"{FILE}, the folder {FOLDER}, or an .npz with train_jpeg, train_offset and train_y"

    class Config(FileSettings):
        """Settings of ``tiny-imagenet``."""

        split: Literal["train", "val"] = Field("train", description="Which part to draw from.")

    config: Config

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """What is known of the data."""
        return CARD

    @classmethod
    def describe(cls, config: Config) -> SourceFacts:
        """Images of 200 classes, or of those in the user's files."""
        classes = CLASSES
        if config.path is not None and config.path.suffix == ".npz" and config.path.is_file():
            classes = _packed_classes(config.path)
        elif config.path is not None and (root := _root(config.path)) is not None:
            classes = sum(path.is_dir() for path in (root / "train").iterdir())
        return SourceFacts("tiny-imagenet", "image", Target("classification", classes))

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Copy the JPEG files out of the zip, without decoding them."""
        with members(wanted.files[FILE]) as files:
            inner = {
                name.removeprefix(f"{FOLDER}/"): name
                for name in files
                if name.startswith(f"{FOLDER}/")
            }
            return _write(inner, lambda name: take(files, inner[name]), folder, COUNTS)

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Draw the samples, balanced over the classes, then decode and resize them."""
        size = image_size(request, "tiny-imagenet")
        images = self._images()
        generator = seeded("tiny-imagenet", seed)
        chosen = balanced_draw(images.y.tolist(), self.config.samples, generator)

        def make(positions: Sequence[int]) -> Batch:
            rows = [chosen[i] for i in positions]
            x = [resize(to_tensor(images.image(row))[None], size)[0] for row in rows]
            return torch.stack(x), torch.from_numpy(images.y[rows])

        return collect(request, len(chosen), make)

    def _images(self) -> JpegFiles:
        path, split = self.found(), self.config.split
        if path.suffix == ".npz":
            return read_npz(path, split)
        own = path if path.is_file() else _root(path)
        if own is not None:
            key = self.contents(self.config, self.store)
            path = self.store.build("tiny-imagenet", key, partial(_convert, own))
        names = (f"{split}_jpeg.npy", f"{split}_offset.npy", f"{split}_y.npy")
        return JpegFiles(str(path), *(open_mapped(path / name) for name in names))


def _root(path: Path) -> Path | None:
    """The folder of the unpacked files, given itself or where they were unpacked."""
    for place in (path, path / FOLDER):
        if (place / "train").is_dir():
            return place
    return None


def _convert(path: Path, folder: Path) -> None:
    """Convert the user's zip or folder, which may hold a part of the images."""
    if path.is_file():
        wanted = Preparation(scratch=folder, files={FILE: path})
        TinyImageNet.prepare(None, wanted, folder)
        return
    files = below(path)
    _write(files, lambda name: files[name].read_bytes(), folder, None)


def _write(
    names: Iterable[str],
    read: Callable[[str], bytes],
    folder: Path,
    counts: Mapping[str, int] | None,
) -> Mapping[str, Any]:
    """Write both parts, each in the order of its names; classes are numbered in theirs."""
    train = {name: found[1] for name in sorted(names) if (found := _TRAIN.fullmatch(name))}
    classes = {name: number for number, name in enumerate(sorted(set(train.values())))}
    parts = {"train": train, "val": _annotated(set(names), read)}
    if counts and ({k: len(v) for k, v in parts.items()} != counts or len(classes) != CLASSES):
        found_counts = {k: len(v) for k, v in parts.items()}
        raise DataError(
            f"{FILE} holds {found_counts} images of {len(classes)} classes; expected {counts} of "
            f"{CLASSES}"
        )
    with meter("Tiny-ImageNet", sum(map(len, parts.values())), unit="images") as count:
        for part, labels in parts.items():
            if unknown := sorted(set(labels.values()) - classes.keys()):
                raise DataError(f"{ANNOTATIONS}: class {unknown[0]} has no training images")
            offset = [0]
            with ArrayWriter(folder / f"{part}_jpeg.npy", (), np.uint8) as jpeg:
                for name in labels:
                    jpeg.add(np.frombuffer(read(name), np.uint8))
                    offset.append(jpeg.written)
                    count(1)
            np.save(folder / f"{part}_offset.npy", np.array(offset, dtype=np.int64))
            y = [classes[label] for label in labels.values()]
            np.save(folder / f"{part}_y.npy", np.array(y, dtype=np.int64))
    return {"classes": list(classes), **{k: len(v) for k, v in parts.items()}}


def _annotated(names: set[str], read: Callable[[str], bytes]) -> dict[str, str]:
    """The class of every validation image, by ``val_annotations.txt``."""
    if ANNOTATIONS not in names:
        return {}
    found = {}
    for number, line in enumerate(read(ANNOTATIONS).decode("utf-8", "replace").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or f"val/images/{fields[0]}" not in names:
            raise DataError(f"{ANNOTATIONS}:{number}: names no image and its class")
        found[f"val/images/{fields[0]}"] = fields[1]
    return dict(sorted(found.items()))


def read_npz(path: Path, split: str) -> JpegFiles:
    """A part of a pack; one that has no ``val`` may call it ``test``. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as pack:
            part = "test" if split == "val" and "val_jpeg" not in pack.files else split
            keys = (f"{part}_jpeg", f"{part}_offset", f"{part}_y")
            return JpegFiles(str(path), *(pack[key] for key in keys))
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{path}: not an .npz of encoded images: {error}") from error


def _packed_classes(path: Path) -> int:
    return int(read_npz(path, "train").y.max(initial=-1)) + 1
