"""Simulated exposures of a CCD in space, with cosmic rays in them, and the pixels that they hit.

The detector is like HST's ACS/WFC: pixels of 15 micrometres, as thick as they are wide, read noise
5 electrons. The physics, in electrons:

- The sky is even and grows with the exposure time. Stars have a flux of a power law and a core of
  2 pixels at half height with a fainter halo; galaxies are exponential discs.
- Light and sky have Poisson noise, reading adds Gaussian noise.
- Rays come evenly from all directions, 1.1 per cm^2 and second. Through a plane they come with a
  density of cos(a) sin(a) in the angle a to the normal, so tan(a), the length of the track in units
  of the thickness, exceeds l with probability 1 / (1 + l^2).
- Protons of least ionisation lose energy as Landau's distribution says (its peak and width: Review
  of Particle Physics, "Passage of particles through matter"), 3.65 eV an electron.
- Some knock electrons out that deposit more charge nearby (delta rays, energies of density E^-2).
- Charge spreads by 0.4 pixels before it is collected.

A pixel is hit where the charge of rays exceeds 3 deviations of its noise; where it is between 1 and
3 nobody could tell, and the pixel is to be ignored.

Shapes: R resolution, n rays or sources, s steps of all tracks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

PIXEL_CM = 15e-4
THICKNESS = 1.0
"""In pixels."""
RAYS = 1.1
"""Rays per cm^2 and second in low orbit (ACS handbook: 1.5 to 3 % of the pixels in 1000 s)."""
SECONDS = (340.0, 1300.0)
SKY_PER_SECOND = 0.06
READ_NOISE = 5.0
FULL_WELL = 84_700.0
SPREAD = 0.4
STEP = 0.1
EV_PER_ELECTRON = 3.65
MODE = -0.22278
"""Where Landau's standard density is highest."""
HIT, DOUBT = 3.0, 1.0

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Exposure:
    """``image`` float32, ``hit`` and ``ignore`` uint8, each ``[R, R]``; ``sky`` in electrons."""

    image: NDArray[np.float32]
    hit: NDArray[np.uint8]
    ignore: NDArray[np.uint8]
    sky: float


def expose(seed: int, index: int, resolution: int) -> Exposure:
    """One exposure: a function of its arguments alone."""
    random = np.random.default_rng([seed, index])
    seconds = _log_uniform(random, *SECONDS)
    sky = SKY_PER_SECOND * seconds * _log_uniform(random, 0.5, 2.0)
    light = sky + stars(random, resolution, seconds) + galaxies(random, resolution, seconds)
    charge = rays(random, resolution, seconds)
    noise = np.sqrt(light + READ_NOISE**2)
    collected = np.minimum(random.poisson(light) + charge, FULL_WELL)
    image = collected + random.normal(0, READ_NOISE, light.shape)
    hit = charge > HIT * noise
    doubtful = (charge > DOUBT * noise) & ~hit
    return Exposure(
        image.astype(np.float32), hit.astype(np.uint8), doubtful.astype(np.uint8), float(sky)
    )


# --- light ----------------------------------------------------------------------------------------


def stars(random: np.random.Generator, resolution: int, seconds: float) -> Numbers:
    """Stars, in electrons: flux of density F^-1.8; a core and a halo of 15 %, over each pixel."""
    count = random.poisson(7e-4 * resolution**2)
    flux_n = seconds * _power_law(random, count, 0.2, 200.0, 1.8)
    place = random.uniform(0, resolution, (2, count))
    image = np.zeros((resolution, resolution))
    for share, width in ((0.85, 0.85), (0.15, 2.5)):
        rows, columns = (_over_pixels(at, width, resolution) for at in place)
        image += np.einsum("n,nr,nc->rc", share * flux_n, rows, columns)
    return image


def galaxies(random: np.random.Generator, resolution: int, seconds: float) -> Numbers:
    """Discs, in electrons: brightness exp(-r / h), tilted, smoothed at the centre by the optics."""
    count = random.poisson(4e-4 * resolution**2)
    flux_n = seconds * _power_law(random, count, 1.0, 100.0, 1.7)
    scale_n = np.exp(random.uniform(np.log(1.0), np.log(5.0), count))
    axes_n, turn_n = random.uniform(0.3, 1, count), random.uniform(0, np.pi, count)
    place = random.uniform(0, resolution, (2, count))
    centre = np.arange(resolution) + 0.5
    image = np.zeros((resolution, resolution))
    for flux, scale, axes, turn, (row, column) in zip(
        flux_n, scale_n, axes_n, turn_n, place.T, strict=True
    ):
        y, x = np.meshgrid(centre - row, centre - column, indexing="ij")
        along = x * np.cos(turn) + y * np.sin(turn)
        across = (y * np.cos(turn) - x * np.sin(turn)) / axes
        radius = np.sqrt(along**2 + across**2 + 0.8**2)
        image += flux * np.exp(-radius / scale) / (2 * np.pi * axes * scale**2)
    return image


def _over_pixels(at_n: Numbers, width: float, resolution: int) -> Numbers:
    """The share of a Gaussian at ``at_n`` that falls on each pixel of a line, ``[n, R]``."""
    edges = (np.arange(resolution + 1) - at_n[:, None]) / width
    return np.diff(ndtr(edges), axis=1)


def _log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def _power_law(
    random: np.random.Generator, count: int, low: float, high: float, power: float
) -> Numbers:
    """Numbers between ``low`` and ``high`` of density x^-power."""
    ends = np.array([low, high]) ** (1 - power)
    u = random.uniform(size=count)
    drawn: Numbers = (ends[0] + u * (ends[1] - ends[0])) ** (1 / (1 - power))
    return drawn


# --- cosmic rays ----------------------------------------------------------------------------------


def rays(random: np.random.Generator, resolution: int, seconds: float) -> Numbers:
    """The charge of all rays of an exposure, in electrons, ``[R, R]``."""
    margin = 10  # rays that come in from beside the image
    side = resolution + 2 * margin
    count = random.poisson(RAYS * seconds * (side * PIXEL_CM) ** 2)
    start = random.uniform(-margin, resolution + margin, (2, count))
    tangent_n = lengths(random, count)
    path_n = np.sqrt(1 + tangent_n**2) * THICKNESS
    charge_n = losses(random, path_n)
    turn_n = random.uniform(0, 2 * np.pi, count)
    way = np.stack([np.sin(turn_n), np.cos(turn_n)]) * tangent_n * THICKNESS
    steps_n = np.ceil(tangent_n * THICKNESS / STEP).astype(np.int64) + 1
    of_s = np.repeat(np.arange(count), steps_n)
    number_s = np.arange(len(of_s)) - np.repeat(np.cumsum(steps_n) - steps_n, steps_n)
    share_s = (number_s + 0.5) / steps_n[of_s]
    # Charge along a track is uneven.
    weight_s = random.gamma(2.0, size=len(of_s))
    weight_s /= np.bincount(of_s, weight_s, minlength=count)[of_s]
    at = start[:, of_s] + way[:, of_s] * share_s
    charge_s = charge_n[of_s] * weight_s
    more = deltas(random, start, way, path_n)
    return collect(
        np.concatenate([at, more[:2]], axis=1), np.concatenate([charge_s, more[2]]), resolution
    )


def lengths(random: np.random.Generator, count: int) -> Numbers:
    """tan(a) of rays through a plane: their squared cosine is even on [0, 1]. At most 60."""
    squared = random.uniform(size=count)
    tangent: Numbers = np.sqrt(1 / np.maximum(squared, 1e-9) - 1)
    return np.minimum(tangent, 60.0)


def losses(random: np.random.Generator, path_n: Numbers) -> Numbers:
    """The charge that each ray frees on its path (in pixels), in electrons; at most a full well."""
    width, peak = width_and_peak(path_n * PIXEL_CM)
    drawn = peak + width * (landau(random, len(path_n)) - MODE)
    return np.clip(drawn / EV_PER_ELECTRON, 50.0, FULL_WELL)


def width_and_peak(path_cm: Numbers) -> tuple[Numbers, Numbers]:
    """Width xi and most probable loss, in eV, of a singly charged particle with p = 3.5 m c.

    Review of Particle Physics, eqs. 34.12: silicon has Z / A = 0.4985 mol/g, 2.329 g/cm^3 and a
    mean excitation energy of 173 eV.
    """
    momentum = 3.5
    speed = momentum**2 / (1 + momentum**2)
    width = 0.153537e6 * 0.4985 * 2.329 * path_cm / speed
    peak = width * (np.log(2 * 0.510999e6 * momentum**2 / 173) + np.log(width / 173) + 0.2 - speed)
    return width, peak


def landau(random: np.random.Generator, count: int) -> Numbers:
    """Landau's standard distribution: stable, of exponent 1 and full skewness (Chambers 1976)."""
    angle = random.uniform(-np.pi / 2, np.pi / 2, count)
    wait = random.exponential(size=count)
    half = np.pi / 2
    skewed = (half + angle) * np.tan(angle) - np.log(half * wait * np.cos(angle) / (half + angle))
    drawn: Numbers = skewed + np.log(half)
    return drawn


def deltas(random: np.random.Generator, start: Numbers, way: Numbers, path_n: Numbers) -> Numbers:
    """Electrons that rays knock out: row, column and charge, ``[3, m]``.

    One in 20 pixels of a path, of 2 to 60 keV with density E^-2. They wander as far as electrons of
    their energy reach in silicon, 0.0171 E^1.75 micrometres, and stay a blob of charge each 5 keV.
    """
    count_n = random.poisson(0.05 * path_n)
    of_m = np.repeat(np.arange(len(path_n)), count_n)
    energy_m = _power_law(random, len(of_m), 2.0, 60.0, 2.0)
    blobs_m = np.ceil(energy_m / 5).astype(np.int64)
    share_m = random.uniform(size=len(of_m))
    at = start[:, of_m] + way[:, of_m] * share_m
    of_b = np.repeat(np.arange(len(of_m)), blobs_m)
    reach_m = 0.0171 * energy_m**1.75 / 15
    steps = random.normal(size=(2, len(of_b))) * (reach_m / np.sqrt(blobs_m))[of_b]
    walked = np.cumsum(steps, axis=1)
    first = np.cumsum(blobs_m) - blobs_m
    begun = np.zeros((2, len(of_m))) if not len(of_m) else walked[:, first] - steps[:, first]
    place = at[:, of_b] + walked - begun[:, of_b]
    charge = (energy_m * 1000 / EV_PER_ELECTRON / blobs_m)[of_b]
    return np.concatenate([place, charge[None]])


def collect(at: Numbers, charge_s: Numbers, resolution: int) -> Numbers:
    """Charge freed at ``at`` ``[2, s]`` (row, column) as pixels collect it, ``[R, R]``."""
    reach = 3
    first = np.floor(at).astype(np.int64) - reach
    offsets = np.arange(2 * reach + 2)
    edges = (first[:, :, None] + offsets - at[:, :, None]) / SPREAD
    rows, columns = np.diff(ndtr(edges), axis=2)
    row = first[0][:, None] + offsets[:-1]
    column = first[1][:, None] + offsets[:-1]
    values = charge_s[:, None, None] * rows[:, :, None] * columns[:, None, :]
    inside = ((row >= 0) & (row < resolution))[:, :, None] & (
        (column >= 0) & (column < resolution)
    )[:, None, :]
    place = (row[:, :, None] * resolution + column[:, None, :])[inside]
    total = np.bincount(place, values[inside], minlength=resolution**2)
    return np.asarray(total, np.float64).reshape(resolution, resolution)
