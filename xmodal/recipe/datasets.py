"""The parts with data: every task that has a recipe, and every source, by the names users type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, create_model

from xmodal.errors import RecipeError, UsageError, did_you_mean
from xmodal.plugins import Registry, announce_loading
from xmodal.recipe.compose import compose
from xmodal.recipe.lookup import TASKS, all_recipes, find_recipe, looks_like_path
from xmodal.recipe.messages import explain
from xmodal.recipe.yaml import read
from xmodal.settings import Settings, Use
from xmodal.text import MOST_KNOWN, shortlist, shown

if TYPE_CHECKING:
    from xmodal.data.datasets import DataCard


@dataclass(frozen=True)
class NamedData:
    """A task or a source with its settings. ``recipe`` is what a user types to train on a task."""

    name: str
    use: Use[Any]
    recipe: str = ""

    @property
    def card(self) -> DataCard | None:
        """What is known of its data; None if there is nothing to get."""
        card: DataCard | None = self.use.component.card(self.use.config)
        return card


def all_named(registry: Registry) -> Iterator[NamedData | RecipeError]:
    """Every task that has a recipe, by its short name, and then every source.

    Recipes that only give an old name to another one are left out. Yields the error of a recipe
    that is wrong, in its place.
    """
    for name in _task_names(registry):
        try:
            found = _task(name, registry)
        except RecipeError as error:
            yield error
            continue
        if not _is_alias(name, registry):
            yield found
    for name in registry.names("source"):
        try:
            yield _source(name, registry)
        except RecipeError:
            continue  # it has settings without defaults, such as the user's own folder


def find_named(name: str, registry: Registry, overrides: Sequence[str] = ()) -> NamedData:
    """The task or source that a user means: by its recipe, its own name, or a recipe file.

    Raises UsageError with the nearest name, and RecipeError for wrong settings.
    """
    short = name.removeprefix(TASKS)
    tasks = _task_names(registry)
    if looks_like_path(name) or short in tasks:
        return _task(short, registry, overrides)
    if short in registry.names("source"):
        return _source(short, registry, overrides)
    for recipe in tasks:  # the name of the part, where its recipe is called otherwise
        block = compose([TASKS + recipe], registry).data.get("task")
        if short == (block.get("use") if isinstance(block, dict) else block):
            return _task(recipe, registry, overrides)
    known = [*tasks, *registry.names("source")]
    hint = did_you_mean(short, known)
    listed = "" if hint else f"known: {shortlist(known, MOST_KNOWN)}\n"
    raise UsageError(
        f"no task or source '{shown(name)}'{hint}\n{listed}list them: xmodal data list"
    )


def _task_names(registry: Registry) -> list[str]:
    found = all_recipes(registry)
    return [f.name.removeprefix(TASKS) for f in found if f.name.startswith(TASKS)]


def _is_alias(name: str, registry: Registry) -> bool:
    """Whether a recipe adds nothing to another one: its old name."""
    return set(read(find_recipe(TASKS + name, registry).path).data) <= {"extends", "description"}


def _task(name: str, registry: Registry, overrides: Sequence[str] = ()) -> NamedData:
    recipe = name if looks_like_path(name) else TASKS + name
    return NamedData(name, _part("task", recipe, registry, overrides), recipe)


def _source(name: str, registry: Registry, overrides: Sequence[str] = ()) -> NamedData:
    return NamedData(name, _part("source", "", registry, [f"source.use={name}", *overrides]))


def _part(kind: str, recipe: str, registry: Registry, overrides: Sequence[str]) -> Use[Any]:
    """One part of a composed recipe, validated alone: the other parts may be missing."""
    announce_loading()
    from xmodal.interfaces import Source, Task  # imports torch

    layered = compose([recipe] if recipe else [], registry, overrides)
    interface: Any = {"task": Task, "source": Source}[kind]
    fields: Any = {kind: (Use[interface], ...)}
    model = create_model("OnePart", __base__=Settings, **fields)
    block = {key: value for key, value in layered.data.items() if key == kind}
    try:
        made = model.model_validate(block, context={"registry": registry})
    except ValidationError as error:
        raise RecipeError(explain(error, block, layered.origins, layered.files)) from None
    use: Use[Any] = getattr(made, kind)
    return use
