"""Fits a recipe into its budget of arithmetic, by a fixed cost model and before anything is loaded.

No clock is asked: the same recipe on the same data becomes the same settings on every machine and
for every method, and they are part of what the run is. Counted is the encoder alone, which is most
of the work: L (24 N D^2 + 4 N A D) operations for a sample of N tokens of width D in L layers, each
token attending to A (all of them, or those of a window). A training step counts three such passes a
sample, an evaluation one. One view a sample is counted, whatever a method does: a method that
encodes every sample twice takes twice as long, and meets the same samples as the others.

What is beyond the budget is taken away in this order:

1. tokens, down to 64 a sample, if the embedder can make fewer of them out of the whole sample;
2. epochs, down to 3, while their validation alone would take more than a quarter of the budget;
3. steps of an epoch, down to 10: every epoch draws other samples;
4. epochs, down to 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from xmodal.facts import BackboneFacts, Facts
from xmodal.recipe.recipe import Recipe
from xmodal.settings import Use
from xmodal.text import duration, listed

BACKWARD = 3
"""A training step is worth so many forward passes: the gradient takes two more."""
WINDOW = 49
"""Tokens of a window, for backbones that attend within windows (Swin: 7 x 7)."""
LEAST_TOKENS, LEAST_STEPS, LEAST_EPOCHS = 64, 10, 3
USUAL_EPOCHS = 12
"""Counted for methods that take no epochs, so that they get the same tokens as the others."""
TERA = 1e12
SPEED = 6.6e10
"""Operations a second on two CPU cores, as measured on the demo; only for what people are told."""


@dataclass(frozen=True)
class _Work:
    """What a run does with samples: those of an epoch, of its validation, and of the test."""

    batch: int
    steps: int
    epochs: int
    validation: int
    test: int

    def passes(self) -> float:
        """Forward passes of the encoder, one view a sample."""
        trained = BACKWARD * self.batch * self.steps * self.epochs
        return float(trained + self.validation * self.epochs + self.test)


def forward_cost(tokens: int, backbone: BackboneFacts) -> float:
    """Operations of the encoder for one sample; 0 if the backbone does not say its layers."""
    width = backbone.width
    attended = min(tokens, WINDOW) if backbone.reduction > 1 else tokens
    return float(backbone.layers * (24 * tokens * width**2 + 4 * tokens * attended * width))


def within_budget(recipe: Recipe, facts: Facts) -> tuple[Recipe, Facts, tuple[str, ...]]:
    """The recipe and its facts, cut to the recipe's budget, and a note if anything was cut.

    ``facts`` has the grid, and the share of training samples that is used. What fits already is
    returned as it is, so cutting twice changes nothing.
    """
    limit = recipe.budget
    if limit is None or not forward_cost(facts.num_tokens, facts.backbone):
        return recipe, facts, ()
    most, work = limit * TERA, _work(recipe, facts)
    before = work.passes() * forward_cost(facts.num_tokens, facts.backbone)
    if before <= most:
        return recipe, facts, ()
    told: list[str] = []
    shorter, grid = _fewer_tokens(recipe, facts, most / work.passes())
    if grid != facts.grid:
        tokens = facts.num_tokens
        recipe, facts = recipe.model_copy(update={"embedder": shorter}), replace(facts, grid=grid)
        told.append(f"{facts.num_tokens} of {tokens} tokens a sample")
    each = forward_cost(facts.num_tokens, facts.backbone)
    fewer = _fewer_steps(work, most / each)
    trains = _scored(recipe) is not None
    if fewer != work and trains:
        recipe = recipe.model_copy(update={"stages": tuple(_cut(u, fewer) for u in recipe.stages)})
        if fewer.steps < work.steps:
            told.append(f"{fewer.steps} of {work.steps} steps an epoch")
        if fewer.epochs < work.epochs:
            told.append(f"{fewer.epochs} of {work.epochs} epochs")
        work = fewer
    after = work.passes() * each
    if not trains and not told:
        return recipe, facts, ()  # what is fitted once takes far less than is counted here
    return recipe, facts, (_said(told, before, after, trains and after > most, limit),)


def _said(told: list[str], before: float, after: float, too_much: bool, budget: float) -> str:
    """One note: what was cut, why, what is left, and what lifts the limit."""
    whole, left = duration(before / SPEED), duration(after / SPEED)
    if not told:
        return f"budget: this takes about {whole} on two CPU cores, and nothing can be left out"
    end = ", and nothing else can be left out" if too_much else ""
    return (
        f"budget: plain fine-tuning on all of this would take about {whole} on two CPU cores; with "
        f"{listed(told)} it takes about {left}{end}. More of it: budget={4 * budget:g}; all of it: "
        "budget=null"
    )


def _scored(recipe: Recipe) -> Use[Any] | None:
    """The last stage that trains in epochs of steps; None if there is none."""
    for use in reversed(recipe.stages):
        known = set(type(use.config).model_fields)
        if use.component.evaluates and {"epochs", "batch", "max_steps"} <= known:
            return use
    return None


def _work(recipe: Recipe, facts: Facts) -> _Work:
    samples, stage = facts.task.samples, _scored(recipe)
    train = samples.get("train", 0)
    batch = 1 if stage is None else stage.config.batch.size
    steps = math.ceil(train / batch)
    if stage is not None:
        steps = min(steps, stage.config.max_steps or steps)
    epochs = USUAL_EPOCHS if stage is None else _epochs(stage, train)
    return _Work(batch, steps, epochs, samples.get("validation", 0), samples.get("test", 0))


def _epochs(use: Use[Any], samples: int) -> int:
    """The epochs of plain fine-tuning: as set, or as many as the steps need that are set."""
    if getattr(use.config, "steps", None) is None:
        return int(use.config.epochs)
    plain = {"stretch": 1.0} if "stretch" in type(use.config).model_fields else {}
    return int(use.component.epochs_for(use.config.model_copy(update=plain), samples))


def _fewer_tokens(recipe: Recipe, facts: Facts, most: float) -> tuple[Any, tuple[int, ...]]:
    """The embedder with the most tokens, of at least 64, whose sample costs no more than ``most``.

    Where it has none, the one with 64, or the one that there is.
    """
    low, high = LEAST_TOKENS, facts.num_tokens
    if high <= low:
        return recipe.embedder, facts.grid
    while low < high:  # the cost grows with the tokens
        middle = (low + high + 1) // 2
        if forward_cost(middle, facts.backbone) <= most:
            low = middle
        else:
            high = middle - 1
    component = recipe.embedder.component
    use = component.shortened(recipe.embedder, facts.task, facts.backbone, low)
    grid = use.component.grid(use.config, facts.task, facts.backbone)
    return (use, grid) if math.prod(grid) < facts.num_tokens else (recipe.embedder, facts.grid)


def _fewer_steps(work: _Work, passes: float) -> _Work:
    """Steps of an epoch, then epochs, so that no more than ``passes`` are made, if that can be."""

    def steps_for(epochs: int) -> int:
        left = passes - work.test - work.validation * epochs
        return math.floor(left / (BACKWARD * work.batch * epochs))

    least = min(LEAST_STEPS, work.steps)
    for epochs in range(work.epochs, min(LEAST_EPOCHS, work.epochs) - 1, -1):
        steps = min(work.steps, steps_for(epochs))
        if steps >= least and work.validation * epochs <= passes / 4:
            break
    return replace(work, steps=max(least, steps), epochs=epochs)


def _cut(use: Use[Any], work: _Work) -> Use[Any]:
    """A stage with no more steps and epochs than these. Stages that prepare keep their epochs."""
    known, changes = set(type(use.config).model_fields), {}
    if "max_steps" in known:
        changes["max_steps"] = min(work.steps, use.config.max_steps or work.steps)
    if "epochs" in known and use.component.evaluates:
        changes["epochs"] = min(work.epochs, use.config.epochs)
    if getattr(use.config, "steps", None) is not None and use.component.evaluates:
        changes["steps"] = work.steps * work.epochs
    return Use(use.name, use.component, use.config.model_copy(update=changes))
