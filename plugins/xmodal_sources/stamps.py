"""Two sources of real objects: cut-outs from Debian's tuxpaint-stamps-default, on backgrounds.

The package's PNG files have exact outlines in their alpha channel. The label in ``stamps`` is the
category folder, in ``stamps-foreground`` the outline. The files come from the installed package, or
are unpacked from Debian's package; none is part of this project (GPL-2).

Shapes: h and w the height and width of a cut-out, H and W those of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from xmodal.errors import DataError
from xmodal.interfaces import Context, Pair, Source, SourceFacts, SourceRequest, Target
from xmodal_sources.images import (
    FOREGROUND,
    Batch,
    ForegroundSettings,
    ImageSettings,
    collect,
    image_size,
    integer,
    mask_size,
    open_image,
    resize_mask,
    seeded,
    to_tensor,
    uniform,
)
from xmodal_sources.photos import Photos, plain

PACKAGE = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")
CATEGORIES = (
    "animals",
    "clothes",
    "food",
    "hobbies",
    "household",
    "plants",
    "seasonal",
    "space",
    "sports",
    "symbols",
    "town",
    "vehicles",
)
"""Folders with at least ten stamps; the other four are too small to be classes."""
# Symbols, a third of all stamps, are letters and outlines, not objects: not used as foregrounds.
OBJECTS = (
    *(name for name in CATEGORIES if name != "symbols"),
    "medical",
    "military",
    "naturalforces",
    "people",
)
SMALLEST, LARGEST = 24, 512
SOLID = 0.97


@dataclass(frozen=True)
class Cutout:
    """A cut-out cropped to its outline: ``[4, h, w]`` in [0, 1]; RGB times alpha, then alpha."""

    rgba_4hw: Tensor
    category: str

    @property
    def cover(self) -> float:
        """The share of the crop that is opaque."""
        return float((self.rgba_4hw[3] >= 0.5).float().mean())


def find_folder(context: Context) -> Path:
    """The folder of category folders: as installed, or unpacked from Debian's package."""
    if INSTALLED.is_dir():
        return INSTALLED
    root = context.store.debian_files(PACKAGE, ["usr/share/tuxpaint/stamps/*.png"])
    return Path(root) / INSTALLED.relative_to("/")


def read_cutouts(folder: Path, categories: Sequence[str]) -> list[Cutout]:
    """All usable cut-outs of the categories, in the order of their paths.

    Leaves out mirrored duplicates, images smaller than 24 pixels and images without an outline
    (opaque rectangles). Raises DataError for a category without usable cut-outs.
    """
    cutouts = []
    for category in categories:
        files = sorted((folder / category).rglob("*.png"))
        found = [_read(file, category) for file in files if not _is_double(file)]
        usable = [cutout for cutout in found if cutout is not None]
        if not usable:
            raise DataError(f"no stamps of category '{category}' in {folder}")
        cutouts += usable
    return cutouts


def _is_double(file: Path) -> bool:
    return file.stem.endswith(("_mirror", "_flip"))


def _read(file: Path, category: str) -> Cutout | None:
    image = open_image(file, "RGBA")
    image.thumbnail((LARGEST, LARGEST))
    opaque = np.asarray(image)[..., 3] >= 128
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    if len(rows) < SMALLEST or len(columns) < SMALLEST:
        return None
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    rgba = to_tensor(image.crop(box))
    cutout = Cutout(torch.cat([rgba[:3] * rgba[3:], rgba[3:]]), category)
    return cutout if cutout.cover < SOLID else None


def placed(
    cutout: Cutout, fraction: float, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """The cut-out at a random place on a transparent canvas ``[4, H, W]``.

    It covers about ``fraction`` of the canvas.
    """
    height, width = cutout.rgba_4hw.shape[1:]
    scale = math.sqrt(fraction * size[0] * size[1] / (cutout.cover * height * width))
    scale = min(scale, size[0] / height, size[1] / width)
    inner = (max(1, int(height * scale)), max(1, int(width * scale)))
    small = F.interpolate(
        cutout.rgba_4hw[None], inner, mode="bilinear", antialias=True, align_corners=False
    )[0].clamp_(0, 1)
    if integer(2, generator):
        small = small.flip(-1)
    top = integer(size[0] - inner[0] + 1, generator)
    left = integer(size[1] - inner[1] + 1, generator)
    canvas = torch.zeros(4, *size)
    canvas[:, top : top + inner[0], left : left + inner[1]] = small
    return canvas


def background(photos: Photos, generator: torch.Generator) -> Tensor:
    """White, one colour or a photograph ``[3, H, W]``, with equal probability."""
    kind = integer(3, generator)
    if kind == 0:
        return torch.ones(3, *photos.size)
    if kind == 1:
        return plain(photos.size, generator)
    return photos.crop(integer(2, generator), generator)


def over(canvas_4HW: Tensor, ground_3HW: Tensor) -> Tensor:
    """The canvas over the ground, with soft edges."""
    return canvas_4HW[:3] + (1 - canvas_4HW[3:]) * ground_3HW


def cut_over(canvas_4HW: Tensor, ground_3HW: Tensor) -> tuple[Tensor, Tensor]:
    """The canvas over the ground with hard edges, and the mask of the pixels it covers."""
    mask = canvas_4HW[3] >= 0.5
    colour = canvas_4HW[:3] / canvas_4HW[3:].clamp_min(0.5)
    return torch.where(mask, colour.clamp(0, 1), ground_3HW), mask


def _turns(count: int, members: int, generator: torch.Generator) -> list[int]:
    """``count`` draws from ``members`` items in random order, every item equally often."""
    rounds = [torch.randperm(members, generator=generator) for _ in range(-(-count // members))]
    return [int(i) for i in torch.cat(rounds)[:count]]


class Stamps(Source):
    """Cut-outs on white, plain or photographic backgrounds, labelled with their category folder.

    Every category appears equally often, and within it every stamp, each time in another place.
    """

    class Config(ImageSettings):
        """Settings of ``stamps``."""

        categories: tuple[str, ...] = Field(
            CATEGORIES, min_length=2, description="Category folders to tell apart."
        )

    config: Config

    @classmethod
    def describe(cls, config: Config) -> SourceFacts:
        """Images with one class per category."""
        return SourceFacts("stamps", "image", Target("classification", len(config.categories)))

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Compose the samples; ``samples: null`` makes as many as there are stamps."""
        size = image_size(request, "stamps")
        cutouts = read_cutouts(find_folder(self.context), self.config.categories)
        photos, generator = Photos(size), seeded("stamps", seed)
        count = self.config.samples or len(cutouts)
        rows = _balanced_rows(cutouts, self.config.categories, count, generator)

        def draw(row: int) -> Tensor:
            fraction = uniform(0.2, 0.6, generator)
            canvas = placed(cutouts[row], fraction, size, generator)
            return over(canvas, background(photos, generator))

        def make(positions: Sequence[int]) -> Batch:
            labels = [self.config.categories.index(cutouts[rows[i]].category) for i in positions]
            return torch.stack([draw(rows[i]) for i in positions]), torch.tensor(labels)

        return collect(request, count, make)


def _balanced_rows(
    cutouts: Sequence[Cutout], categories: Sequence[str], count: int, generator: torch.Generator
) -> list[int]:
    members = [[i for i, c in enumerate(cutouts) if c.category == name] for name in categories]
    classes = _turns(count, len(categories), generator)
    draws = [iter(_turns(classes.count(k), len(m), generator)) for k, m in enumerate(members)]
    return [members[k][next(draws[k])] for k in classes]


class StampsForeground(Source):
    """One or two cut-outs on a photograph or a plain colour, labelled pixel by pixel (1: stamp).

    Edges are hard, so the mask is exact.
    """

    Config = ForegroundSettings
    config: ForegroundSettings

    @classmethod
    def describe(cls, config: ForegroundSettings) -> SourceFacts:
        """Images with one dense 0/1 channel."""
        return SourceFacts("stamps-foreground", "image", FOREGROUND)

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Compose the samples; ``samples: null`` makes as many as there are stamps."""
        name = "stamps-foreground"
        size, label_size = image_size(request, name), mask_size(request, name)
        cutouts = read_cutouts(find_folder(self.context), OBJECTS)
        photos, generator = Photos(size), seeded(name, seed)
        count = self.config.samples or len(cutouts)
        rows = _turns(count, len(cutouts), generator)

        def make(positions: Sequence[int]) -> Batch:
            pairs = [scene(cutouts, rows[i], photos, generator) for i in positions]
            masks = [resize_mask(mask, label_size) for _, mask in pairs]
            return torch.stack([image for image, _ in pairs]), torch.stack(masks)

        return collect(request, count, make)


def scene(
    cutouts: Sequence[Cutout], row: int, photos: Photos, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One image ``[3, H, W]`` of the cut-out ``row``, maybe another behind it, and their mask."""
    if integer(4, generator):
        image = photos.crop(integer(2, generator), generator)
    else:
        image = plain(photos.size, generator)
    mask = torch.zeros(photos.size, dtype=torch.bool)
    companions = [integer(len(cutouts), generator)] if integer(2, generator) else []
    for index in [*companions, row]:
        share = uniform(0.15, 0.45, generator) / (1 + len(companions))
        image, taken = cut_over(placed(cutouts[index], share, photos.size, generator), image)
        mask |= taken
    return image, mask
