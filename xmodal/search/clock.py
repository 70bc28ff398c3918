"""The time of a search: what is left, and what a trial will take.

The clock decides only which trials start; it changes none of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from xmodal.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
MARGIN = 1.3
"""A trial starts only if there is time for a third more than it should take."""


def seconds(text: str, option: str = "--time") -> float:
    """A duration such as ``90``, ``90s``, ``10m``, ``1.5h``; bare numbers are seconds.

    Raises UsageError, which names the ``option``.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if not found or not float(found[1]):
        raise UsageError(f"{option}: '{text}' is not a duration such as 90s, 10m or 2h")
    return float(found[1]) * _UNITS[found[2] or "s"]


BYTES = {"": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
WAITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


def amount(text: str, option: str, units: Mapping[str, float]) -> float:
    """A number with one of some units, such as ``4GB`` or ``5ms``. Raises UsageError."""
    found = _AMOUNT.fullmatch(text.strip().lower())
    if not found or found[2] not in units or not float(found[1]):
        known = ", ".join(filter(None, units))
        raise UsageError(f"{option}: '{text}' is not a number above 0 with a unit ({known})")
    return float(found[1]) * units[found[2]]


@dataclass
class Clock:
    """Counts a limit down; None is no limit. ``begun`` and all times are of ``time.monotonic``."""

    limit: float | None
    begun: float = field(default_factory=time.monotonic)
    _rates: dict[str, float] = field(default_factory=dict)
    _cheap: list[float] = field(default_factory=list)

    def spent(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.begun

    def left(self) -> float:
        """Seconds until the limit; below 0 after it."""
        return float("inf") if self.limit is None else self.limit - self.spent()

    def learn(self, name: str, cost: float, took: float) -> None:
        """Take note of what a run of the answer ``name`` took."""
        if cost:
            self._rates[name] = took / cost
        else:
            self._cheap.append(took)

    def expected(self, name: str, cost: float) -> float:
        """Seconds that a run should take; 0 while there is nothing to go by.

        It goes by earlier runs of the same answer, otherwise by the middle one of the others. A
        cheap answer (cost 0) is expected to take as long as the slowest one so far.
        """
        if not cost:
            return max(self._cheap, default=0.0)
        rate = self._rates.get(name) or (median(self._rates.values()) if self._rates else 0.0)
        return cost * rate

    def allows(self, name: str, cost: float, reserved: float) -> bool:
        """Whether a run may start, if ``reserved`` seconds are to be left after it."""
        needed = MARGIN * self.expected(name, cost) + reserved
        return self.left() > 0 and needed < self.left()
