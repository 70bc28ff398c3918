"""Projects flat images onto a sphere, as the spherical CIFAR-100 was made (Cohen et al. 2018).

A unit sphere stands with its south pole on the middle of the image, which spans [-1.5, 1.5]^2. A
light just above the north pole maps every point of the sphere to the plane: that is the pixel which
the point shows. The points are those of the Driscoll-Healy grid: 2b angles from the north pole,
pi j / 2b, and 2b around it, pi k / b. The grid is turned first, by a random rotation.

Written from the geometry. As published: a value is the mean of the pixels one before and one after
its own, weighted by distance; pixels outside of the image are 0; and each channel of each image is
stretched to 0 .. 255.

Shapes: b bandwidth, G points (4 b^2), S side of an image, n images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

BANDWIDTH = 30
CHUNK = 500
"""As many images in a row are turned alike, as published."""
LIGHT = 2 + 1e-3
"""Height of the light above the plane; the north pole is at 2."""
HALF = 1.5
"""Half the side of the image on the plane."""

Numbers = NDArray[np.float64]


def grid(bandwidth: int = BANDWIDTH) -> Numbers:
    """Points of the sphere ``[3, 2b, 2b]``: x, y, z, by angle from the pole, then around it."""
    steps = np.arange(2 * bandwidth) * np.pi / bandwidth
    polar, around = np.meshgrid(steps / 2, steps, indexing="ij")
    ring = np.sin(polar)
    return np.stack([ring * np.cos(around), ring * np.sin(around), np.cos(polar)])


def rotation(random: np.random.Generator) -> Numbers:
    """A rotation drawn evenly from all of them (Arvo 1992): about z, then z onto any point."""
    turn, place, height = random.uniform(size=3)
    c, s = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    about_z = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    # v has length 1; 2 v v' - 1 turns by half around v.
    v = np.array(
        [
            np.sqrt(height) * np.sin(2 * np.pi * place),
            np.sqrt(height) * np.cos(2 * np.pi * place),
            np.sqrt(1 - height),
        ]
    )
    turned: Numbers = (2 * np.outer(v, v) - np.eye(3)) @ about_z
    return turned


def pixels(points: Numbers, side: int) -> Numbers:
    """Where points of the sphere ``[3, ...]`` lie on the image, in pixels: ``[2, ...]``."""
    flat: Numbers = points[:2] * LIGHT / (LIGHT - 1 - points[2])
    place: Numbers = (flat + HALF) / (2 * HALF) * side
    return place


def weights(points: Numbers, side: int) -> csr_matrix:
    """The pixels that each point shows: ``[G, S * S]``, rows of an image first."""
    place = pixels(points.reshape(3, -1), side)
    own = np.trunc(place)
    rows, columns, values = [], [], []
    for first in (-1, 1):
        for second in (-1, 1):
            at = own + np.array([[first], [second]])
            inside = ((at >= 0) & (at < side)).all(axis=0)
            # The nearer of the two pixels counts more: they are two apart.
            share = (1 - np.abs(at - place) / 2).prod(axis=0)
            rows.append(np.flatnonzero(inside))
            columns.append((at[0] * side + at[1])[inside].astype(np.int64))
            values.append(share[inside])
    shape = (place.shape[1], side * side)
    parts = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return csr_matrix(parts, shape=shape)


def project(images: NDArray[np.uint8], points: Numbers) -> NDArray[np.uint8]:
    """Images ``[n, C, S, S]`` on points ``[3, ...]`` of the sphere, ``[n, C, ...]``."""
    flat = images.reshape(-1, images.shape[2] * images.shape[3]).astype(np.float64)
    shown = np.asarray(weights(points, images.shape[2]) @ flat.T).T
    low, high = shown.min(axis=1, keepdims=True), shown.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        stretched = (shown - low) / (high - low) * 255
    # A channel without any contrast has nothing to stretch.
    bytes_ = np.where(high > low, stretched, 0.0).astype(np.uint8)
    return bytes_.reshape(*images.shape[:2], *points.shape[1:])


def projections(
    images: NDArray[np.uint8], seed: int, part: int, bandwidth: int = BANDWIDTH
) -> Iterator[NDArray[np.uint8]]:
    """All images ``[n, C, S, S]`` on the sphere, in order, ``CHUNK`` at a time.

    The rotation of a chunk depends on (seed, part, number of the chunk) alone.
    """
    fixed = grid(bandwidth)
    for number, start in enumerate(range(0, len(images), CHUNK)):
        turned = np.tensordot(rotation(np.random.default_rng([seed, part, number])), fixed, 1)
        yield project(images[start : start + CHUNK], turned)
