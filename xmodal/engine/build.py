"""Builds a session from a plan: loads data and weights, wires the components together.

Every component is initialised under a seed of its own. Two methods with the same seed therefore get
the same split, the same order of samples and the same heads, whatever else they contain.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from xmodal import randomness
from xmodal.data import loader, splits
from xmodal.data.augment import Symmetric
from xmodal.data.store import Store
from xmodal.engine import device as devices
from xmodal.engine.model import TrainingModel, helper_name
from xmodal.engine.plan import Plan, fetch_small, missing_files, needs_source_head, source_users
from xmodal.engine.session import RunSession
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import (
    Adapter,
    Backbone,
    Context,
    Embedder,
    Loss,
    Pair,
    Predictor,
    Source,
    SourceRequest,
    Target,
    Task,
    TaskData,
)
from xmodal.recompute import recompute
from xmodal.settings import Use

CALIBRATION_SAMPLES = 32
FITTED_SAMPLES = 20_000


def accelerator(name: str, precision: str) -> Accelerator:
    """The accelerate handle for a device. Raises UsageError where it cannot be had."""
    device = devices.checked(name)
    launched = int(os.environ.get("LOCAL_RANK", -1)) != -1
    if launched and device.index is not None:
        raise UsageError(
            f"device: '{name}' is one GPU, and a launcher gives each of its processes one of its "
            "own; write device=cuda"
        )
    # By default accelerate takes the first device it finds; processes of a launcher share them out.
    told = {} if launched or name in ("auto", "mps") else {"ACCELERATE_TORCH_DEVICE": name}
    mixed = "bf16" if precision == "bf16" else "no"
    # accelerate keeps one state per process, and a second run may want another device or precision.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    with patch_environment(**told):
        return Accelerator(cpu=name == "cpu", mixed_precision=mixed)


def multiplies_bf16(device: str) -> bool:
    """Whether torch has fast matrix products in bfloat16 on a ``cuda`` or ``cpu`` device.

    A processor with AVX2 alone has none: 40 times slower than float32 were measured there.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _several_wanted() -> bool:
    """Whether ``accelerate launch`` was told to start several processes."""
    return {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()


class Builder:
    """Builds the parts of one run in order; each step may raise DataError.

    ``wrap`` says of parts by name which class to build instead of the recipe's, given that one.
    ``parts`` holds what has been built.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        on_note: Callable[[str], None],
        wrap: Mapping[str, Callable[[type[Any]], type[Any]]] | None = None,
    ) -> None:
        self.plan = plan
        self.wrap = wrap or {}
        self.parts: dict[str, Any] = {}
        self.store = store
        self.recipe = plan.recipe
        self.facts = plan.facts
        self.generators: dict[str, torch.Generator] = {}
        self.notes: list[str] = []
        self.on_note = on_note
        for line in plan.notes:
            self.note(line)

    def note(self, line: str) -> None:
        """Record a line for the user, once."""
        if line not in self.notes:
            self.notes.append(line)
            self.on_note(line)

    def make(self, use: Use[Any], name: str, output: Target | None = None, **parts: Any) -> Any:
        """Construct one component under its own seed, with its own generator."""
        seed = self.recipe.seed
        self.generators[name] = randomness.generator(seed, "component", name)
        context = Context(
            facts=self.facts,
            generator=self.generators[name],
            store=self.store,
            components=parts,
            output=output,
            note=self.note,
        )
        if name in self.wrap:
            use = Use(use.name, self.wrap[name](use.component), use.config)
        with randomness.seeded(seed, "initialise", name):
            self.parts[name] = use.build(context)
        return self.parts[name]

    def data(self) -> TaskData:
        """Load the task; small data are fetched, if they may be.

        Raises DataError listing all files that are missing, the source's too.
        """
        failed = fetch_small(self.plan, self.store)
        absent = missing_files(self.plan, self.store)
        if absent:
            raise DataError("\n".join([*failed, *absent]))
        task: Task = self.make(self.recipe.task, "task")
        data = task.load(self.recipe.seed)
        if self.recipe.protocol == "published" and data.validation_joins:
            data = _trained_on_both(data)
        data = self._share(data)
        # The whole that splits are parts of can then be freed.
        data = replace(
            data,
            train=loader.flattened(data.train),
            validation=loader.flattened(data.validation),
            test=loader.flattened(data.test),
            unlabelled=None if data.unlabelled is None else loader.flattened(data.unlabelled),
        )
        for line in data.notes:
            self.note(line)
        return self._augmented(data) if self.recipe.augment else data

    def _augmented(self, data: TaskData) -> TaskData:
        """The training split with the task's symmetry. Raises DataError if these data have none."""
        if data.symmetry is None:
            raise DataError(
                f"augment: these data of task '{self.facts.task.name}' have no exact symmetry"
            )
        self.note(f"training samples are moved by {data.symmetry.name}")
        return replace(data, train=Symmetric(data.train, data.symmetry, self.recipe.seed))

    def _share(self, data: TaskData) -> TaskData:
        """Keep the share of training samples that the recipe asks for, and hide some labels.

        Classes keep their proportions and groups stay whole. A smaller share is a subset of every
        larger one of the same seed; the method has no part in the choice.
        """
        recipe, total = self.recipe, loader.count(data.train)
        used = max(1, round(total * recipe.fraction))
        if max(1, round(used * recipe.labelled)) == total:
            return data
        order_N = randomness.permutation(total, recipe.seed, "share").numpy()
        target, groups_N = self.facts.task.target, data.groups.get("train")
        together_N = np.arange(total) if groups_N is None else groups_N.numpy()
        classes_N = None
        if used < total and target.kind == "classification" and not target.shape:
            classes_N = loader.labels(data.train).numpy()
        (kept_N,) = splits.shares(order_N, (used,), classes_N, together_N)
        # Hidden labels have no part in the choice of those that are seen.
        seen = max(1, round(len(kept_N) * recipe.labelled))
        order_N = order_N[np.isin(order_N, kept_N)]
        (seen_N,) = splits.shares(order_N, (seen,), None, together_N)
        hidden_N = np.setdiff1d(kept_N, seen_N)
        unlabelled = data.unlabelled
        if len(hidden_N):
            hidden: Dataset[Pair] = Subset(data.train, hidden_N.tolist())
            unlabelled = hidden if unlabelled is None else ConcatDataset([unlabelled, hidden])
        train = Subset(data.train, seen_N.tolist())
        whole = "" if groups_N is None else f", {len(np.unique(together_N[seen_N]))} whole groups"
        self.note(
            f"training on {len(seen_N)} of {total} samples with labels{whole}, {len(hidden_N)} "
            "without"
        )
        groups = data.groups if groups_N is None else {**data.groups, "train": groups_N[seen_N]}
        weights = dict(data.weights)
        if "train" in weights:
            weights["train"] = weights["train"][seen_N]
            if not weights["train"].any():
                raise DataError("the training samples that are left all have weight 0")
        return replace(data, train=train, unlabelled=unlabelled, groups=groups, weights=weights)

    def session(self, data: TaskData) -> RunSession:
        """Load the weights, build the model and calibrate the embedder."""
        recipe = self.recipe
        if recipe.deterministic:
            randomness.use_determinism(True)
        randomness.seed_everything(recipe.seed)
        handle = accelerator(recipe.device, recipe.precision)
        kind = handle.device.type
        if recipe.precision == "bf16" and kind == "cpu" and not multiplies_bf16(kind):
            self.note(
                "this processor does not multiply in bf16: it takes many times as long as fp32; "
                "leave out precision=bf16"
            )
        if handle.num_processes == 1 and _several_wanted():
            self.note(
                "accelerate started one process: without --multi_gpu it needs MPI for more; "
                "torchrun does not"
            )
        backbone: Backbone = self.make(recipe.backbone, "backbone")
        if recipe.adapter is not None:
            adapter: Adapter = self.make(recipe.adapter, "adapter")
            with randomness.seeded(recipe.seed, "initialise", "adapted"):
                adapter.apply(backbone)
        if recipe.activation_checkpointing and not recompute(backbone.recomputable()):
            self.note(f"{backbone.facts.name} has no layers that can be recomputed: all are stored")
        embedder = self.make(recipe.embedder, "embedder", backbone=backbone)
        parts = {}
        for part in recipe.mixer.component.uses:
            parts[part] = self.make(getattr(recipe, part), part)
        mixer = self.make(recipe.mixer, "mixer", **parts)
        target = self.facts.task.target
        predictor = self.make(
            recipe.predictor, "predictor", target, backbone=backbone, task=recipe.task
        )
        loss = self._loss(recipe.task.config.loss, "loss", target)
        _fit(loss, data.train)
        raw = data.raw
        if raw is not None and raw.label_mean is not None and raw.label_scale is not None:
            loss.unit(raw.label_mean, raw.label_scale)
        source, source_predictor, source_loss = None, None, None
        if source_users(recipe):
            source = self.source(backbone)
            if needs_source_head(recipe):
                source_predictor, source_loss = self._source_head(backbone, source)
        model = TrainingModel(
            embedder,
            backbone,
            mixer,
            predictor,
            loss,
            data.decode,
            source_predictor,
            source_loss,
            share_head=recipe.source_head == "target",
        )
        session = RunSession(
            model=model,
            data=data,
            facts=self.facts,
            metric=self.make(recipe.task.config.metric, "metric", target),
            stages=tuple(self.make(s, f"stage{i}") for i, s in enumerate(recipe.stages)),
            accelerator=handle,
            source=source,
            seed=recipe.seed,
            workers=recipe.workers,
            evaluation_batch=recipe.evaluation_batch,
            protocol=recipe.protocol,
            generators=self.generators,
            notes=self.notes,
            on_note=self.on_note,
        )
        self._calibrate(session)
        for number, stage in enumerate(session.stages):
            with randomness.seeded(recipe.seed, "initialise", "helper", number):
                helper = stage.helper(session)
            if helper is not None:
                model.helpers[helper_name(number)] = helper
        session.prepare()
        for stage in session.stages:
            stage.meet(session)
        return session

    def _loss(self, use: Use[Loss], name: str, output: Target) -> Loss:
        loss: Loss = self.make(use, name, output)
        return loss

    def source(self, backbone: Backbone) -> Dataset[Any]:
        """Load the samples of the recipe's source as ``backbone`` reads them."""
        recipe, target = self.recipe, self.plan.source_target
        assert recipe.source is not None
        assert target is not None
        source: Source = self.make(recipe.source, "source")
        request = SourceRequest(
            size=self._source_size(),
            label_shape=target.shape,
            prepare=backbone.prepare_source,
            tokenize=backbone.tokenize if self.facts.backbone.modality == "text" else None,
        )
        samples = source.load(request, randomness.derive(recipe.seed, "source") % 2**31)
        return loader.flattened(samples)

    def _source_head(
        self, backbone: Backbone, samples: Dataset[Any]
    ) -> tuple[Predictor | None, Loss]:
        recipe, target = self.recipe, self.plan.source_target
        assert recipe.source is not None
        assert target is not None
        loss = self._loss(recipe.source_loss or recipe.source.config.loss, "source_loss", target)
        _fit(loss, samples)
        if recipe.source_head == "target":
            return None, loss
        use = recipe.source_predictor or recipe.predictor
        return self.make(use, "source_predictor", target, backbone=backbone), loss

    def _source_size(self) -> tuple[int, ...]:
        """Images with the target's token grid; for sequences, the smallest square with as many."""
        backbone, grid = self.facts.backbone, self.facts.grid
        if len(grid) != 2 and backbone.patch is not None:
            side = math.isqrt(max(0, self.facts.num_tokens - 1)) + 1
            grid = tuple(min(side, most) for most in backbone.grid) or (side, side)
        if backbone.patch is None:
            return grid
        return tuple(side * backbone.patch for side in grid)

    @torch.no_grad()
    def _calibrate(self, session: RunSession) -> None:
        """Show the embedder some samples and the norm of the backbone's own tokens.

        A norm that the backbone states goes before one that is measured on the source, which only
        stands in for what the backbone was trained on. Methods that do not mix measure on the
        recipe's source too, so that every method starts from the same embedder.
        """
        model = session.model
        norm = model.backbone.reference_norm()
        samples = session.source
        if samples is None and norm is None and self.recipe.source:
            samples = self.source(model.backbone)
        if norm is None and samples is not None:
            x, _ = loader.first(samples, CALIBRATION_SAMPLES)
            norm = token_norm(model.backbone.embed(x).x_BND)
        train = session.data.train
        # Files are often sorted by class, so the first samples are not like the others.
        order = randomness.permutation(loader.count(train), self.recipe.seed, "embedder")

        def some(number: int) -> Tensor:
            return next(loader.batches(train, [order[:number].sort().values]))[0]

        if type(model.embedder).fit is not Embedder.fit:
            model.embedder.fit(some(FITTED_SAMPLES))
        x = some(CALIBRATION_SAMPLES)
        model.embedder.calibrate(x, norm)
        session.source_norm = norm
        session.target_norm = token_norm(model.embedder(x).x_BND)


def _trained_on_both(data: TaskData) -> TaskData:
    """As published: the validation split is trained on too, and the test split selects."""
    train: Dataset[Pair] = ConcatDataset([data.train, data.validation])
    groups, weights = dict(data.groups), dict(data.weights)
    for named in (groups, weights):
        if "train" in named:
            named["train"] = torch.cat([named["train"], named["validation"]])
    return replace(data, train=train, groups=groups, weights=weights)


def _fit(loss: Loss, dataset: Dataset[Any]) -> None:
    """Show a loss all labels, unless it ignores them: dense labels can be gigabytes."""
    if type(loss).fit is not Loss.fit:
        loss.fit(loader.single(loader.labels(dataset)))


def token_norm(x_BND: Tensor) -> float:
    """The mean Euclidean norm of tokens."""
    return float(x_BND.float().norm(dim=-1).mean())
