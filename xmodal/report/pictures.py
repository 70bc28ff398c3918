"""Arrays as small inline PNG pictures: colour maps, shared scales, colour bars.

Maps are perceptually uniform. Nothing here knows about runs; the caller says what an array means.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FIELD, INPUT, ERROR, GREY = "viridis", "cividis", "magma", "gray"
MAX_SIDE = 192


@dataclass(frozen=True)
class Scale:
    """A colour map with the values of its two ends."""

    low: float
    high: float
    colours: str = FIELD

    @property
    def bar(self) -> str:
        """The colour map from low to high, as a data URI."""
        return _png(np.linspace(self.low, self.high, 128)[None], self)


def scale_of(arrays: Iterable[Array], colours: str = FIELD, zero: bool = False) -> Scale:
    """The scale that holds every finite value of ``arrays``; ``zero`` puts its low end at 0."""
    values = np.concatenate([np.asarray(a, dtype=np.float64).ravel() for a in arrays])
    values = values[np.isfinite(values)]
    if not values.size:
        return Scale(0.0, 1.0, colours)
    low, high = (0.0 if zero else float(values.min())), float(values.max())
    return Scale(low, high if high > low else low + 1.0, colours)


def field(values: Array, scale: Scale) -> str:
    """A 2-D array in the colours of ``scale``, as a data URI; large arrays are thinned."""
    return _png(_thin(np.asarray(values, dtype=np.float64)), scale)


def photo(values: Array) -> str:
    """``(3, H, W)`` or ``(H, W)`` of any range, stretched to 0 .. 1, as a data URI."""
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    # The tails of a normalised photograph would otherwise wash it out.
    low, high = np.percentile(values, (0.5, 99.5))
    values = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    image = np.moveaxis(values, 0, -1) if values.ndim == 3 else np.stack([values] * 3, axis=-1)
    return _encode((_thin(image) * 255).astype(np.uint8))


def _thin(values: Array) -> Array:
    step = max(1, math.ceil(max(values.shape[:2]) / MAX_SIDE))
    return values[::step, ::step]


def _png(values: Array, scale: Scale) -> str:
    from matplotlib import colormaps

    share = np.clip((values - scale.low) / (scale.high - scale.low), 0, 1)
    colours = colormaps[scale.colours](np.ma.masked_invalid(share), bytes=True)
    return _encode(np.asarray(colours))


def _encode(pixels: Array) -> str:
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, np.ascontiguousarray(pixels), format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
