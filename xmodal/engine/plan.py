"""Plans a run: checks a recipe as far as possible before any weight or sample is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from xmodal.data.obtain import DataOrder
from xmodal.data.store import Store
from xmodal.engine.budget import within_budget
from xmodal.errors import DataError, Problem, RecipeError
from xmodal.facts import Facts, Target, TaskFacts
from xmodal.plugins import Registry
from xmodal.recipe.compose import Layered, compose, validate
from xmodal.recipe.grammar import COMPONENT_FIELDS, origin_of
from xmodal.recipe.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """A recipe and the facts of its parts."""

    recipe: Recipe
    facts: Facts
    source_target: Target | None
    notes: tuple[str, ...] = ()
    """What users should be told of it, such as what a budget has left out."""

    @property
    def epochs(self) -> int:
        """The epochs of all stages together."""
        samples = _share(self.recipe, self.facts.task).samples.get("train", 0)
        stages = self.recipe.stages
        return sum(stage.component.epochs_for(stage.config, samples) for stage in stages)

    @property
    def learning_rate(self) -> float | None:
        """The peak learning rate of the last stage that has one."""
        rates = [stage.component.learning_rate(stage.config) for stage in self.recipe.stages]
        return next((rate for rate in reversed(rates) if rate is not None), None)


def plan(recipe: Recipe, store: Store, layered: Layered | None = None) -> Plan:
    """Work out the facts of a run. Raises RecipeError with everything that cannot work.

    May read the user's own files and configuration of a backbone; DataError passes through.
    """
    task = recipe.task.component.describe(recipe.task.config, store)
    backbone = recipe.backbone.component.describe(recipe.backbone.config, store)
    source = recipe.source.component.describe(recipe.source.config) if recipe.source else None
    facts = Facts(task, backbone, source)
    found: list[tuple[str, str]] = []
    try:
        grid = recipe.embedder.component.grid(recipe.embedder.config, task, backbone)
        facts = replace(facts, grid=grid)
    except ValueError as error:
        found.append(("embedder", str(error)))
    notes: tuple[str, ...] = ()
    if not found:
        used = replace(facts, task=_share(recipe, facts.task))
        recipe, used, notes = within_budget(recipe, used)
        facts = replace(facts, grid=used.grid)
    found += _structure(recipe, facts)
    if not found:
        found += _component_problems(recipe, replace(facts, task=_copied(recipe, facts.task)))
    if found:
        raise RecipeError([_placed(key, message, layered) for key, message in found])
    return Plan(recipe, facts, _source_target(recipe, facts), notes)


def compose_plan(
    references: Sequence[str],
    registry: Registry,
    store: Store,
    overrides: Sequence[str] = (),
    scale: str | None = None,
    trackers: Sequence[str] = (),
) -> Plan:
    """Compose, validate and plan recipes; the arguments are those of ``compose``.

    Raises RecipeError, and what ``plan`` raises.
    """
    layered = compose(references, registry, overrides, scale, trackers)
    return plan(validate(layered, registry), store, layered)


def fetch_small(plan: Plan, store: Store, failed: dict[str, str] | None = None) -> list[str]:
    """Get small data sets that are missing; returns why that failed.

    ``failed`` remembers that by data set, so that it is not tried again.
    """
    known = {} if failed is None else failed
    reasons = []
    for use in (plan.recipe.task, plan.recipe.source):
        card = use.component.fetched_by_runs(use.config, store) if use else None
        if use is None or card is None:
            continue
        if card.name not in known:
            try:
                use.component.obtain(use.config, store, DataOrder(rounds=2))
            except DataError as error:
                known[card.name] = str(error)
        if card.name in known:
            reasons.append(known[card.name])
    return reasons


def missing_files(plan: Plan, store: Store) -> list[str]:
    """Everything the user must fetch before the plan can run."""
    recipe = plan.recipe
    parts = (recipe.predictor, recipe.task, recipe.source, recipe.backbone)
    return [text for use in parts if use for text in use.component.missing(use.config, store)]


def source_users(recipe: Recipe) -> list[str]:
    """The parts that read samples of the source, as they are shown to users."""
    users = [f"mixer '{recipe.mixer.name}'"] if recipe.mixer.component.needs_source else []
    return users + [f"stage '{s.name}'" for s in recipe.stages if s.component.needs_source]


def needs_source_head(recipe: Recipe) -> bool:
    """Whether anything predicts source labels."""
    stages = any(stage.component.needs_source_head for stage in recipe.stages)
    return recipe.mixer.component.needs_source or stages


def _source_target(recipe: Recipe, facts: Facts) -> Target | None:
    """What the source head predicts; dense source labels take the shape of the target's."""
    if facts.source is None:
        return None
    target = facts.source.target
    if target.kind == "dense" and facts.task.target.kind == "dense":
        return replace(target, shape=facts.task.target.shape)
    return target


def _structure(recipe: Recipe, facts: Facts) -> Iterator[tuple[str, str]]:
    if recipe.augment and not facts.task.symmetry:
        yield (
            "augment",
            f"task '{facts.task.name}' states no symmetry under which its labels are known exactly",
        )
    mixer = recipe.mixer.component
    for part in mixer.uses:
        if getattr(recipe, part) is None:
            yield part, f"is missing; mixer '{recipe.mixer.name}' needs a {part}"
    if recipe.predictor.component.reads_samples and not mixer.keeps_samples:
        yield (
            "mixer",
            f"'{recipe.mixer.name}' mixes samples; predictor '{recipe.predictor.name}' adds "
            "something of each sample to its prediction, so name a mixer that leaves samples as "
            "they are",
        )
    if not any(stage.component.evaluates for stage in recipe.stages):
        yield "stages", "only prepare; at least one must be scored, such as one that fine-tunes"
    if recipe.source is None:
        for who in source_users(recipe):
            yield "source", f"is missing; {who} needs one"
    backbone, task = facts.backbone, facts.task
    if source_users(recipe) and recipe.source and facts.source:
        modalities = {backbone.modality, facts.source.modality}
        if len(modalities) > 1 and "any" not in modalities:
            yield (
                "source",
                f"'{recipe.source.name}' holds {facts.source.modality}, but backbone "
                f"'{recipe.backbone.name}' was trained on {backbone.modality}",
            )
    if backbone.max_tokens and facts.num_tokens > backbone.max_tokens:
        yield (
            "embedder",
            f"makes {facts.num_tokens} tokens; backbone '{recipe.backbone.name}' reads at most "
            f"{backbone.max_tokens}",
        )
    yield from _heads(recipe, facts, task.target)


def _heads(recipe: Recipe, facts: Facts, target: Target) -> Iterator[tuple[str, str]]:
    loss = recipe.task.config.loss
    if not recipe.predictor.component.supports(target):
        yield "predictor", f"'{recipe.predictor.name}' cannot predict {target.kind} labels"
    if loss is not None and not loss.component.supports(target):
        yield "task.loss", f"'{loss.name}' does not fit {target.kind} labels"
    source = _source_target(recipe, facts)
    if source is None or not needs_source_head(recipe):
        return
    if source.kind == "dense" and not source.shape:
        yield (
            "source",
            f"'{facts.source and facts.source.name}' has dense labels, task '{facts.task.name}' "
            f"has {target.kind} ones; name a source of classes",
        )
        return
    if recipe.source_head == "target":
        if source != target and (source.kind, source.size) != (target.kind, target.size):
            yield "source_head", "the source's labels do not have the form of the target's"
        return
    use = recipe.source_predictor or recipe.predictor
    if not use.component.supports(source):
        yield (
            "source_predictor",
            f"'{use.name}' cannot predict the source's {source.kind} labels; name one that can",
        )


def _share(recipe: Recipe, task: TaskFacts) -> TaskFacts:
    """The task with the training samples that the run will use."""
    if "train" not in task.samples:
        return task
    used = max(1, round(task.samples["train"] * recipe.fraction * recipe.labelled))
    return replace(task, samples={**task.samples, "train": used})


def _copied(recipe: Recipe, task: TaskFacts) -> TaskFacts:
    """The task with the training samples that a model is fitted to: those used, and copies."""
    # Imported late: telling what is wrong with a recipe's names needs no torch.
    from xmodal.data.augment import COPIES
    from xmodal.interfaces import FittedPredictor

    task, predictor = _share(recipe, task), recipe.predictor.component
    # What reads samples itself fits a cheap answer to them.
    fitted = issubclass(predictor, FittedPredictor) or predictor.reads_samples
    if not (recipe.augment and fitted and "train" in task.samples):
        return task
    copied = task.samples["train"] * min(task.moves, COPIES)
    return replace(task, samples={**task.samples, "train": copied})


def _component_problems(recipe: Recipe, facts: Facts) -> Iterator[tuple[str, str]]:
    from xmodal.interfaces import FittedPredictor

    predictor = recipe.predictor.component
    if facts.task.weighted and issubclass(predictor, FittedPredictor) and not predictor.weighs:
        yield "predictor", f"'{recipe.predictor.name}' cannot weigh samples; leave task.weight out"
    for key in COMPONENT_FIELDS:
        use = getattr(recipe, key)
        # A task names a source head for the methods that have one; the others never build it.
        if key == "source_predictor" and not needs_source_head(recipe):
            continue
        if use is not None:
            for message in use.component.problems(use.config, facts):
                yield key, message
    for key in ("loss", "metric"):
        part = getattr(recipe.task.config, key)
        if part is not None:
            for message in part.component.problems(part.config, facts):
                yield f"task.{key}", message
    for index, stage in enumerate(recipe.stages):
        for message in stage.component.problems(stage.config, facts):
            yield f"stages.{index}", message
    for index, tracker in enumerate(recipe.trackers):
        for message in tracker.component.problems(tracker.config, facts):
            yield f"trackers.{index}", message


def _placed(key: str, message: str, layered: Layered | None) -> Problem:
    if layered is None:
        return Problem("recipe", key, message)
    path = tuple(int(p) if p.isdigit() else p for p in key.split("."))
    where = origin_of(layered.origins, path, (layered.files or ["recipe"])[-1])
    first, *more = message.split("\n")
    return Problem(str(where), key, first, tuple(more))
