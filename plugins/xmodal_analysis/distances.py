"""Measures a distance between two sets of points."""

from __future__ import annotations

import torch

from xmodal import randomness
from xmodal.batch import Points
from xmodal.data import Store
from xmodal.errors import UsageError
from xmodal.interfaces import Context, Distance, Facts
from xmodal.settings import Use


def measure(
    use: Use[Distance], facts: Facts, store: Store, seed: int, first: Points, second: Points
) -> float:
    """The distance from ``second`` to ``first``; deterministic.

    Raises UsageError if the sets cannot be compared.
    """
    widths = first.x_ND.shape[1], second.x_ND.shape[1]
    if widths[0] != widths[1]:
        raise UsageError(f"points of width {widths[0]} and {widths[1]} cannot be compared")
    generator = randomness.generator(seed, "analysis", "distance")
    distance = use.build(Context(facts=facts, generator=generator, store=store))
    with torch.no_grad(), randomness.seeded(seed, "analysis", "distance"):
        distance.fit(first)
        return float(distance(second))
