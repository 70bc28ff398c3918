"""What the two tasks of 100 classes of small images share: their files, and how they are split.

A ready data set is ``{train,test}_x.npy``, uint8 ``[n, 3, H, W]``, and ``{train,test}_y.npy``, the
classes.

Shapes: C channels (3), H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xmodal.data.mapped import ArrayWriter
from xmodal.errors import DataError

CLASSES = 100
COUNTS = {"train": 50_000, "test": 10_000}
HELD_OUT = (
    "Validation images: the last of the training images; null: a fifth, which is the 10,000 that "
    "NAS-Bench-360 holds out by their index."
)
_PIECE = 1000

Array = NDArray[Any]


class CropAndFlip:
    """A random crop of the image with a border of 4 black pixels, mirrored every second time.

    ``black`` ``[C, 1, 1]`` is what a black pixel is for the model.
    """

    def __init__(self, black: Tensor, border: int = 4) -> None:
        self.black, self.border = black, border

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        border, (height, width) = self.border, x.shape[1:]
        wide = self.black.expand(len(x), height + 2 * border, width + 2 * border).clone()
        wide[:, border : border + height, border : border + width] = x
        top, left = torch.randint(2 * border + 1, (2,), generator=generator).tolist()
        crop = wide[:, top : top + height, left : left + width]
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        return (crop.flip(2) if mirrored else crop).contiguous(), y


def check_labels(part: str, labels: Any, count: int) -> Array:
    """Labels as classes 0 .. 99, uint8. Raises DataError."""
    y = np.asarray(labels)
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise DataError(f"{part}: {count} classes expected, got {y.dtype} of shape {y.shape}")
    if count and not 0 <= y.min() <= y.max() < CLASSES:
        raise DataError(f"{part}: class {y.max() if y.max() >= CLASSES else y.min()}, not 0 .. 99")
    return y.astype(np.uint8)


def write_part(folder: Path, part: str, images: Iterable[Array], side: int, y: Array) -> None:
    """Write one split; ``images`` are pieces ``[k, 3, side, side]``, uint8."""
    with ArrayWriter(folder / f"{part}_x.npy", (3, side, side), np.uint8, len(y)) as writer:
        for piece in images:
            writer.add(piece)
    np.save(folder / f"{part}_y.npy", y)


def pieces(array: Array) -> Iterable[Array]:
    """A large array, some rows at a time."""
    for start in range(0, len(array), _PIECE):
        yield array[start : start + _PIECE]


def rows(train: int, validation: int | None) -> dict[str, NDArray[np.int64]]:
    """Which training images train, and which validate: the last ones, by default a fifth.

    Raises DataError.
    """
    held_out = train // 5 if validation is None else validation
    if train <= held_out or not held_out:
        raise DataError(
            f"validation takes {held_out:,} of {train:,} images, which leaves none to train on or "
            "none to validate with"
        )
    return {"train": np.arange(train - held_out), "validation": np.arange(train - held_out, train)}


def samples(about: Mapping[str, Any] | None, validation: int | None) -> dict[str, int]:
    """The sizes of the splits; those published if the data are not there."""
    counts = COUNTS if about is None else {part: int(about[part]) for part in COUNTS}
    sizes = {part: len(index) for part, index in rows(counts["train"], validation).items()}
    return {**sizes, "test": counts["test"]}
