"""What a run is: everything that can change its result beyond rounding, and nothing else.

Two runs are the same if their identities are equal. ``identity`` is the only place that decides
what belongs to one:

- every setting of the recipe, of parts within parts too, defaults included; but not those of
  ``OUTSIDE``, which say where, how fast or how safely a run is executed;
- the code of every part, by the digest of its plugin file or package, and that of the rooms of
  xmodal that compute (``ENGINE``);
- the content of every file that a setting names, in place of its path (of one that does not exist,
  its path), and the checksum that the task gives of the data it has read;
- the format of runs.

The versions of libraries, the device and the number of processes are written down in the manifest
and do not count: they change rounding, and which random numbers a sample meets, but not what is
computed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from xmodal import files, runs
from xmodal.data.store import Store
from xmodal.plugins import Registry
from xmodal.recipe.recipe import Recipe
from xmodal.settings import Use

OUTSIDE = frozenset(
    {
        "description",
        "method",
        "scale",
        "banner",
        "budget",  # what it leaves out is in the settings that count
        "role",
        "suits",
        "family",
        "device",
        "workers",
        "saving",
        "evaluation_batch",
        "ignore",
        "trackers",
        "activation_checkpointing",
    }
)
"""Fields of a recipe that change where, how fast or how safely a run is executed."""
ENGINE = (
    "alignment.py", "batch.py", "data", "engine", "facts.py", "fused.py", "interfaces", "ops.py",
    "optimize.py", "precision.py", "randomness.py", "rank_kernels.py", "ready.py", "recompute.py",
    "steps.py",
)  # fmt: skip
"""The rooms and modules of xmodal in which results are computed."""


@dataclass(frozen=True)
class RunIdentity:
    """The ingredients of a run, as plain values, and where its parts come from.

    ``origins`` (distribution and version of every part) is for people and does not count.
    """

    content: Mapping[str, Any]
    origins: Mapping[str, str]

    @property
    def hash(self) -> str:
        """One hash of all ingredients."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    def at(self, seed: int) -> RunIdentity:
        """The identity of the same run with another seed."""
        recipe = {**self.content["recipe"], "seed": seed}
        return RunIdentity({**self.content, "recipe": recipe}, self.origins)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The names of the ingredients that are others in ``other``, such as ``recipe.seed``."""
        mine, theirs = dict(_flat(self.content)), dict(_flat(other))
        return sorted(
            key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)
        )


def identity(recipe: Recipe, registry: Registry, store: Store, data: str = "") -> RunIdentity:
    """Everything that decides the result of ``recipe``; see the top of this module.

    ``data`` is the checksum of the loaded task (``TaskData.checksum``), where it is known. Reads
    the files that settings name; raises DataError for those that cannot be read.
    """
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields if name not in OUTSIDE}
    entries = {
        f"{use.component.kind}:{use.name}": registry.entry(use.component.kind, use.name)
        for use in _uses(fields)
    }
    content = {
        "format": runs.FORMAT,
        "xmodal": _engine(),
        "recipe": {name: _plain(value, store) for name, value in fields.items()},
        "code": {name: registry.code(entry) for name, entry in entries.items()},
        "data": data,
    }
    return RunIdentity(content, {name: entry.origin for name, entry in entries.items()})


def _uses(value: Any) -> Iterator[Use[Any]]:
    """Every part in a value, parts of parts included."""
    if isinstance(value, Use):
        yield value
        value = value.config
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        return
    for inner in value:
        yield from _uses(inner)


def _plain(value: Any, store: Store) -> Any:
    """A value as JSON, in which the content of a file stands for its path."""
    if isinstance(value, Use):
        named = value.component.contents(value.config, store)
        settings = {k: v for k, v in dict(value.config).items() if k not in named}
        files_of = {name: {"content": digest} for name, digest in named.items()}
        return {"use": value.name, **_plain(settings, store), **files_of}
    if isinstance(value, Path):
        found = files.contents(value)
        return {"content": found} if found else str(value)
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, store) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, store) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(inner, store) for inner in value), key=json.dumps)
    return to_jsonable_python(value)


def data_of(recipe: Recipe, store: Store) -> str:
    """A digest of the files that the task of a recipe names; the same for other settings of it."""
    found = recipe.task.component.contents(recipe.task.config, store)
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


@lru_cache(maxsize=1)
def _engine() -> str:
    """The digest of the code of xmodal that computes."""
    (root,) = importlib.util.find_spec("xmodal").submodule_search_locations  # type: ignore
    places = [Path(root) / name for name in ENGINE]
    found = [
        file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])
    ]
    return files.contents({file.relative_to(root).as_posix(): file for file in found})


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists by their dotted names."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else str(key))
