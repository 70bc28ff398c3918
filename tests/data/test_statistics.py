"""Mean and deviation of numbers of any size, against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xmodal.data import Moments
from xmodal.errors import DataError

OFFSETS = (0.0, 1.0, -1e3, 1e8)
HELD = {
    "f8": (1e-200, 1e-13, 1e-5, 1.0, 1e5, 1e13, 1e200),
    "f4": (1e-30, 1e-13, 1e-5, 1.0, 1e5, 1e13, 1e25),
    "f2": (1e-2, 1.0),
    "i8": (10.0, 1e5, 1e9),
}
"""Scales that a type of number can hold with every offset that is tried with it."""
EPS = np.finfo(np.float64).eps


def of(*chunks: NDArray[Any]) -> Moments:
    moments = Moments(chunks[0].shape[1])
    for chunk in chunks:
        moments.add(chunk)
    return moments


def exact(x_N: NDArray[Any]) -> tuple[float, float]:
    """Mean and deviation by fractions, rounded once."""
    values = [Fraction(float(value)) for value in x_N]
    mean = sum(values, Fraction()) / len(values)
    squares = sum(((value - mean) ** 2 for value in values), Fraction()) / len(values)
    # The root of a fraction that no float can hold: of its mantissa, with half its exponent.
    power = (math.frexp(float(max(abs(v - mean) for v in values)))[1]) * 2
    return float(mean), math.ldexp(math.sqrt(squares / Fraction(2) ** power), power // 2)


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [
        (dtype, scale, offset)
        for dtype, scales in HELD.items()
        for scale in scales
        for offset in (OFFSETS[:3] if dtype in ("f2", "f4") else OFFSETS)
    ],
)
def test_mean_and_deviation_are_those_of_exact_arithmetic(
    dtype: str, scale: float, offset: float
) -> None:
    x_NC = (np.random.default_rng(0).normal(size=(90, 1)) + offset) * scale
    x_NC = x_NC.astype(dtype)
    assert np.isfinite(x_NC).all()
    found = of(x_NC[:1], x_NC[1:40], x_NC[40:])
    mean, deviation = exact(x_NC[:, 0])
    error = max(4 * EPS * abs(mean) / deviation, 1e-14)
    assert abs(found.mean_C[0] - mean) <= error * deviation
    assert found.deviation_C[0] == pytest.approx(deviation, rel=error)
    assert not found.constant_C.any()


def test_chunks_give_what_the_whole_gives() -> None:
    x_NCL = np.random.default_rng(0).normal(size=(40, 3, 7)) * [[[1e-150], [1.0], [1e150]]]
    whole, parts = of(x_NCL), of(*np.split(x_NCL, [1, 2, 20]))
    np.testing.assert_allclose(parts.deviation_C, whole.deviation_C, rtol=1e-14)
    np.testing.assert_allclose(
        parts.mean_C / whole.deviation_C, whole.mean_C / whole.deviation_C, atol=1e-14
    )


def test_missing_numbers_are_left_out_and_whole_gaps_change_nothing() -> None:
    x_NC = np.array([[np.nan, 5.0], [1e-13, np.nan], [3e-13, 5.0], [np.nan, np.nan]])
    found = of(x_NC[:1], x_NC[1:3], x_NC[3:])
    np.testing.assert_allclose(found.mean_C, [2e-13, 5.0])
    np.testing.assert_allclose(found.deviation_C, [1e-13, 0.0])
    assert found.constant_C.tolist() == [False, True]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-300, 1.7e9, -1e200])
def test_constant_means_equal_and_nothing_else(value: float) -> None:
    same = np.full((33, 1), value)
    assert of(same[:7], same[7:]).constant_C.all()
    assert of(same).deviation_C[0] == 0
    same[20] = np.nextafter(value, np.inf)
    assert not of(same[:7], same[7:]).constant_C.any()


def test_input_scales_of_constant_and_of_two_valued_channels() -> None:
    x_NC = np.array([[2.0, 7.0, 1.0], [6.0, 7.0, 2.0], [6.0, 7.0, 3.0], [2.0, 7.0, 4.0]])
    mean_C, scale_C = of(x_NC[:1], x_NC[1:]).input_scale(keep_two=True)
    assert (mean_C[:2].tolist(), scale_C[:2].tolist()) == ([2.0, 7.0], [4.0, np.inf])
    assert ((x_NC - mean_C) / scale_C)[:, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert ((x_NC - mean_C) / scale_C)[:, 1].tolist() == [0.0] * 4
    assert of(x_NC).input_scale()[0][0] == 4.0
    third = of(x_NC, np.array([[3.0, 7.0, 1.0]]))
    assert third.input_scale(keep_two=True)[0][0] == pytest.approx(19 / 5)


def test_a_constant_label_stays_where_it_is_whatever_the_unit_of_the_others() -> None:
    y_NK = np.array([[1.0, 0.0, 50.0, -8.0], [3.0, 0.0, 70.0, -8.0]])
    for unit in (1.0, 1e6, 1e-6):
        mean_K, scale_K = of(y_NK * [unit, 1, unit, 1]).label_scale()
        np.testing.assert_allclose(mean_K, [2 * unit, 0, 60 * unit, -8], rtol=1e-15)
        # 2^-23 is the distance from 1 to the next number in float32.
        np.testing.assert_allclose(scale_K, [unit, unit, 10 * unit, 8 * 2.0**-23], rtol=1e-15)


def test_layouts_in_memory_give_the_same_bits() -> None:
    x_NC = np.random.default_rng(0).normal(5, 3, (999, 3))
    for other in (np.asfortranarray(x_NC), np.repeat(x_NC, 2, axis=0)[::2]):
        assert of(other).mean_C.tolist() == of(x_NC).mean_C.tolist()
        assert of(other).deviation_C.tolist() == of(x_NC).deviation_C.tolist()


def test_the_largest_numbers_are_measured_or_refused() -> None:
    x_NC = np.array([[-1.5e308], [1.5e308], [1.5e308], [-1.5e308]])
    assert of(x_NC).deviation_C[0] == pytest.approx(1.5e308)
    with pytest.raises(DataError, match=r"channel 0 \(-1\.5e\+308 to 1\.5e\+308\) are too far"):
        of(x_NC[:1], x_NC[1:])
