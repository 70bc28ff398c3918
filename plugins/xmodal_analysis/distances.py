"""Chooses a registered distance by name and measures it between sets of points."""

from __future__ import annotations

import torch
from pydantic import TypeAdapter, ValidationError

from xmodal import randomness
from xmodal.batch import Points
from xmodal.data.store import Store
from xmodal.errors import UsageError
from xmodal.interfaces import Context, Distance, Facts
from xmodal.plugins import Registry
from xmodal.recipe.yaml import parse_value
from xmodal.settings import Use


def choose(text: str, registry: Registry) -> Use[Distance]:
    """A distance from its name, or from a block such as ``{use: NAME, setting: 1}``.

    Raises UsageError with the nearest right name.
    """
    value = parse_value(text, f"--distance '{text}'")
    if isinstance(value, str):
        registry.entry("distance", value)
    try:
        return TypeAdapter(Use[Distance]).validate_python(value, context={"registry": registry})
    except ValidationError as error:
        lines = [
            ".".join(str(part) for part in item["loc"])
            + (": " if item["loc"] else "")
            + _hinted(item["msg"], item.get("ctx", {}))
            for item in error.errors(include_url=False)
        ]
        raise UsageError(f"--distance '{text}': " + "; ".join(lines)) from None


def _hinted(message: str, context: object) -> str:
    known = context.get("known") if isinstance(context, dict) else None
    return f"{message} (known: {known})" if known and "known" not in message else message


def measure(
    use: Use[Distance], facts: Facts, store: Store, seed: int, first: Points, second: Points
) -> float:
    """The distance of ``second`` to ``first``; the same numbers every time.

    Raises UsageError where the sets cannot be compared.
    """
    widths = first.x_ND.shape[1], second.x_ND.shape[1]
    if widths[0] != widths[1]:
        raise UsageError(f"points of width {widths[0]} and {widths[1]} have no distance")
    generator = randomness.generator(seed, "analysis", "distance")
    distance = use.build(Context(facts=facts, generator=generator, store=store))
    with torch.no_grad(), randomness.seeded(seed, "analysis", "distance"):
        distance.fit(first)
        return float(distance(second))
