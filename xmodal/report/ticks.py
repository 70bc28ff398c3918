"""Which ratios of two errors are named on an axis."""

from __future__ import annotations

import math

RATIOS = (
    (0.98, 0.99, 1.0, 1.01, 1.02),
    (0.96, 0.98, 1.0, 1.02, 1.04),
    (0.9, 0.95, 1.0, 1.05, 1.1),
    (0.8, 0.9, 1.0, 1.1, 1.25),
    (0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0),
    (0.2, 0.33, 0.5, 1.0, 2.0, 3.0, 5.0),
    (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    (0.01, 0.1, 1.0, 10.0, 100.0),
)
"""Ratios of two errors for axis labels, finest first."""
TICK_GAP = 0.11
"""The least distance of two labels, as a share of the axis: about the width of one."""


def ratio_ticks(end: float) -> tuple[float, ...]:
    """The ratios to label on an axis from log-ratio ``-end`` to ``end``."""
    for ratios in RATIOS:
        shown = tuple(r for r in ratios if abs(math.log(r)) <= end)
        if len(shown) == len(ratios) and abs(math.log(ratios[-1])) < 0.45 * end:
            continue
        if len(shown) > 1:
            return _apart(shown, TICK_GAP * 2 * end)
    return _apart(RATIOS[-1], TICK_GAP * 2 * end) if end > 1 else (1.0,)


def _apart(ratios: tuple[float, ...], gap: float) -> tuple[float, ...]:
    """1 and the ratios on both sides whose logarithms are ``gap`` apart, so that labels are too."""
    kept = [1.0]
    for side in (sorted(r for r in ratios if r > 1), sorted(r for r in ratios if r < 1)[::-1]):
        last = 1.0
        for ratio in side:
            if abs(math.log(ratio / last)) >= gap:
                kept.append(ratio)
                last = ratio
    return tuple(sorted(kept))
