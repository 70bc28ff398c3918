"""What is said where a rival's package is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator


def installed(package: str) -> bool:
    """Whether a package can be imported; imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        return False
    # A plain folder of that name has no origin.
    return spec is not None and spec.origin is not None


def absent(package: str, extra: str) -> Iterator[str]:
    """Yield one line if a package is not installed."""
    if not installed(package):
        yield f"needs the package '{package}'; install it: pip install 'xmodal[{extra}]'"
