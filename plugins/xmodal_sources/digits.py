"""Two sources that need only scikit-learn: its handwritten digits, alone or on photographs.

``digits`` is for tests and for machines without other data. ``digits-on-photos`` is a real
figure-ground problem with exact masks, but its figures are digits, not objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from xmodal.interfaces import Pair, Source, SourceFacts, SourceRequest, Target
from xmodal_sources.images import (
    FOREGROUND,
    Batch,
    ForegroundSettings,
    ImageSettings,
    balanced_draw,
    collect,
    image_size,
    integer,
    mask_size,
    resize,
    resize_mask,
    seeded,
    uniform,
)
from xmodal_sources.photos import Photos

FRACTION = (0.15, 0.45)
# Share of a digit's box that its strokes cover at half intensity, measured over all 1,797 digits.
COVER = 0.38
SMOOTH = 64


def _digits() -> tuple[Tensor, list[int]]:
    """The 1,797 digits of scikit-learn: float ``[n, 1, 8, 8]`` in [0, 1], and labels 0 .. 9."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().div_(16)[:, None]
    return images, [int(label) for label in data.target]


class Digits(Source):
    """Scikit-learn's 8x8 digits, enlarged, in grey with three channels; 10 classes."""

    Config = ImageSettings
    config: ImageSettings

    @classmethod
    def describe(cls, config: ImageSettings) -> SourceFacts:
        """Images of 10 classes."""
        return SourceFacts("digits", "image", Target("classification", 10))

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Draw the samples, balanced over the digits, and enlarge them."""
        size = image_size(request, "digits")
        images, labels = _digits()
        chosen = balanced_draw(labels, self.config.samples, seeded("digits", seed))

        def make(positions: Sequence[int]) -> Batch:
            rows = [chosen[i] for i in positions]
            x = resize(images[rows], size).expand(-1, 3, -1, -1)
            return x.contiguous(), torch.tensor([labels[row] for row in rows])

        return collect(request, len(chosen), make)


class DigitsOnPhotos(Source):
    """Digits filled with one photograph on another, labelled pixel by pixel (1: digit).

    One to three rotated and sheared digits cover 15 to 45 % of an image. A fair coin decides which
    of the two photographs fills the digits, so a pixel's colour alone does not reveal its label.
    """

    Config = ForegroundSettings
    config: ForegroundSettings

    @classmethod
    def describe(cls, config: ForegroundSettings) -> SourceFacts:
        """Images with one dense 0/1 channel."""
        return SourceFacts("digits-on-photos", "image", FOREGROUND)

    def load(self, request: SourceRequest, seed: int) -> Dataset[Pair]:
        """Compose the samples; ``samples: null`` makes as many as there are digits."""
        name = "digits-on-photos"
        size, label_size = image_size(request, name), mask_size(request, name)
        shapes = _smooth_digits()
        photos, generator = Photos(size), seeded(name, seed)

        def make(positions: Sequence[int]) -> Batch:
            pairs = [compose(shapes, photos, generator) for _ in positions]
            masks = [resize_mask(mask, label_size) for _, mask in pairs]
            return torch.stack([image for image, _ in pairs]), torch.stack(masks)

        return collect(request, self.config.samples or len(shapes), make)


def _smooth_digits() -> Tensor:
    """Digits as smooth height maps ``[n, SMOOTH, SMOOTH]`` whose level sets are their outlines."""
    images, _ = _digits()
    smooth = F.interpolate(images, (SMOOTH, SMOOTH), mode="bicubic", align_corners=False)
    return smooth[:, 0].clamp_(0, 1)


def compose(shapes: Tensor, photos: Photos, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One image ``[3, H, W]`` and its boolean mask ``[H, W]``."""
    mask = draw_mask(shapes, photos.size, generator)
    background = integer(2, generator)
    ground = photos.crop(background, generator)
    figure = photos.crop(1 - background, generator)
    return torch.where(mask, figure, ground), mask


def draw_mask(shapes: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A boolean mask ``[H, W]`` of one to three digits that covers a share within ``FRACTION``."""
    while True:
        fraction = uniform(*FRACTION, generator)
        count = 1 + integer(3, generator)
        side = math.sqrt(fraction * size[0] * size[1] / (COVER * count))
        side = min(side, 1.1 * min(size))
        height = torch.zeros(size)
        for _ in range(count):
            shape = shapes[integer(len(shapes), generator)]
            height = torch.maximum(height, _placed(shape, side, size, generator))
        # Cut at the level that gives the wanted share; strokes get slightly thicker or thinner.
        keep = round(fraction * height.numel())
        level = float(height.flatten().kthvalue(height.numel() - keep).values)
        mask = height > max(level, 0.2)
        if FRACTION[0] <= float(mask.float().mean()) <= FRACTION[1]:
            return mask


def _placed(
    shape: Tensor, side: float, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """``shape``, ``side`` pixels high, rotated, sheared and placed on a canvas ``[H, W]``."""
    angle, shear = uniform(-0.5, 0.5, generator), uniform(-0.3, 0.3, generator)
    stretch = uniform(0.8, 1.25, generator)
    room = [max(0.0, (length - 0.8 * side) / 2) for length in size]
    down, right = (uniform(-r, r, generator) for r in room)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    into = torch.tensor([[stretch, shear], [0.0, 1 / stretch]]) @ turn * (2 / side)
    # From normalised canvas coordinates to pixels about the figure's centre, then to its box.
    pixels = torch.tensor([size[1] / 2, size[0] / 2])
    theta = torch.cat([into * pixels, -(into @ torch.tensor([right, down]))[:, None]], dim=1)
    grid = F.affine_grid(theta[None], [1, 1, *size], align_corners=False)
    return F.grid_sample(shape[None, None], grid, align_corners=False)[0, 0]
