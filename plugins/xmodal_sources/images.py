"""Shared code of all image sources: settings, seeded draws, resizing and batched preparation.

Images are float in [0, 1]. This module resizes each image once, to its final size, and passes them
through the backbone's preparation in batches, so that peak memory is the result plus one batch.

Shapes: B samples, C channels, H and W the requested height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from xmodal.errors import DataError
from xmodal.interfaces import Loss, Pair, Settings, SourceRequest, Target
from xmodal.settings import Use, default

BATCH = 128
FOREGROUND = Target("dense", 1)

Batch = tuple[Tensor, Tensor]


class ImageSettings(Settings):
    """Settings of every image source."""

    samples: int | None = Field(
        5000, gt=0, description="At most this many samples, as in the published code; null for all."
    )
    loss: Use[Loss] = Field(default("cross-entropy"), description="Loss of the source head.")


class ForegroundSettings(ImageSettings):
    """Settings of sources labelled with foreground masks."""

    loss: Use[Loss] = Field(default("bce"), description="Loss of the source head.")


def seeded(name: str, seed: int) -> torch.Generator:
    """A separate CPU generator for each source name, so that two sources never share draws."""
    digest = hashlib.sha256(f"{name}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number drawn from U(low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def integer(below: int, generator: torch.Generator) -> int:
    """One integer drawn from 0 .. below - 1."""
    return int(torch.randint(below, (), generator=generator))


def image_size(request: SourceRequest, name: str) -> tuple[int, int]:
    """Height and width of the requested images. Raises DataError if the backbone reads text."""
    if len(request.size) != 2:
        raise DataError(
            f"source {name} makes images, but the backbone reads sequences of length "
            f"{tuple(request.size)}; choose a text source such as conll-2003"
        )
    return request.size[0], request.size[1]


def mask_size(request: SourceRequest, name: str) -> tuple[int, int]:
    """Height and width of dense labels; by default those of the images. Raises DataError."""
    shape = request.label_shape or request.size
    if len(shape) != 2:
        raise DataError(f"source {name} labels pixels, but the run asks for labels {tuple(shape)}")
    return shape[0], shape[1]


def balanced_draw(y: Sequence[int], samples: int | None, generator: torch.Generator) -> list[int]:
    """Draw ``min(samples, len(y))`` positions without replacement, shuffled, balanced over classes.

    A class that is too small for its share gives all its samples; the other classes fill the gap.
    """
    labels = np.asarray(y)
    order = torch.randperm(len(labels), generator=generator).numpy()
    wanted = len(labels) if samples is None else min(samples, len(labels))
    # Rank the samples within each class in random order. Taking the lowest ranks first is a round
    # robin over the classes, which gives equal shares and lets other classes fill gaps.
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    chosen = order[np.argsort(rank[order], kind="stable")][:wanted]
    shuffle = torch.randperm(len(chosen), generator=generator).numpy()
    return [int(position) for position in chosen[shuffle]]


def resize(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float images, bilinear with antialiasing, clamped to [0, 1]."""
    if tuple(x_BCHW.shape[-2:]) == size:
        return x_BCHW
    shrinks = size[0] < x_BCHW.shape[-2] or size[1] < x_BCHW.shape[-1]
    out = F.interpolate(x_BCHW, size, mode="bilinear", antialias=shrinks, align_corners=False)
    return out.clamp_(0, 1)


def resize_mask(mask_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a 0/1 mask to the nearest pixel centres: float ``[1, *size]``."""
    return F.interpolate(mask_HW[None, None].float(), size, mode="nearest-exact")[0]


def open_image(path: Path, mode: str | None = "RGB") -> Image.Image:
    """Read one image file. Raises DataError that names the file if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            return image.convert(mode) if mode else image.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from error


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit image as float ``[C, H, W]`` in [0, 1]."""
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array).movedim(-1, 0).float().div_(255)


def batches(count: int) -> Iterator[range]:
    """The positions 0 .. count - 1 in consecutive batches."""
    for start in range(0, count, BATCH):
        yield range(start, min(start + BATCH, count))


def paired(x: Tensor, y: Tensor) -> Dataset[Pair]:
    """A TensorDataset of samples and labels, with the type of its items."""
    return cast("Dataset[Pair]", TensorDataset(x, y))


@torch.no_grad()
def collect(
    request: SourceRequest, count: int, make: Callable[[Sequence[int]], Batch]
) -> Dataset[Pair]:
    """Make ``count`` samples batch by batch, prepare each batch, and collect the prepared batches.

    ``make`` maps positions to images ``[B, 3, H, W]`` in [0, 1] and their labels. Raises DataError
    if ``count`` is 0.
    """
    x_all: Tensor | None = None
    labels: list[Tensor] = []
    for positions in batches(count):
        raw, y = make(positions)
        x = request.prepare(raw)
        if x_all is None:
            x_all = x.new_empty((count, *x.shape[1:]))
        x_all[positions.start : positions.stop] = x
        labels.append(y)
    if x_all is None:
        raise DataError("the source has no samples")
    return paired(x_all, torch.cat(labels))
