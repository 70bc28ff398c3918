"""JAX's random stream in NumPy, and PDEBench's random initial fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xmodal_pdebench import advection, gas, initial, threefry

KEY = threefry.key(2022)


@pytest.mark.parametrize(
    ("secret", "counts", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_answers(secret: Any, counts: Any, expected: Any) -> None:
    # From the known-answer file of Random123 (Salmon et al. 2011).
    found = threefry._hash(np.array(secret, np.uint32), np.array(counts, np.uint32))
    assert tuple(found) == expected


def test_numbers_are_those_of_jax() -> None:
    # Printed by JAX 0.10.2 with jax_threefry_partitionable=False.
    assert threefry.bits(KEY, (3,)).tolist() == [521782358, 3403139485, 3672138398]
    assert np.concatenate(threefry.split(KEY)).tolist() == threefry.bits(KEY, (4,)).tolist()
    floats = threefry.uniform(KEY, (3,)).view(np.uint32)
    assert floats.tolist() == [1039715872, 1061869512, 1062920290]
    assert threefry.randint(KEY, (8,), 0, 3).tolist() == [0, 0, 0, 0, 1, 2, 2, 1]
    even = threefry.choice(KEY, (12,), (0.5, 0.5))
    assert even.tolist() == [1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1]


def test_arrays_are_those_of_jax() -> None:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_threefry_partitionable", False)
    secret, theirs = KEY, jax.random.PRNGKey(2022)
    for shape in ((10_000, 4), (7,)):
        assert np.array_equal(jax.random.bits(theirs, shape), threefry.bits(secret, shape))
        assert np.array_equal(jax.random.uniform(theirs, shape), threefry.uniform(secret, shape))
        theirs, secret = jax.random.split(theirs)[0], threefry.split(secret)[0]


def test_bounded_numbers_lie_in_their_interval() -> None:
    found = threefry.uniform(KEY, (10_000,), 0.1, 0.45)
    assert found.dtype == np.float32
    assert 0.1 <= found.min() < 0.1005
    assert 0.4495 < found.max() < 0.45
    drawn = threefry.randint(KEY, (10_000,), 0, 3)
    assert np.bincount(drawn).tolist() == pytest.approx([3333] * 3, abs=150)
    assert threefry.choice(KEY, (10_000,), (0.9, 0.1)).mean() == pytest.approx(0.1, abs=0.01)


def test_a_field_is_the_sum_that_the_module_describes() -> None:
    drawn = initial.draw(advection.FAMILY, advection.SEED)
    x = advection.FAMILY.centres(1024)
    assert x[0] == 0.5 / 1024
    special = [int(mask.argmax()) for mask in (drawn.folded_N, drawn.windowed_N)]
    for row in (0, *special):
        expected = []
        for point in x[::101]:
            u = 0.0
            for k in range(4):
                times = round(drawn.wave_NK[row, k] * (1 - 1 / 1024) / (2 * np.pi * (k + 1)))
                assert times in (0, 1, 2)
                angle = 2 * np.pi * (k + 1) * times * point / (x[-1] - x[0])
                u += drawn.amplitude_NK[row, k] * np.sin(angle + drawn.phase_NK[row, k])
            u = (abs(u) if drawn.folded_N[row] else u) * drawn.sign_N[row]
            if drawn.windowed_N[row]:
                start, end = drawn.start_N[row], drawn.end_N[row]
                u *= (np.tanh((point - start) / 0.01) - np.tanh((point - end) / 0.01)) / 2
            expected.append(u)
        found = drawn.at(x[::101], slice(row, row + 1))[0]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert drawn.folded_N.mean() == pytest.approx(0.1, abs=0.01)
    assert drawn.windowed_N.mean() == pytest.approx(0.1, abs=0.01)
    assert ((drawn.wave_NK > 0).sum(1) <= 2).all()


def test_grids_sample_the_same_field() -> None:
    drawn = initial.draw(advection.FAMILY, advection.SEED)
    fine, coarse = (drawn.at(advection.FAMILY.centres(n), slice(0, 20)) for n in (768, 256))
    np.testing.assert_allclose(fine[:, 1::3], coarse, atol=1e-12)
    unit_fine, unit_coarse = (
        initial.unit(drawn, advection.FAMILY.centres(n), slice(0, 20)) for n in (768, 256)
    )
    np.testing.assert_allclose(unit_fine[:, 1::3], unit_coarse, atol=1e-12)
    published = initial.unit(drawn, advection.FAMILY.centres(1024), slice(0, 20))
    assert (published.min(1) == 0).all()
    assert (published.max(1) == 1).all()


def test_gas_starts_within_its_bounds_and_shares_streams_between_parts() -> None:
    density, pressure, velocity = gas.initial(2020, slice(0, 500), 1024).swapaxes(0, 1)
    for field, low in ((density, 1.0), (pressure, 10.0)):
        assert (field.min(1) >= low).all()
        assert (field.min(1) < 10 * low).all()
        assert (np.ptp(field, axis=1) >= 0.999 * low).all()
        assert (np.ptp(field, axis=1) < 10.001 * low).all()
    assert (velocity.mean(1) < 0).any()
    # The published seeds overlap: pressure of one part, density of the next.
    later = gas.initial(2021, slice(0, 500), 1024)[:, 0]

    def shape(field: Any) -> Any:
        return (field - field.min(1, keepdims=True)) / np.ptp(field, axis=1)[:, None]

    np.testing.assert_allclose(shape(pressure), shape(later), atol=1e-9)
