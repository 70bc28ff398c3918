"""Simulated cosmic rays: directions, losses, charge and noise against what physics says of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xmodal_standins import cosmic_rays as sim

N = 20_000


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_tracks_come_evenly_from_all_directions() -> None:
    """Rays that are even in all directions cross a plane with density cos(a) d(solid angle)."""
    way = random(1).normal(size=(400_000, 3))
    cosine = np.abs(way[:, 2]) / np.linalg.norm(way, axis=1)
    # A ray's chance to cross the plane is proportional to its cosine.
    crossing = cosine[random(2).uniform(size=len(cosine)) < cosine]
    expected = np.sqrt(1 / crossing**2 - 1)
    found = sim.lengths(random(3), N)
    assert stats.ks_2samp(found, expected).pvalue > 1e-3
    assert np.mean(found > 2) == pytest.approx(1 / 5, abs=0.01)


def test_losses_are_landau() -> None:
    """SciPy's is in the form of stable distributions of scale 1; Landau's own has scale pi / 2."""
    own = stats.landau(np.log(np.pi / 2), np.pi / 2)
    assert stats.kstest(sim.landau(random(), N), own.cdf).pvalue > 1e-3
    grid = np.linspace(-1, 1, 20_001)
    assert grid[np.argmax(own.pdf(grid))] == pytest.approx(sim.MODE, abs=1e-3)
    assert own.median() == pytest.approx(1.35578, abs=1e-4)  # Kolbig and Schorr 1984


def test_the_most_probable_loss_in_silicon() -> None:
    """Bichsel (1988), Review of Particle Physics fig. 34.8: about 250 eV a micrometre in 320
    micrometres, 8 % less in 80, and less in less."""
    _, peak = sim.width_and_peak(np.array([320e-4, 80e-4, 15e-4]))
    per_micrometre = peak / np.array([320, 80, 15])
    assert per_micrometre[0] == pytest.approx(260, rel=0.08)
    assert 0.85 < per_micrometre[1] / per_micrometre[0] < 0.95
    assert 50 < per_micrometre[2] / sim.EV_PER_ELECTRON < 65  # electrons


def test_charge_is_kept_and_lies_where_it_was_freed() -> None:
    at = random().uniform(6, 26, (2, 50))
    charge = random(1).uniform(100, 1000, 50)
    pixels = sim.collect(at, charge, 32)
    assert pixels.sum() == pytest.approx(charge.sum(), rel=1e-9)
    centre = np.arange(32) + 0.5
    # Pixels are wider than the spread, so the centre moves by up to a hundredth of a pixel.
    assert (pixels.sum(1) @ centre) == pytest.approx(at[0] @ charge, rel=1e-3)
    assert (pixels.sum(0) @ centre) == pytest.approx(at[1] @ charge, rel=1e-3)
    spread = []
    for shift in np.linspace(0, 1, 20, endpoint=False):
        one = sim.collect(np.array([[10 + shift], [10.5]]), np.array([1.0]), 32)
        spread.append(one.sum(1) @ (centre - 10 - shift) ** 2)
    # The spread of a Gaussian and, over all places within a pixel, that of a pixel.
    assert np.mean(spread) == pytest.approx(sim.SPREAD**2 + 1 / 12, rel=1e-6)


def test_the_rate_of_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as come; their charge, cut at a full well, is that of their paths."""
    starts = []
    collect = sim.collect

    def counted(at: np.ndarray, charge: np.ndarray, resolution: int) -> np.ndarray:
        starts.append(charge.sum())
        return collect(at, charge, resolution)

    monkeypatch.setattr(sim, "collect", counted)
    calls = []
    lengths = sim.lengths
    monkeypatch.setattr(sim, "lengths", lambda r, n: calls.append(n) or lengths(r, n))
    for seed in range(200):
        sim.rays(random(seed), 64, 1000.0)
    expected = sim.RAYS * 1000 * (84 * 15e-4) ** 2
    assert np.mean(calls) == pytest.approx(expected, abs=4 * np.sqrt(expected / 200))


def test_noise_of_an_empty_sky(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stars", "galaxies", "rays"):
        monkeypatch.setattr(sim, name, lambda r, size, seconds: np.zeros((size, size)))
    one = sim.expose(3, 7, 200)
    assert one.image.mean() == pytest.approx(one.sky, abs=4 * np.sqrt(one.sky + 25) / 200)
    assert one.image.var() == pytest.approx(one.sky + sim.READ_NOISE**2, rel=0.03)
    assert not one.hit.any()
    assert not one.ignore.any()


def test_which_pixels_are_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stars", "galaxies"):
        monkeypatch.setattr(sim, name, lambda r, size, seconds: np.zeros((size, size)))
    charge = np.zeros((20, 20))
    monkeypatch.setattr(sim, "rays", lambda r, size, seconds: charge)
    sky = sim.expose(0, 0, 20).sky
    noise = np.sqrt(sky + 25)
    charge[3, 4], charge[5, 6], charge[7, 8] = 3.01 * noise, 2.99 * noise, 0.99 * noise
    one = sim.expose(0, 0, 20)
    assert np.argwhere(one.hit).tolist() == [[3, 4]]
    assert np.argwhere(one.ignore).tolist() == [[5, 6]]


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    one, again = sim.expose(1, 5, 48), sim.expose(1, 5, 48)
    assert np.array_equal(one.image, again.image)
    assert not np.array_equal(one.image, sim.expose(1, 6, 48).image)
    assert not np.array_equal(one.image, sim.expose(2, 5, 48).image)


def test_as_many_pixels_as_in_orbit() -> None:
    """ACS handbook: 1.5 to 3 % of the pixels in 1000 s; exposures here are of 340 to 1300 s."""
    many = [sim.expose(0, n, 128) for n in range(40)]
    share = np.mean([one.hit.mean() for one in many])
    assert 0.008 < share < 0.03
    assert np.isfinite([one.image for one in many]).all()
