"""Fashion-MNIST, 60,000 grey 28x28 pictures of clothing, from Debian's package.

For machines without photographs: the pictures are grey and small, and do not replace CIFAR-10.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import Dataset

from xmodal.errors import DataError
from xmodal.interfaces import Pair, Source, SourceFacts, SourceRequest, Target
from xmodal_sources.images import (
    Batch,
    ImageSettings,
    balanced_draw,
    collect,
    image_size,
    resize,
    seeded,
)

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
PREFIX = {"train": "train", "test": "t10k"}
# The third byte of an IDX header is the type code of its values; 8 means unsigned bytes.
UNSIGNED_BYTE = 8


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes. Raises DataError that names the file."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable gzip file ({error})") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, UNSIGNED_BYTE]) or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path}: not an IDX file of unsigned bytes")
    axes = data[3]
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes)
    if values.size != math.prod(shape):
        raise DataError(f"{path}: {values.size} values, but the header promises {shape}")
    return values.reshape(shape)


class FashionMnist(Source):
    """Pictures of clothing in 10 classes, in grey with three channels."""

    class Config(ImageSettings):
        """Settings of ``fashion-mnist``."""

        split: Literal["train", "test"] = Field("train", description="Which part to draw from.")

    config: Config

    @classmethod
    def describe(cls, config: Config) -> SourceFacts:
        """Images of 10 classes."""
        return SourceFacts("fashion-mnist", "image", Target("classification", 10))

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Draw the samples, balanced over the classes, and enlarge them."""
        size = image_size(request, "fashion-mnist")
        folder, prefix = self._folder(), PREFIX[self.config.split]
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        if images.shape[0] != labels.shape[0]:
            raise DataError(f"{folder}: {images.shape[0]} images but {labels.shape[0]} labels")
        generator = seeded("fashion-mnist", seed)
        chosen = balanced_draw(labels.tolist(), self.config.samples, generator)

        def make(positions: Sequence[int]) -> Batch:
            rows = [chosen[i] for i in positions]
            x = torch.from_numpy(images[rows]).float().div_(255)[:, None]
            y = torch.from_numpy(labels[rows].astype(np.int64))
            return resize(x, size).expand(-1, 3, -1, -1).contiguous(), y

        return collect(request, len(chosen), make)

    def _folder(self) -> Path:
        if INSTALLED.is_dir():
            return INSTALLED
        inside = INSTALLED.relative_to("/")
        return self.store.debian_files(PACKAGE, [f"{inside}/*-ubyte.gz"]) / inside
