"""The description of series, number by number, against other ways to compute it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.signal import periodogram

from xmodal_basics.series_features import (
    count_of_quantiles,
    described,
    interval_quantiles,
)

WHOLE = 13  # numbers of the whole series before its bands
RNG = np.random.default_rng(0)


def test_the_whole_series() -> None:
    x = np.array([[[1.0, 3.0, -1.0, 5.0, 2.0]]])
    found = described(x)[0]
    time = np.linspace(-1, 1, 5)
    expected = [
        2.0, np.sqrt(4.0), -1.0, 5.0, *np.quantile(x, (0.1, 0.25, 0.5, 0.75, 0.9)),
        np.sqrt(40 / 5), np.polyfit(time, x[0, 0], 1)[0], (2 + 4 + 6 + 3) / 5, 4 / 5,
    ]  # fmt: skip
    np.testing.assert_allclose(found[:WHOLE], expected, rtol=1e-6)


def test_bands_are_octaves_of_the_periodogram() -> None:
    length = 64
    x = RNG.normal(size=(1, 1, length))
    _, power = periodogram(x[0, 0], scaling="spectrum", window="boxcar")
    power = power[1:]
    power[:-1] /= 2  # one-sided but for the highest frequency
    ends = [0, 1, 2, 4, 8, 16, 32]
    bands = [power[a:b].sum() for a, b in pairwise(ends)]
    found = described(x)[0, WHOLE : WHOLE + 2 * len(bands)]
    np.testing.assert_allclose(found[::2], np.sqrt(bands), rtol=1e-5)
    np.testing.assert_allclose(found[1::2], bands / power.sum(), rtol=1e-5)


def test_intervals_cover_the_series_once_at_each_depth() -> None:
    x = RNG.normal(size=(1, 1, 12))
    found = described(x)[0, WHOLE + 2 * 3 :]  # of 6 frequencies 1, 2 to 3, 4 to 6
    parts = [x[0, 0, :6], x[0, 0, 6:], *x[0, 0].reshape(4, 3)]
    slopes = [np.polyfit(np.linspace(-1, 1, len(p)), p, 1)[0] for p in parts]
    expected = np.ravel([(p.mean(), p.std(), s) for p, s in zip(parts, slopes, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_short_and_constant_series_and_missing_points_have_numbers(length: int) -> None:
    x = np.ones((3, 2, length))
    x[0, 0, 0] = np.nan
    found = described(x)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    filled = np.nan_to_num(x)
    np.testing.assert_array_equal(found, described(filled))


def test_channels_stand_alone_and_numbers_move_with_their_unit() -> None:
    x = RNG.normal(size=(4, 2, 40))
    one, other = described(x), described(x * np.array([[[1.0], [1e-9]]]))
    half = one.shape[1] // 2
    np.testing.assert_array_equal(one[:, :half], other[:, :half])
    ratio = other[:, half:] / one[:, half:]
    scaled, free = np.isclose(ratio, 1e-9, rtol=1e-3), np.isclose(ratio, 1.0, rtol=1e-3)
    assert (scaled.all(0) | free.all(0)).all()
    np.testing.assert_array_equal(described(x[:, 1:]), one[:, half:])


def test_quantiles_of_intervals_by_hand() -> None:
    """Eight points: intervals of 8, 4, 2 and 1; of the differences, smoothed over 5, and so on."""
    x = np.array([[[5.0, 1.0, 4.0, 2.0, 8.0, 3.0, 9.0, 7.0]]])
    found = interval_quantiles(x)[0]
    # The whole: of 8 points two order statistics, the largest less the mean 39 / 8.
    np.testing.assert_allclose(found[:2], [1.0, 9.0 - 39 / 8])
    # Halves, then the one between their middles: 4 points give their median.
    np.testing.assert_allclose(found[2:5], [3.0, 7.5, 3.5])
    # Quarters and the three between: the medians of neighbours.
    np.testing.assert_allclose(found[5:12], [3, 3, 5.5, 8, 2.5, 5, 6])
    # Eighths are the points themselves; half of one is none.
    np.testing.assert_allclose(found[12:20], x[0, 0])
    step = np.diff(x[0, 0])
    smooth = [np.mean(np.pad(step, 2, mode="edge")[i : i + 5]) for i in range(len(step))]
    np.testing.assert_allclose(found[20:22], [min(smooth), max(smooth) - np.mean(smooth)])
    spectrum = np.abs(np.fft.rfft(x[0, 0]))
    # The last: 5 frequencies, whole, halves, one between, quarters; the whole has 2 numbers.
    last = len(found) - (2 + 2 + 1 + 4)
    np.testing.assert_allclose(
        found[last : last + 4],
        [
            spectrum.min(),
            spectrum.max() - spectrum.mean(),
            np.median(spectrum[:2]),
            np.median(spectrum[2:]),
        ],
        rtol=1e-6,
    )


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50])
def test_quantiles_move_with_the_unit_of_their_channel(length: int) -> None:
    x = RNG.normal(size=(4, 2, length))
    found = interval_quantiles(x)
    assert found.shape == (4, 2 * count_of_quantiles(length))
    np.testing.assert_allclose(interval_quantiles(8 * x), 8 * found, rtol=1e-5, atol=1e-5)
    assert np.isfinite(interval_quantiles(np.full((1, 1, length), np.nan))).all()


def test_quantiles_are_those_of_numpy() -> None:
    x = RNG.normal(size=(3, 2, 37)).astype("float32")
    found = interval_quantiles(x).reshape(3, 2, -1)
    count = 1 + 36 // 4
    expected = np.moveaxis(np.quantile(x, np.linspace(0, 1, count), axis=2), 0, 2)
    expected[:, :, 1::2] -= x.mean(2, keepdims=True)
    np.testing.assert_allclose(found[:, :, :count], expected, rtol=1e-5, atol=1e-6)
