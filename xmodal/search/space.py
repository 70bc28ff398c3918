"""What a search tries: the cheap answers of the data's form, and ways to fine-tune.

A space is a file such as ``recipes/searches/row.yaml``: the first value of every choice is the
usual one. Answers and rungs are functions of the space, the number of samples and a seed alone, so
a search can be repeated.

Successive halving: Jamieson and Talwalkar, AISTATS 2016.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from xmodal.errors import RecipeError, UsageError, did_you_mean
from xmodal.plugins import Registry
from xmodal.recipe.lookup import (
    METHODS,
    PRESETS,
    SEARCHES,
    RecipeFile,
    all_presets,
    all_searches,
    expanded,
    looks_like_path,
)
from xmodal.recipe.messages import explain
from xmodal.recipe.yaml import read
from xmodal.settings import Settings

T = TypeVar("T", bound=Settings)
FACTOR = 3
"""A rung takes three times the steps of the one below; a third of its answers climbs on."""
RUNGS = 3


class Space(Settings):
    """The ways to fine-tune that a search chooses from, and how long it trains them."""

    description: str = Field("", description="One line for people.")
    rivals: tuple[str, ...] = Field(
        (), description="Methods that are fitted in seconds; those that can run here are tried."
    )
    methods: tuple[str, ...] = Field(min_length=1, description="Methods; the usual one first.")
    choices: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="Settings and their values; the usual ones first."
    )
    batch: int = Field(32, ge=1, description="Samples per step.")
    passes: int = Field(
        30, ge=1, description="Passes over the training samples on the highest rung."
    )
    least_steps: int = Field(200, ge=1, description="Steps of the highest rung are not fewer.")
    most_steps: int = Field(4000, ge=1, description="Steps of the highest rung are not more.")
    width: int = Field(
        FACTOR ** (RUNGS - 1), ge=1, description="Ways to fine-tune that start together."
    )

    def without(self, overrides: Sequence[str]) -> Space:
        """The space without choices that settings ``key=value`` of the user have made."""
        made = [text.partition("=")[0].strip() for text in overrides]

        def is_open(key: str) -> bool:
            return not any(f"{key}.".startswith(f"{m}.") or m.startswith(f"{key}.") for m in made)

        choices = {key: values for key, values in self.choices.items() if is_open(key)}
        return self.model_copy(update={"choices": choices})


class Preset(Settings):
    """How thorough a search is. What is not set stays as the file of the search says."""

    description: str = Field("", description="One line for people.")
    time: str | None = Field(None, description="How long to search, if nothing else is said.")
    passes: int | None = Field(None, ge=1, description="As in a search.")
    least_steps: int | None = Field(None, ge=1, description="As in a search.")
    most_steps: int | None = Field(None, ge=1, description="As in a search.")
    width: int | None = Field(None, ge=1, description="As in a search.")
    repetitions: int = Field(
        2, ge=1, description="Repetitions of cross-validation, where there are few samples."
    )
    ensemble: bool = Field(True, description="Whether several answers together may be chosen.")

    def over(self, space: Space) -> Space:
        """A space with what the preset sets."""
        names = ("passes", "least_steps", "most_steps", "width")
        mine = {name: getattr(self, name) for name in names}
        return space.model_copy(update={k: v for k, v in mine.items() if v is not None})


def space_of(reference: str, registry: Registry) -> Space:
    """The space of a file, or of a name such as ``row``. Raises UsageError and RecipeError."""
    return _read(Space, "search space", reference, all_searches(registry), SEARCHES)


def preset_of(reference: str, registry: Registry) -> Preset:
    """The preset of a file, or of a name such as ``quick``. Raises UsageError and RecipeError."""
    return _read(Preset, "preset", reference, all_presets(registry), PRESETS)


def _read(kind: type[T], what: str, reference: str, files: Sequence[RecipeFile], folder: str) -> T:
    known = {found.name.removeprefix(folder): found.path for found in files}
    path = expanded(reference) if looks_like_path(reference) else known.get(reference)
    if path is None or not path.is_file():
        hint = did_you_mean(reference, known)
        raise UsageError(f"no {what} '{reference}'{hint}; there are {', '.join(known)}")
    document = read(path)
    try:
        return kind.model_validate(document.data)
    except ValidationError as error:
        raise RecipeError(explain(error, document.data, document.origins, [str(path)])) from None


@dataclass(frozen=True)
class Answer:
    """One answer to try: recipes and settings over them. ``cheap``: it is fitted, not trained."""

    name: str
    recipes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    cheap: bool = False

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings as the command line takes them."""
        return as_overrides(self.settings)


def as_overrides(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as the command line takes them, ``key=value``."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())


def cheap(space: Space, trivial: Sequence[str]) -> list[Answer]:
    """The cheap answers: the ``trivial`` methods, then the rivals of the space."""
    names = (*trivial, *(METHODS + name for name in space.rivals))
    return [Answer(name.removeprefix(METHODS), (name,), cheap=True) for name in names]


def fine_tuning(space: Space, seed: int) -> Iterator[Answer]:
    """All ways to fine-tune: the usual one, then the others, in an order that ``seed`` decides."""
    keys = list(space.choices)
    found = list(itertools.product(space.methods, *space.choices.values()))
    order = np.random.default_rng(seed).permutation(len(found)).tolist()
    for index in (0, *(other for other in order if other)):
        method, *values = found[index]
        settings = dict(zip(keys, values, strict=True))
        shown = [_shown(key, value) for key, value in settings.items()]
        yield Answer(" ".join([method, *filter(None, shown)]), (METHODS + method,), settings)


def _shown(key: str, value: Any) -> str:
    """A setting in as few words as tell it: ``lr=0.0003``, ``size=98,98``."""
    if isinstance(value, Mapping):
        return " ".join(_shown(k, v) for k, v in value.items() if k not in ("use", "pad"))
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return f"{key.rpartition('.')[2]}={value}"


@dataclass(frozen=True)
class Rung:
    """Steps of a rung, as passes of so many steps each."""

    epochs: int
    steps: int
    batch: int

    @property
    def total(self) -> int:
        """All optimizer steps."""
        return self.epochs * self.steps


def rungs(space: Space, samples: int) -> tuple[Rung, ...]:
    """The rungs for so many training samples, lowest first."""
    whole = math.ceil(samples / space.batch)
    most = min(space.most_steps, max(space.least_steps, space.passes * whole))
    found = []
    for power in reversed(range(RUNGS)):
        steps = math.ceil(most / FACTOR**power)
        epochs = max(3, math.ceil(steps / whole))
        found.append(Rung(epochs, min(whole, math.ceil(steps / epochs)), space.batch))
    return tuple(found)


def training(rung: Rung, epochs: int | None = None) -> dict[str, Any]:
    """The settings of a rung; ``epochs`` of them, where a last fit is to end earlier."""
    count = rung.epochs if epochs is None else epochs
    schedule = {"warmup_epochs": count / 10, "decay": "cosine", "decay_epochs": None}
    return {
        "training.epochs": count,
        "training.max_steps": rung.steps,
        "training.batch": {"size": rung.batch, "micro": None},
        "training.schedule": schedule,
        "training.optimizer.weight_decay": 0.01,
        "training.clip": 1.0,
    }
