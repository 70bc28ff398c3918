"""Table of contents of this plugin: nothing named here is imported before a recipe asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from xmodal import hookimpl


@hookimpl
def xmodal_selectors() -> Mapping[str, str]:
    """Selectors by recipe name."""
    return {"top-norm": "xmodal_topnorm.selector:TopNorm"}


@hookimpl
def xmodal_mixers() -> Mapping[str, str]:
    """Mixers by recipe name."""
    return {"swap-weakest": "xmodal_topnorm.mixer:SwapWeakest"}


@hookimpl
def xmodal_recipes() -> Traversable:
    """The recipes in this package."""
    return files("xmodal_topnorm") / "recipes"
