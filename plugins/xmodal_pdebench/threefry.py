"""JAX's random numbers in NumPy: the stream of its Threefry-2x32 keys, as of 2022.

PDEBench drew its initial conditions with JAX, which then counted in one sequence over an array
(today's ``jax_threefry_partitionable=False``). The numbers are those of JAX, bit for bit: Threefry
is the counter-based generator of Salmon et al. (SC 2011), and uniform numbers are made of the upper
23 bits in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

Key = npt.NDArray[np.uint32]
"""Two words."""
Bits = npt.NDArray[np.uint32]
Single = npt.NDArray[np.float32]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def key(seed: int) -> Key:
    """The key of a seed below 2^32 (``PRNGKey``)."""
    return np.array([0, seed], np.uint32)


def _hash(secret: Key, counts: Bits) -> Bits:
    """Threefry-2x32 with 20 rounds of each pair: the first half of ``counts`` with the second."""
    words = [secret[0], secret[1], secret[0] ^ secret[1] ^ _PARITY]
    pad = counts.size % 2
    a, b = np.split(np.append(counts, np.zeros(pad, np.uint32)), 2)
    with np.errstate(over="ignore"):
        a, b = a + words[0], b + words[1]
        for block in range(5):
            for turn in _ROTATIONS[block % 2]:
                a = a + b
                b = (b << np.uint32(turn) | b >> np.uint32(32 - turn)) ^ a
            a = a + words[(block + 1) % 3]
            b = b + words[(block + 2) % 3] + np.uint32(block + 1)
    joined = np.concatenate([a, b])
    return joined[:-1] if pad else joined


def split(secret: Key) -> tuple[Key, Key]:
    """Two new keys."""
    first, second = _hash(secret, np.arange(4, dtype=np.uint32)).reshape(2, 2)
    return first, second


def bits(secret: Key, shape: Sequence[int]) -> Bits:
    """32 random bits for every element."""
    return _hash(secret, np.arange(prod(shape), dtype=np.uint32)).reshape(shape)


def uniform(secret: Key, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Single:
    """Numbers in [low, high), float32."""
    # An exponent of 0 makes numbers in [1, 2).
    fraction = (bits(secret, shape) >> np.uint32(9)) | np.uint32(0x3F800000)
    unit = fraction.view(np.float32) - np.float32(1)
    least, most = np.float32(low), np.float32(high)
    return np.asarray(np.maximum(least, unit * (most - least) + least))


def randint(secret: Key, shape: Sequence[int], low: int, high: int) -> npt.NDArray[np.int32]:
    """Whole numbers in [low, high), int32."""
    span = np.uint32(high - low)
    # Two words for each number: 64 bits modulo the span, in arithmetic of 32 bits.
    upper, lower = (bits(half, shape) for half in split(secret))
    with np.errstate(over="ignore"):
        factor = np.uint32(2**16) % span
        factor = factor * factor % span
        offset = (upper % span * factor + lower % span) % span
    return (np.int64(low) + offset).astype(np.int32)


def choice(secret: Key, shape: Sequence[int], weights: Sequence[float]) -> npt.NDArray[np.int64]:
    """Indices into ``weights``, drawn in proportion to them."""
    total = np.cumsum(np.asarray(weights, np.float32), dtype=np.float32)
    # In float32, 1 - u is in (0, 1], which keeps an index of weight 0 from being drawn.
    drawn = total[-1] * (np.float32(1) - uniform(secret, shape))
    return np.asarray(np.searchsorted(total, drawn))
