"""Random crops of scikit-learn's two sample photographs, as textures and backgrounds.

Each photograph is shrunk once to a few zooms at which a crop has exactly the requested size. A crop
is then a slice without interpolation, which is fast and exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal_sources.images import integer, resize, uniform

PHOTOS = ("china.jpg", "flower.jpg")
ZOOMS = (1.0, 0.75, 0.55, 0.4)


class Photos:
    """The two photographs at every zoom, for crops ``[3, *size]`` in [0, 1].

    A zoom is the share of the photograph's height (or width, for wide crops) that a crop shows.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.plates = [_zoomed(_photo(name), size) for name in PHOTOS]

    def crop(self, which: int, generator: torch.Generator) -> Tensor:
        """A crop of photograph ``which`` (0 or 1), maybe mirrored, with changed channel gains."""
        plates = self.plates[which]
        plate = plates[integer(len(plates), generator)]
        top = integer(plate.shape[1] - self.size[0] + 1, generator)
        left = integer(plate.shape[2] - self.size[1] + 1, generator)
        crop = plate[:, top : top + self.size[0], left : left + self.size[1]]
        if integer(2, generator):
            crop = crop.flip(-1)
        gain = 0.7 + 0.6 * torch.rand((3, 1, 1), generator=generator)
        return (crop * gain).clamp_(0, 1)


def _photo(name: str) -> Tensor:
    from sklearn.datasets import load_sample_image

    return torch.from_numpy(load_sample_image(name).copy()).movedim(-1, 0).float().div_(255)


def _zoomed(photo: Tensor, size: tuple[int, int]) -> list[Tensor]:
    height, width = photo.shape[1:]
    plates = []
    for zoom in ZOOMS:
        factor = max(size[0] / (zoom * height), size[1] / (zoom * width))
        shape = (max(round(height * factor), size[0]), max(round(width * factor), size[1]))
        plates.append(resize(photo[None], shape)[0])
    return plates


def plain(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A background of one random colour, ``[3, *size]``."""
    colour = [uniform(0.05, 0.95, generator) for _ in range(3)]
    return torch.tensor(colour)[:, None, None].expand(3, *size).clone()
