"""Draws a sample as an image, a curve or a bare strip, and marks tokens on it.

This is the counterpart, for files, of the overlays on a run's page (``xmodal.report.pictures``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xmodal.report import INK, LINE, drawn_channels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]
MARK = "#f4511e"


@dataclass(frozen=True)
class Ground:
    """The sample under the tokens: an image ``[H, W]`` or ``[H, W, 3]``, a curve, or neither."""

    grid: tuple[int, int]
    image: Array | None = None
    curve: Array | None = None


def of_target(x: Array, tokens: int, facts: Mapping[str, Any], images: Mapping[str, int]) -> Ground:
    """The ground of a target sample ``[C, H, W]``, ``[C, L]`` or ``[F]``."""
    grid = tuple(int(side) for side in facts.get("grid", ()))
    if len(grid) == 2 and math.prod(grid) == tokens and x.ndim == 3:
        title, channel = drawn_channels(x[None], images)[0]
        rgb = len(x) == 3 and title not in images
        return Ground((grid[0], grid[1]), image=_stretched(x if rgb else channel[0]))
    if x.ndim == 2:
        return Ground((1, tokens), curve=np.nan_to_num(x[0].astype(np.float64)))
    return Ground((1, tokens))


def of_source(x: Array | None, tokens: int, facts: Mapping[str, Any]) -> Ground:
    """The ground of a source sample: an image ``[3, H, W]`` whose patches are the tokens."""
    patch = facts.get("backbone", {}).get("patch")
    if x is not None and x.ndim == 3 and patch:
        grid = (x.shape[1] // patch, x.shape[2] // patch)
        if math.prod(grid) == tokens:
            return Ground(grid, image=_stretched(x))
    return Ground((1, tokens))


def _stretched(values: Array) -> Array:
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    low, high = np.percentile(values, (0.5, 99.5))
    values = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    return np.moveaxis(values, 0, -1) if values.ndim == 3 else values


def mark(axes: Axes, ground: Ground, chosen: Array, dim: bool) -> None:
    """Draw ``ground`` and shade the tokens ``chosen`` on it; ``dim`` darkens all others instead."""
    height, width = ground.grid
    mask = np.zeros((height, width), dtype=bool)
    mask.flat[chosen[(chosen >= 0) & (chosen < mask.size)]] = True
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(LINE)
    if ground.image is not None:
        _on_image(axes, ground.image, mask, dim)
        return
    _on_strip(axes, ground, mask[0])


def _on_image(axes: Axes, image: Array, mask: Array, dim: bool) -> None:
    height, width = mask.shape
    place: dict[str, Any] = {"extent": (0, width, height, 0), "interpolation": "nearest"}
    axes.imshow(image, cmap="gray", vmin=-0.15 if image.ndim == 2 else None, **place)
    shade = np.zeros((height, width, 4))
    if dim:
        shade[~mask] = (0.04, 0.05, 0.05, 0.62)
    else:
        shade[mask] = (*[int(MARK[i : i + 2], 16) / 255 for i in (1, 3, 5)], 0.62)
    axes.imshow(shade, **place)
    padded = np.pad(mask, 1)
    edge: dict[str, Any] = {"color": MARK, "linewidth": 1.1}
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    axes.hlines(rows, columns, columns + 1, **edge)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    axes.vlines(columns, rows, rows + 1, **edge)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect(image.shape[0] * width / (image.shape[1] * height))


def _on_strip(axes: Axes, ground: Ground, mask: Array) -> None:
    steps = np.diff(np.pad(mask.astype(np.int8), 1))
    for start, end in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
        axes.axvspan(
            float(start),
            float(end),
            color=MARK,
            alpha=0.62 if ground.curve is not None else 0.85,
            lw=0,
        )
    if ground.curve is not None:
        x = np.linspace(0, len(mask), len(ground.curve))
        axes.plot(x, ground.curve, color=INK, linewidth=0.8)
    else:
        axes.set_ylim(0, 1)
    axes.set_xlim(0, len(mask))
