"""Numbers that describe a series: what it is like as a whole, and in its halves, quarters, ...

Two descriptions: a few numbers in common use (``described``), and the quantiles of many intervals,
as in QUANT (``interval_quantiles``; Dempster, Schmidt and Webb, DMKD 2024). Every number belongs to
one channel, and moves with its unit or does not depend on it. So a forest that reads them splits
the samples in the same way in any unit of any channel.

Shapes: n samples, C channels, L length, K numbers per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
BANDS = 8
DEPTH = 5
"""How often an interval is halved: 1 + 2 + 4 + 8 + 16 intervals."""
QUANT_DEPTH, SMOOTHED = 6, 5
MOST_ROWS = 128
"""Of a grid with more rows, in all channels together, no row is described: it is a picture."""
SHORTEST = 3
"""The fewest points of an interval, so that its slope means something."""


def series_in(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Channels and length of a sample as series; of a grid, every row of every channel is one."""
    if len(shape) == 1:
        return None
    rows, length = prod(shape[:-1]), shape[-1]
    return None if len(shape) == 3 and rows > MOST_ROWS else (rows, length)


def described(x_NCL: Array) -> NDArray[np.float32]:
    """Every series in numbers, ``[n, C * K]``; a missing point counts as 0, the standardised mean.

    Of the whole series: mean, deviation, least, largest, quantiles, root mean square, mean absolute
    difference, how often it crosses its mean, slope, and how its power is spread over octaves of
    the frequency, as shares and in all. Of each interval: mean, deviation and slope.
    """
    x_NCL = np.nan_to_num(np.asarray(x_NCL, dtype=np.float64))
    columns = [*_whole(x_NCL), *_intervals(x_NCL)]
    return np.stack(columns, axis=2).reshape(len(x_NCL), -1).astype(np.float32)


def interval_quantiles(x_NCL: Array) -> NDArray[np.float32]:
    """Quantiles of intervals of the series, its differences and its spectrum: ``[n, C * K]``.

    Of the series, its smoothed first differences, its second differences and the amplitudes of its
    frequencies: each is cut into 1, 2, 4, ... 32 intervals, and again half an interval further on.
    An interval of m points gives every fourth of its order statistics from the least to the
    largest (the median, if it has less than 5), every second one less the interval's mean. Missing
    points count as 0.
    """
    x_NCL = np.nan_to_num(np.asarray(x_NCL, dtype=np.float32))
    columns: list[Array] = []
    for part_NCL in _views(x_NCL):
        for start, end in _shifted(part_NCL.shape[2]):
            columns.append(_quantiles(part_NCL[:, :, start:end]))
    return np.concatenate(columns, axis=2).reshape(len(x_NCL), -1).astype(np.float32)


def count_of_quantiles(length: int) -> int:
    """How many numbers ``interval_quantiles`` gives for a channel of a series."""
    return int(interval_quantiles(np.zeros((1, 1, length))).shape[1])


def _views(x_NCL: Array) -> Iterator[Array]:
    yield x_NCL
    for order in (1, 2):
        step_NCL = np.diff(x_NCL, n=order, axis=2)
        if order == 1 and step_NCL.shape[2] >= SMOOTHED:
            half = SMOOTHED // 2
            wide_NCL = np.pad(step_NCL, ((0, 0), (0, 0), (half, half)), mode="edge")
            step_NCL = sliding_window_view(wide_NCL, SMOOTHED, axis=2).mean(3)
        if step_NCL.shape[2]:
            yield step_NCL
    yield np.abs(np.fft.rfft(x_NCL, axis=2)).astype(np.float32)


def _shifted(length: int) -> Iterator[tuple[int, int]]:
    """The intervals of every depth while each has a point, then those between their middles."""
    for depth in range(min(QUANT_DEPTH, length.bit_length())):
        edges = np.linspace(0, length, 2**depth + 1).round().astype(int).tolist()
        cut = [*pairwise(edges)]
        yield from cut
        if half := (edges[1] // 2 if depth else 0):
            yield from ((start + half, end + half) for start, end in cut[:-1])


def _quantiles(part_NCL: Array) -> Array:
    count = 1 + (part_NCL.shape[2] - 1) // 4
    if count == 1:
        return np.median(part_NCL, axis=2, keepdims=True)
    # As np.quantile, which takes 15 times as long for many quantiles at once.
    order_NCL = np.sort(part_NCL, axis=2)
    place = np.linspace(0, part_NCL.shape[2] - 1, count)
    low = place.astype(int)
    high = np.minimum(low + 1, part_NCL.shape[2] - 1)
    weight = (place - low).astype(part_NCL.dtype)
    found = order_NCL[:, :, low] * (1 - weight) + order_NCL[:, :, high] * weight
    found[:, :, 1::2] -= part_NCL.mean(2, keepdims=True)
    return np.asarray(found, dtype=np.float32)


def _whole(x_NCL: Array) -> Iterator[Array]:
    mean_NC = x_NCL.mean(2)
    yield mean_NC
    yield x_NCL.std(2)
    yield x_NCL.min(2)
    yield x_NCL.max(2)
    yield from np.quantile(x_NCL, QUANTILES, axis=2)
    yield np.sqrt(np.square(x_NCL).mean(2))
    yield _slope(x_NCL)
    step_NCL = np.diff(x_NCL, axis=2, prepend=x_NCL[..., :1])
    yield np.abs(step_NCL).mean(2)
    above_NCL = x_NCL > mean_NC[..., None]
    yield (above_NCL[..., 1:] != above_NCL[..., :-1]).sum(2) / x_NCL.shape[2]
    yield from _bands(x_NCL - mean_NC[..., None])


def _bands(x_NCL: Array) -> Iterator[Array]:
    """The amplitude of each octave below the highest frequency, and its share of the power."""
    power_NCF = np.square(np.abs(np.fft.rfft(x_NCL, axis=2))[..., 1:] / x_NCL.shape[2])
    count = power_NCF.shape[2]
    whole_NC = power_NCF.sum(2)
    whole_NC[whole_NC == 0] = 1.0  # a constant has no power to share
    ends = sorted({0, *(count >> i for i in range(BANDS))})
    for start, end in pairwise(ends):
        band_NC = power_NCF[..., start:end].sum(2)
        yield np.sqrt(band_NC)
        yield band_NC / whole_NC


def _intervals(x_NCL: Array) -> Iterator[Array]:
    length = x_NCL.shape[2]
    for depth in range(1, DEPTH):
        edges = np.linspace(0, length, 2**depth + 1).round().astype(int)
        if np.diff(edges).min() < SHORTEST:
            return
        for start, end in pairwise(edges):
            part_NCL = x_NCL[..., start:end]
            yield part_NCL.mean(2)
            yield part_NCL.std(2)
            yield _slope(part_NCL)


def _slope(x_NCL: Array) -> Array:
    """By least squares, per unit of time in which the piece takes from -1 to 1."""
    if x_NCL.shape[2] == 1:
        return np.zeros(x_NCL.shape[:2])
    time_L = np.linspace(-1, 1, x_NCL.shape[2])
    slope_NC: Array = (x_NCL * time_L).sum(2) / np.square(time_L).sum()
    return slope_NC
