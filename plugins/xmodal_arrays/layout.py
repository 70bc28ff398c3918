"""The layout of a sample: a grid, a sequence or a row, and which axis holds its channels.

Rules for ``auto`` (settings can override all of them): one axis is a sequence. Two axes are a
sequence whose shorter axis holds the channels, unless the sample looks like an image. Three axes
are a grid; its channels are on the axis whose length differs from the other two, otherwise on the
shorter of the first and the last axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xmodal.data.arrays import Array

Form = Literal["auto", "grid", "sequence", "row"]
Channels = Literal["auto", "first", "last"]


@dataclass(frozen=True)
class Layout:
    """``shape`` of a sample; ``channel``: the channels' axis in the file, None to add one."""

    form: Literal["grid", "sequence", "row"]
    shape: tuple[int, ...]
    channel: int | None = None

    def apply(self, x_N: Array) -> Array:
        """Bring samples ``[n, *file shape]`` to ``[n, *shape]``."""
        if self.channel is None:
            return x_N.reshape(len(x_N), *self.shape)
        return np.moveaxis(x_N, 1 + self.channel, 1)


def layout(
    sample: tuple[int, ...], form: Form, channels: Channels, label: tuple[int, ...] = ()
) -> Layout:
    """The layout of samples of shape ``sample`` whose labels have shape ``label``.

    Raises ValueError with the reason if ``form`` does not fit.
    """
    if form == "row" or not sample:
        if len(sample) > 1:
            raise ValueError(f"form row needs samples with one axis, not of shape {sample}")
        return Layout("row", sample or (1,))
    if len(sample) == 1 and form != "grid":
        return Layout("sequence", (1, *sample))
    if len(sample) == 2:
        if form == "grid" or (form == "auto" and channels == "auto" and _image(sample, label)):
            return Layout("grid", (1, *sample))
        axis = _axis(channels, 0 if sample[0] <= sample[1] else 1)
        return Layout("sequence", (sample[axis], sample[1 - axis]), axis)
    if len(sample) == 3 and form != "sequence":
        axis = _axis(channels, _grid_axis(sample, label), last=2)
        return Layout("grid", (sample[axis], *sample[:axis], *sample[axis + 1 :]), axis)
    raise ValueError(f"form {form} does not fit samples of shape {sample}")


def _axis(channels: Channels, guess: int, last: int = 1) -> int:
    return {"first": 0, "last": last, "auto": guess}[channels]


def _image(sample: tuple[int, ...], label: tuple[int, ...]) -> bool:
    """Whether both sides are long, and either nearly equal or the same as the label's."""
    short, long = min(sample), max(sample)
    return short >= 16 and (long <= 2 * short or label == sample)


def _grid_axis(sample: tuple[int, ...], label: tuple[int, ...]) -> int:
    if label in (sample[1:], sample[:2]) and sample[1:] != sample[:2]:
        return 0 if label == sample[1:] else 2
    first_odd, last_odd = sample[1] == sample[2], sample[0] == sample[1]
    if first_odd != last_odd:
        return 0 if first_odd else 2
    return 0 if sample[0] <= sample[2] else 2
