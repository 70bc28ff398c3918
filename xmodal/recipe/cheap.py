"""Cheap answers: the trivial methods that fit a task. Every other method must beat them.

A recipe says that its method is trivial (``role``), and for what data it is meant (``suits``). Its
predictor says what it cannot predict.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xmodal.errors import RecipeError
from xmodal.facts import BackboneFacts, Facts, TaskFacts
from xmodal.plugins import Registry, log
from xmodal.recipe.choice import chosen
from xmodal.recipe.compose import compose
from xmodal.recipe.lookup import all_recipes
from xmodal.recipe.messages import explain
from xmodal.recipe.recipe import Suited
from xmodal.recipe.yaml import Document, read

METHODS = "methods/"
TRIVIAL = "trivial"
FORMS = frozenset({"grid", "sequence", "row"})
_SUITS: TypeAdapter[dict[str, tuple[Suited, ...]]] = TypeAdapter(dict[str, tuple[Suited, ...]])
ANY_BACKBONE = BackboneFacts(name="any", modality="any", width=0, feature_width=0)


def cheap_methods(registry: Registry, task: TaskFacts) -> list[str]:
    """Recipe names (``methods/majority``) of the trivial methods that fit these data, by name.

    A file that cannot be read is noted and passed over. Raises RecipeError for what is wrong inside
    of a trivial method.
    """
    found = []
    for recipe in all_recipes(registry):
        if not recipe.name.startswith(METHODS):
            continue
        try:
            document = read(recipe.path)
        except RecipeError as error:
            log.warning("note: passed over: %s", error.problems[0])
            continue
        if document.data.get("role") != TRIVIAL or not suits(_meant_for(document), task):
            continue
        if _can_predict(recipe.name, registry, task):
            found.append(recipe.name)
    return sorted(found)


def _meant_for(document: Document) -> tuple[str, ...]:
    words: dict[str, Any] = {"suits": document.data.get("suits", ())}
    try:
        return _SUITS.validate_python(words)["suits"]
    except ValidationError as error:
        raise RecipeError(explain(error, words, document.origins, [""])) from None


def suits(words: Collection[str], task: TaskFacts) -> bool:
    """Whether a method with such ``suits`` is meant for a task."""
    forms, kinds = set(words) & FORMS, set(words) - FORMS
    return (not forms or task.form in forms) and (not kinds or task.target.kind in kinds)


def _can_predict(name: str, registry: Registry, task: TaskFacts) -> bool:
    data = compose([name], registry).data
    block = {**data, **data.get("always", {})}["predictor"]
    use = chosen("predictor", block, registry, name)
    if not use.component.supports(task.target):
        return False
    return not any(use.component.problems(use.config, Facts(task, ANY_BACKBONE)))
