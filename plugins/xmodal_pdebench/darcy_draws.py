"""PDEBench's random permeabilities and starts for Darcy flow, from the seeds that it used.

Samples come in 50 batches of 200; batch k has JAX's key 2020 + k. In float32, as there.

Shapes: B = 200 samples of a batch, n cells per side; ``[B, n, n]``, x first.
"""

from __future__ import annotations

import numpy as np

from xmodal_pdebench import threefry
from xmodal_pdebench.threefry import Single

BATCH = 200
FIRST_KEY = 2020
BUMPS = 5
WAVES = 4
LOW = 0.1
LEVEL = (0.1, 10.0)
"""The level of a start is uniform between these two; its waves and windows have no mean effect."""
WIDTH = np.float32(0.01)


def centres(n: int) -> Single:
    """Centres of the cells along one axis of the unit square."""
    edges = np.linspace(0, 1, n + 1, dtype=np.float32)
    return edges[:-1] + np.float32(0.5 / n)


def permeability(batch: int, n: int) -> Single:
    """nu: 1 where five random bumps exceed their mean over the whole batch, elsewhere 0.1.

    So it is not the case that half of every sample is 1: some have almost none.
    """
    key = threefry.key(FIRST_KEY + batch)
    x_BM = threefry.uniform(key, (BATCH, BUMPS))
    key, _ = threefry.split(key)
    y_BM = threefry.uniform(key, (BATCH, BUMPS))
    key, _ = threefry.split(key)
    width_BM = np.float32(0.5) * threefry.uniform(key, (BATCH, BUMPS))
    c = centres(n)
    with np.errstate(divide="ignore"):
        along_x, along_y = (
            np.exp(-((c - at_BM[..., None]) ** 2) / width_BM[..., None]) for at_BM in (x_BM, y_BM)
        )
    sum_Bnn = np.matmul(along_x.transpose(0, 2, 1), along_y)
    return np.where(sum_Bnn > sum_Bnn.mean(dtype=np.float64), 1, LOW).astype(np.float32)


def start(batch: int, n: int) -> Single:
    """u at time 0: a random level, plus waves that all samples of a batch share, scaled.

    In half of the samples the waves are kept in a random rectangle only.
    """
    key = threefry.key(FIRST_KEY + batch)
    level_B = threefry.uniform(key, (BATCH,), *LEVEL)[:, None, None]
    key, _ = threefry.split(key)
    scale_B = threefry.uniform(key, (BATCH,), 1e-2, 0.5)[:, None, None]
    waves = _waves(batch, n)
    u = level_B + scale_B * waves / np.abs(waves).mean()
    key, _ = threefry.split(key)
    kept_B = threefry.choice(key, (BATCH,), (0.5, 0.5)) == 1
    left_B = threefry.uniform(key, (BATCH,), 0.1, 0.45)
    right_B = threefry.uniform(key, (BATCH,), 0.55, 0.9)
    key, _ = threefry.split(key)
    low_B = threefry.uniform(key, (BATCH,), 0.1, 0.45)
    high_B = threefry.uniform(key, (BATCH,), 0.55, 0.9)
    along_x, along_y = _window(left_B, right_B, n), _window(low_B, high_B, n)
    inside = np.where(kept_B[:, None, None], along_x[:, :, None] * along_y[:, None, :], 1)
    return np.asarray(u * inside + level_B * (1 - inside), np.float32)


def _waves(batch: int, n: int) -> Single:
    """Sine waves of random phase with wave numbers -4 .. 4 along each axis, none of them 0."""
    key = threefry.key(FIRST_KEY + batch)
    c = centres(n)
    total = np.zeros((n, n), np.float32)
    numbers = [k for k in range(-WAVES, WAVES + 1) if k]
    for j in numbers:
        for i in numbers:
            key, _ = threefry.split(key)
            phase = np.float32(2 * np.pi) * threefry.uniform(key, (1,))
            kx, ky = np.float32(2 * np.pi * i), np.float32(2 * np.pi * j)
            size = np.float32(1) / np.sqrt(np.sqrt(kx**2 + ky**2))
            total += size * np.sin(kx * c[:, None] + ky * c[None, :] + phase)
    return total


def _window(low_B: Single, high_B: Single, n: int) -> Single:
    """1 between two places, 0 outside, ``[B, n]``."""
    c = centres(n)
    rising, falling = (np.tanh((c - at_B[:, None]) / WIDTH) for at_B in (low_B, high_B))
    return np.asarray(np.float32(0.5) * (rising - falling))
