"""A data file of the user's own where a recipe is expected: ``xmodal run table.csv``.

A plugin says which recipe reads it (hook ``xmodal_data_recipe``), from the headers of the file; the
path becomes a setting of that recipe's task.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodal.errors import PluginError, UsageError, XModalError
from xmodal.plugins import Registry, reason
from xmodal.recipe.lookup import METHODS, SUFFIX, all_recipes, expanded, method_and_task
from xmodal.recipe.yaml import parse_value
from xmodal.text import shown

DEFAULT_METHOD = METHODS + "pare"
"""The method where a data file is all that is named, as in ``FineTuner()``."""
_TASK = "task."


@dataclass(frozen=True)
class OwnData:
    """A data file and the recipe that reads it, such as ``arrays/row`` with ``task.path``."""

    path: Path
    recipe: str
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What tables call it: the name of the file without its ending."""
        return self.path.stem

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings of the task as ``key=value``."""
        return tuple(f"{_TASK}{key}={json.dumps(value)}" for key, value in self.settings.items())


def own_data(reference: str, registry: Registry, overrides: Sequence[str] = ()) -> OwnData | None:
    """The recipe for a data file or a folder of data; None for what names a recipe, or nothing.

    Settings of the task among ``overrides`` (``task.form=grid``) are heeded. Raises DataError for
    data that cannot be read, or a file that does not exist.
    """
    path = expanded(reference)
    if path.suffix in (SUFFIX, ".yml") or _is_recipe(reference, registry):
        return None
    if not path.suffix and not os.path.exists(path):
        return None
    given = _task_settings(overrides)
    for plugin in registry.offering("xmodal_data_recipe"):
        try:
            found = registry.call("xmodal_data_recipe", plugin, path=path, settings=given)
        except XModalError:
            raise
        except Exception as error:
            raise PluginError(f"plugin '{plugin.plugin}': {reason(error)}") from error
        if found is not None:
            recipe, settings = found
            return OwnData(Path(os.path.abspath(path)), recipe, settings)
    if path.suffix and path.is_file():
        raise UsageError(
            f"'{shown(reference)}': no plugin reads {shown(path.suffix)} files; save a table as "
            ".csv or .parquet, arrays as .npz"
        )
    return None


def spelled_out(
    references: Sequence[str], registry: Registry, overrides: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Recipes and overrides in which a data file is replaced by the recipe that reads it.

    Beside a data file, ``nft`` is short for ``methods/nft``, and where it stands alone the method
    is ``DEFAULT_METHOD``. Without a data file, nothing changes. Raises UsageError for two of them.
    """
    found = [own_data(reference, registry, overrides) for reference in references]
    files = [one for one in found if one is not None]
    if not files:
        return tuple(references), tuple(overrides)
    if len(files) > 1:
        names = " and ".join(str(one.path) for one in files)
        raise UsageError(
            f"{names}: a run learns from one data file; a test file of its own is task.test=FILE, "
            "and several are compared with: xmodal compare METHOD --task FILE FILE"
        )
    known = {recipe.name for recipe in all_recipes(registry)}
    recipes = [] if len(references) > 1 else [DEFAULT_METHOD]
    for reference, own in zip(references, found, strict=True):
        is_method = reference not in known and METHODS + reference in known
        recipes.append(own.recipe if own else METHODS * is_method + reference)
    return tuple(recipes), (*files[0].overrides, *overrides)


def _is_recipe(reference: str, registry: Registry) -> bool:
    known = {recipe.name for recipe in all_recipes(registry)}
    name = expanded(reference).as_posix().removeprefix("recipes/")
    return name in known or bool(method_and_task(reference, known))


def _task_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Settings of the task among ``key=value``, parsed: ``task.y=price`` as ``{"y": "price"}``."""
    settings = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if equals and key.strip().startswith(_TASK):
            settings[key.strip().removeprefix(_TASK)] = parse_value(value, text)
    return settings
