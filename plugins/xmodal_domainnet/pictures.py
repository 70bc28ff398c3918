"""Images on disk, as bytes of one size, and how a model reads them.

Shapes: C channels (3), H and W height and width.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.utils.data import Dataset

from xmodal import randomness
from xmodal.data.mapped import Array, ArrayWriter, Mapped, check_room
from xmodal.errors import DataError
from xmodal.text import shown
from xmodal_domainnet.lists import Listed

Pair = tuple[Tensor, Tensor]
Crops = Literal["once", "every-epoch", "none"]


def write(
    archive: Path, listed: Listed, side: int, out: Path, count: Callable[[int], None]
) -> None:
    """Decode the listed images of a zip file, and write them as uint8 ``[n, 3, side, side]``.

    Images are read one by one; nothing is unpacked. Raises DataError with the image.
    """
    check_room(out.parent, len(listed.paths) * 3 * side * side)
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            ArrayWriter(out, (3, side, side), np.uint8, len(listed.paths)) as writer,
        ):
            known = {*opened.namelist()}
            for path in listed.paths:
                if path not in known:
                    raise DataError(f"{archive}: holds no image '{path}', which a list names")
                writer.add(resized(opened.read(path), side, f"{archive}/{path}")[None])
                count(1)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{archive}: cannot be read: {shown(error)}\nway out: delete it and fetch it again"
        ) from error


def resized(data: bytes, side: int, where: str) -> Array:
    """An encoded image in colours, uint8 ``[3, side, side]``, its aspect not kept (bilinear)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{where}: no image that can be read: {shown(error)}") from error
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


class Pictures(Dataset[Pair]):
    """Images ``[3, side, side]``, prepared by ``prepare`` from bytes of ``side`` or more.

    Larger images are resized. Training cuts them at a random place and mirrors half of them
    instead: ``once``, the same in every epoch, a function of ``seed``; or anew ``every-epoch``.
    """

    def __init__(
        self,
        base: Mapped,
        side: int,
        prepare: Callable[[Tensor], Tensor],
        crops: Crops = "none",
        seed: int = 0,
    ) -> None:
        self.base, self.side, self.prepare = base, side, prepare
        self.crops, self.seed = crops, seed

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Pair:
        x, y = self.base[index]
        if x.shape[-1] != self.side:
            size = (self.side, self.side)
            x = nn.functional.interpolate(x[None], size, mode="bilinear", antialias=True)[0]
        return self.prepare(x), y

    def labels(self, index_N: Tensor) -> Tensor:
        """The classes of some images; reads no image."""
        return self.base.labels(index_N)

    def in_pass(self, seed: int) -> Dataset[Pair]:
        """The images as one pass of training sees them."""
        if self.crops == "none":
            return self
        return _Cut(self, self.seed if self.crops == "once" else seed)


class _Cut(Dataset[Pair]):
    """Images cut and mirrored at random: a function of the seed and the index."""

    def __init__(self, pictures: Pictures, seed: int) -> None:
        self.pictures, self.seed = pictures, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Pair:
        x, y = self.pictures.base[index]
        generator = randomness.generator(self.seed, "cut", int(index))
        return self.pictures.prepare(cut(x, self.pictures.side, generator)), y


def cut(x_CHW: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square out of the image at a random place, mirrored half the time."""
    spare = x_CHW.shape[-1] - side
    top, left = torch.randint(spare + 1, (2,), generator=generator).tolist()
    crop = x_CHW[:, top : top + side, left : left + side]
    return crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop.clone()
