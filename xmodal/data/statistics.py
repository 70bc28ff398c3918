"""Mean and deviation of numbers of any size, one channel at a time, read chunk by chunk.

Nothing depends on the unit: numbers are counted from a first one and divided by their range before
they are squared, so squares neither overflow nor vanish, and a large offset costs no digits. No
number is taken for zero because it is small: a channel is constant if all its values are equal.

Shapes: n samples, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal.data.naming import EXACT
from xmodal.errors import DataError

Array = NDArray[Any]
Numbers = NDArray[np.float64]

MOST = 1023
"""The exponent of the largest power of two in float64."""


class Moments:
    """Mean and standard deviation (over all values, not n - 1) of each channel; NaN is left out.

    Chunks are combined as in Chan et al. 1979. ``low_C`` and ``high_C`` are the extremes, and
    ``two_C`` says which channels have no other values than these.
    """

    def __init__(self, channels: int) -> None:
        self.count_C = np.zeros(channels)
        self.low_C = np.full(channels, np.inf)
        self.high_C = np.full(channels, -np.inf)
        self.two_C = np.ones(channels, dtype=bool)
        # In units of ``_unit_C``, counted from ``_origin_C``.
        self._origin_C, self._unit_C = np.zeros(channels), np.zeros(channels)
        self._mean_C, self._squares_C = np.zeros(channels), np.zeros(channels)

    def add(self, x_N: Array) -> None:
        """Add samples ``[n, C, ...]``, finite or NaN.

        Raises DataError if the values of a channel are further apart than float64 can count.
        """
        # In one layout: sums of another one differ in their last digits.
        x_CM = np.moveaxis(x_N, 1, 0).astype(np.float64, order="C").reshape(len(self.count_C), -1)
        known_CM = ~np.isnan(x_CM)
        count_C = known_CM.sum(axis=1)
        if not count_C.any():
            return
        low_C = np.where(known_CM, x_CM, np.inf).min(axis=1)
        high_C = np.where(known_CM, x_CM, -np.inf).max(axis=1)
        self._add_extremes(x_CM, known_CM, low_C, high_C)
        seen = count_C > 0
        first = seen & (self.count_C == 0)
        low_C, high_C = (np.where(seen, end_C, self._origin_C) for end_C in (low_C, high_C))
        self._origin_C = np.where(first, low_C / 2 + high_C / 2, self._origin_C)
        with np.errstate(over="ignore"):
            size_C = np.maximum(high_C - self._origin_C, self._origin_C - low_C)
        if np.isinf(size_C).any():
            c = np.flatnonzero(np.isinf(size_C))[0]
            raise DataError(
                f"the values of channel {c} ({self.low_C[c]:g} to {self.high_C[c]:g}) are too far "
                "apart for float64; scale them"
            )
        self._rescale(size_C)
        unit_C1 = np.where(self._unit_C > 0, self._unit_C, 1.0)[:, None]
        u_CM = np.where(known_CM, (x_CM - self._origin_C[:, None]) / unit_C1, 0.0)
        mean_C = u_CM.sum(axis=1) / np.maximum(count_C, 1)
        squares_C = (np.where(known_CM, u_CM - mean_C[:, None], 0.0) ** 2).sum(axis=1)
        total_C = np.maximum(self.count_C + count_C, 1)
        gap_C = np.where(seen, mean_C - self._mean_C, 0.0)
        self._mean_C = self._mean_C + gap_C * count_C / total_C
        self._squares_C += squares_C + gap_C**2 * self.count_C * count_C / total_C
        self.count_C = self.count_C + count_C

    def _add_extremes(
        self, x_CM: Numbers, known_CM: NDArray[np.bool_], low_C: Numbers, high_C: Numbers
    ) -> None:
        at_an_end = (x_CM == low_C[:, None]) | (x_CM == high_C[:, None])
        self.two_C &= (~known_CM | at_an_end).all(axis=1)
        low, high = np.minimum(low_C, self.low_C), np.maximum(high_C, self.high_C)
        for end_C in (low_C, high_C, self.low_C, self.high_C):
            self.two_C &= ~np.isfinite(end_C) | (end_C == low) | (end_C == high)
        self.low_C, self.high_C = low, high

    def _rescale(self, size_C: Numbers) -> None:
        """Let the units be powers of two (exact to divide by) that are at least ``size_C``."""
        power_C = np.minimum(np.frexp(size_C)[1], MOST)
        unit_C = np.maximum(self._unit_C, np.where(size_C > 0, np.ldexp(1.0, power_C), 0.0))
        share_C = self._unit_C / np.where(unit_C > 0, unit_C, 1.0)
        self._mean_C = self._mean_C * share_C
        self._squares_C = self._squares_C * share_C**2
        self._unit_C = unit_C

    @property
    def constant_C(self) -> NDArray[np.bool_]:
        """Which channels have a single value, or none."""
        return ~(self.low_C < self.high_C)

    @property
    def mean_C(self) -> Numbers:
        """The mean; 0 without values."""
        return np.asarray(self._origin_C + self._unit_C * self._mean_C)

    @property
    def deviation_C(self) -> Numbers:
        """The standard deviation; 0 if constant."""
        return self._unit_C * np.sqrt(self._squares_C / np.maximum(self.count_C, 1))

    @property
    def coarse_C(self) -> NDArray[np.bool_]:
        """Which channels of whole numbers are too large for float64 to tell their differences."""
        error_C = 4 * np.finfo(np.float64).eps * self.largest_C
        return np.asarray((self.largest_C > EXACT) & (error_C > 1e-6 * self.deviation_C))

    @property
    def largest_C(self) -> Numbers:
        """The largest absolute value; 0 without values."""
        ends_2C = np.abs([self.low_C, self.high_C])
        return np.where(self.count_C > 0, ends_2C.max(axis=0), 0.0)

    def require_float32(self, where: str, hint: str) -> None:
        """Raise DataError for the first channel whose values float32 cannot hold and tell apart."""
        limits = np.finfo(np.float32)
        size_C = self.largest_C
        finest_C = np.maximum(4 * limits.eps * size_C, limits.tiny)
        told_apart_C = self.constant_C | (self.deviation_C > finest_C)
        wrong = np.flatnonzero(~told_apart_C | (size_C > limits.max))
        if len(wrong):
            c = wrong[0]
            raise DataError(
                f"{where}: float32 cannot hold, or tell apart, the values of channel {c} "
                f"({self.low_C[c]:g} to {self.high_C[c]:g}); {hint}"
            )

    def input_scale(self, keep_two: bool = False) -> tuple[Numbers, Numbers]:
        """Mean and scale ``[C]`` of samples: ``(x - mean) / scale`` is what a model reads.

        The scale of a constant channel is infinite: no other value of it can mean anything.
        ``keep_two``: channels of two values become 0 and 1, as masks are.
        """
        two_C = self.two_C & ~self.constant_C & keep_two
        scale_C = np.where(self.constant_C, np.inf, self.deviation_C)
        return (
            np.where(two_C, self.low_C, self.mean_C),
            np.where(two_C, self.high_C - self.low_C, scale_C),
        )

    def label_scale(self) -> tuple[Numbers, Numbers]:
        """Mean and scale ``[C]`` of labels. At least one channel must vary.

        The scale of a constant channel is the least that float32 tells from its value: predictions
        stay where it is, whatever the units of the others. Zeros, which have no unit, get the
        smallest scale of the others.
        """
        own_C = np.finfo(np.float32).eps * np.abs(self.mean_C)
        least = self.deviation_C[~self.constant_C].min()
        constant_C = np.where(own_C > 0, own_C, least)
        return self.mean_C, np.where(self.constant_C, constant_C, self.deviation_C)
