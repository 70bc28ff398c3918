"""Suites: grids of runs written down in a file, such as the one behind a table of a paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from xmodal.compare.cells import Contender
from xmodal.errors import RecipeError, UsageError, did_you_mean
from xmodal.interfaces import Settings
from xmodal.plugins import Registry
from xmodal.recipe import library
from xmodal.recipe.explain import explain
from xmodal.recipe.yaml import read


class Variant(Settings):
    """A method with settings of its own."""

    use: str = Field(description="The method's recipe.")
    label: str = Field("", description="What to call it; default: the recipe's name.")
    set: tuple[str, ...] = Field((), description="Settings, each key=value.")

    @field_validator("set")
    @classmethod
    def _assignments(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not all(part.strip() for part in (text.partition("=")[0], text.partition("=")[2])):
                raise ValueError(f"'{text}' is not of the form key=value")
        return texts


class Published(Settings):
    """Numbers that somebody else reports for a task; shown apart from ours, never weighed."""

    source: str = Field(description="Where they stand.")
    metric: str = Field(description="What they are.")
    errors: dict[str, float] = Field(description="The error of each method, as printed.")


class Suite(Settings):
    """A grid of runs."""

    description: str = Field("", description="One line for people.")
    methods: tuple[str | Variant, ...] = Field(min_length=1, description="What is compared.")
    tasks: tuple[str, ...] = Field(min_length=1, description="On what.")
    seeds: int = Field(3, ge=1, description="Seeds of every cell, from 0.")
    set: tuple[str, ...] = Field((), description="key=value,value: each value makes a variant.")
    scale: str | None = Field(None, description="A scale layer, put last.")
    fraction: float | None = Field(None, gt=0, le=1, description="Share of the training samples.")
    published: dict[str, Published] = Field(
        default_factory=dict, description="Published numbers, per task."
    )

    def contenders(self) -> tuple[Contender, ...]:
        """The methods."""
        return tuple(
            Contender(method)
            if isinstance(method, str)
            else Contender(method.use, method.label, method.set)
            for method in self.methods
        )


@dataclass(frozen=True)
class Named:
    """A suite and what it is called."""

    name: str
    suite: Suite


def find(reference: str, registry: Registry) -> Named:
    """Read a suite, given by name (``table4``) or by file.

    Raises UsageError for a name that does not exist, RecipeError for what is wrong inside.
    """
    if library.looks_like_path(reference):
        path, name = Path(reference).expanduser(), Path(reference).stem
        if not path.is_file():
            raise UsageError(f"no file '{reference}'")
    else:
        name = reference.removeprefix(library.SUITES)
        known = {f.name.removeprefix(library.SUITES): f for f in library.all_suites(registry)}
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"no suite '{name}'{hint}\nsuites: {', '.join(known) or 'none'}")
        path = known[name].path
    document = read(path)
    try:
        return Named(name, Suite.model_validate(document.data))
    except ValidationError as error:
        files = [str(path)]
        raise RecipeError(explain(error, document.data, document.origins, files)) from None
