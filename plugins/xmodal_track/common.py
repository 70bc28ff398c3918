"""Shared code of the trackers: the setting for steps, flat recipes, the check for a package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from xmodal.interfaces import Settings

Plain = str | int | float | bool


class TrackerSettings(Settings):
    """Settings of every tracker."""

    every_steps: int | None = Field(
        10, ge=1, description="Optimizer steps between tracked steps; null tracks only epochs."
    )


def absent(package: str, extra: str) -> Iterator[str]:
    """Yield one line if a package is not installed; imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        spec = None
    # A plain folder of that name, such as the one W&B leaves behind, has no origin.
    if spec is None or spec.origin is None:
        yield f"needs the package '{package}'; install it: pip install 'xmodal[{extra}]'"


def flat(value: Any, path: str = "") -> dict[str, Plain]:
    """Nested settings with dotted names; unset values read ``none``.

    ``{"stages": [{"use": "finetune"}]}`` gives ``{"stages.0.use": "finetune"}``.
    """
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        return {path: "none" if value is None else value}
    found: dict[str, Plain] = {}
    for key, inner in items:
        found |= flat(inner, f"{path}.{key}" if path else key)
    return found
