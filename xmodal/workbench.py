"""For plugins that add commands: find runs, open runs or recipes in memory, and train them there.

``registry`` and ``choose`` resolve names from the command line; ``compose`` and ``plan`` resolve
recipes; ``open_run`` and ``open_plan`` build a run in memory; ``train`` trains it. This module
imports torch, so import it inside a command, not at the top of the command's file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from xmodal import randomness
from xmodal.batch import Progress
from xmodal.data import fetching
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.checkpoint import load_exactly
from xmodal.engine.device import or_cpu
from xmodal.engine.evaluate import PROBED_SAMPLES
from xmodal.engine.identity import identity
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.plan import Plan, missing_files, needs_source_head
from xmodal.engine.plan import compose_plan as plan
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.errors import DataError, UsageError
from xmodal.inference.model import best_weights
from xmodal.interfaces import NO_FACTS, Context, Facts, Session
from xmodal.plugins import Registry, registry
from xmodal.recipe import compose as recipes
from xmodal.recipe.choice import choose, chosen
from xmodal.recipe.lookup import all_recipes, looks_like_path
from xmodal.recipe.messages import own_recipe
from xmodal.runs import Run, locate
from xmodal.settings import Use

__all__ = [
    "PROBED_SAMPLES", "EpochRecord", "Opened", "OpenedRun", "Plan", "Registry", "Run", "StepRecord",
    "Wrap", "build", "choose", "chosen", "compose", "finished", "locate", "looks_like_path",
    "missing_files", "needs_source_head", "open_plan", "open_run", "plan", "recipe_names",
    "registry", "train",
]  # fmt: skip

Wrap = Mapping[str, Callable[[type[Any]], type[Any]]]
"""For names of parts (``scheduler``): a function from the recipe's class to the class to build."""


def recipe_names(registry: Registry) -> list[str]:
    """The names of all recipes that can be found, such as ``tasks/darcy``, sorted."""
    return sorted({found.name for found in all_recipes(registry)})


def compose(
    references: Sequence[str],
    registry: Registry,
    overrides: Sequence[str] = (),
    scale: str | None = None,
) -> Mapping[str, Any]:
    """The composed recipes, as plain values that are not validated; later recipes win.

    Raises RecipeError if a recipe cannot be found or read. ``plan`` validates a whole run.
    """
    return recipes.compose(references, registry, overrides, scale).data


def build(
    use: Use[Any],
    name: str,
    seed: int = 0,
    facts: Facts = NO_FACTS,
    store: Store | None = None,
    **components: Any,
) -> Any:
    """A component outside of a run, initialised like the part ``name`` of a run with this seed.

    ``components`` are the parts that it uses (a backbone for an embedder).
    """
    context = Context.outside(store or Store(), name, seed, facts, **components)
    with randomness.seeded(seed, "initialise", name):
        return use.build(context)


@dataclass
class Opened:
    """A recipe in memory: data are loaded and weights initialised, but nothing is trained.

    ``source`` is the recipe's source, even if training does not read it; None if the recipe has no
    source that the backbone can read. ``parts`` are the built components by name (``scheduler``).
    ``at`` is the stage and epoch whose weights the session holds.
    """

    plan: Plan
    session: Session
    source: Dataset[Any] | None
    parts: Mapping[str, Any]
    at: tuple[int, int] = (0, 0)

    def progress(self) -> Progress:
        """The progress at ``at``, to pass to mixers and selectors."""
        stage, epoch = self.at
        return Progress(stage, epoch, max(1, self.session.stages[stage].epochs), 0, 1)


@dataclass
class OpenedRun(Opened):
    """A finished run in memory, in evaluation mode, with the weights of its best epoch.

    ``start`` holds its weights before training, ``best`` those of the best epoch.
    """

    run: Run = field(kw_only=True)
    start: Mapping[str, Tensor] = field(kw_only=True)
    best: Mapping[str, Tensor] = field(kw_only=True)

    def use(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights (``start`` or ``best``) into the model. Raises DataError if they misfit."""
        load_exactly(self.session.model, weights, str(self.run.path))


def open_plan(plan: Plan, wrap: Wrap | None = None) -> Opened:
    """Load the data of a plan and build its model. Raises DataError for missing files."""
    builder = Builder(plan, Store(), lambda line: None, wrap)
    session = builder.session(builder.data())
    source = session.source
    if source is None and plan.recipe.source is not None:
        facts = plan.facts
        modalities = {facts.backbone.modality, getattr(facts.source, "modality", "any")}
        if len(modalities) == 1 or "any" in modalities:
            source = builder.source(session.model.backbone)
    return Opened(plan, session, source, builder.parts)


def finished(run: Run) -> Run:
    """``run``, if it is done. Otherwise raises UsageError that tells how to finish it."""
    if run.state != "done":
        raise UsageError(
            f"{run.path} is not finished (state: {run.state}); "
            f"continue it with: {run.to_continue()}"
        )
    return run


@fetching.doing("look")
def open_run(run: Run, plugin_files: tuple[str, ...] = (), wrap: Wrap | None = None) -> OpenedRun:
    """Rebuild a finished run in memory, on the CPU if its own device is not available.

    Raises UsageError if the run is not finished, DataError if data or weights are missing.
    """
    result = finished(run).read("result.json")
    best, where = best_weights(run)
    recipe = [str(run.path / "resolved.yaml")]
    with own_recipe(run.path):
        made = plan(recipe, registry(plugin_files), Store(), ["trackers=[]"])
    device = or_cpu(made.recipe.device, warnings.warn)
    made = replace(made, recipe=made.recipe.model_copy(update={"device": device}))
    opened = open_plan(made, wrap)
    _check_data(run, made, plugin_files, cast("RunSession", opened.session).data.checksum)
    model = opened.session.model.eval()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    load_exactly(model, best, where)
    stage, epoch = result["validation"]["at"] or [len(opened.session.stages) - 1, 0]
    return OpenedRun(
        made,
        opened.session,
        opened.source,
        opened.parts,
        (int(stage), int(epoch)),
        run=run,
        start=start,
        best=best,
    )


def _check_data(run: Run, made: Plan, plugin_files: tuple[str, ...], checksum: str) -> None:
    """Raise DataError if the data of task or source are not those that a run was made with."""
    if run.older:
        return  # it does not say what they were
    now = identity(made.recipe, registry(plugin_files), Store(), checksum)
    found = now.differences(run.read("manifest.json").get("ingredients", {}))
    changed = [name for name in found if name == "data" or name.endswith(".content")]
    if changed:
        raise DataError(
            f"the data of {run.path} have changed since it was made ({', '.join(changed)}); "
            "make a new run"
        )


def train(opened: Opened) -> Generator[StepRecord | EpochRecord, None, None]:
    """Train in memory, from the start; yields one record per optimizer step and one per epoch.

    Writes nothing. Close the generator to stop early.
    """
    training = Training(cast("RunSession", opened.session)).run()
    return cast("Generator[StepRecord | EpochRecord, None, None]", training)
