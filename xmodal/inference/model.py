"""A trained model in use: raw samples in, predictions in the unit of the labels out.

It is read from a run directory alone, without the training data or the pretrained weights. The
facts come from the manifest. The backbone is built with random weights, which those of the run
replace. Samples are prepared as the training samples were.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from xmodal import plugins, randomness, runs
from xmodal.data import fetching
from xmodal.data import labels as labelling
from xmodal.data.preparation import RawForm
from xmodal.data.seen import Seen
from xmodal.data.store import Store
from xmodal.engine import checkpoint
from xmodal.engine import device as devices
from xmodal.engine.build import Builder
from xmodal.engine.memory import device_errors
from xmodal.engine.plan import Plan
from xmodal.errors import DataError, file_errors
from xmodal.inference import ensemble
from xmodal.interfaces import Context, Facts, Metric, Network
from xmodal.recipe.compose import compose, validate
from xmodal.recipe.messages import own_recipe
from xmodal.recipe.recipe import Recipe
from xmodal.settings import Use
from xmodal.text import shown

PARTS = ("embedder", "backbone", "predictor", "decode")


@fetching.doing("use")
def rebuild(
    recipe: Recipe,
    facts: Facts,
    weights: Mapping[str, Tensor],
    where: str,
    note: Callable[[str], None] = lambda line: None,
) -> Network:
    """The network of a run with its ``weights`` (a model's state), in evaluation mode.

    Raises DataError if they do not fit, or if the task cannot decode without its data.
    """
    own = {k: v for k, v in weights.items() if k.partition(".")[0] in PARTS}
    decoding = {k.removeprefix("decode."): v for k, v in own.items() if k.startswith("decode.")}
    builder = Builder(Plan(recipe, facts, None), Store(), note)
    # The weights drawn here are replaced; the caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        backbone = builder.make(unpretrained(recipe.backbone), "backbone")
        if recipe.adapter is not None:
            with randomness.seeded(recipe.seed, "initialise", "adapted"):
                builder.make(recipe.adapter, "adapter").apply(backbone)
        embedder = builder.make(recipe.embedder, "embedder", backbone=backbone)
        target = facts.task.target
        predictor = builder.make(
            recipe.predictor, "predictor", target, backbone=backbone, task=recipe.task
        )
    decode = recipe.task.component.decoder(recipe.task.config, decoding)
    network = Network(embedder, backbone, predictor, decode)
    checkpoint.load_exactly(network, own, where)
    return network.eval().requires_grad_(False)


def unpretrained(use: Use[Any]) -> Use[Any]:
    """The backbone without its pretrained weights, if its settings can say so."""
    if "pretrained" not in type(use.config).model_fields:
        return use
    return Use(use.name, use.component, use.config.model_copy(update={"pretrained": False}))


def best_weights(run: runs.Run) -> tuple[dict[str, Tensor], str]:
    """The best weights of a run and where they are. Raises DataError if there are none yet."""
    found = checkpoint.complete(run.checkpoints, checkpoint.BEST)
    if not found:
        raise DataError(f"{run.path} has no trained model yet (state: {run.state})")
    return checkpoint.weights(checkpoint.load(found[0], run.digest)), str(found[0])


Array = NDArray[Any]


class TrainedModel:
    """A trained model: raw samples in, predictions out.

    model: maps prepared samples to outputs.
    facts, recipe, classes: what it learned, and how.
    raw: how raw samples are prepared. None: they need no preparation.
    run: the run directory that it comes from.
    seen: the samples that it was trained on. None: the run does not say.
    """

    def __init__(
        self,
        model: Network,
        recipe: Recipe,
        facts: Facts,
        raw: RawForm | None,
        classes: tuple[str, ...],
        run: runs.Run,
        device: torch.device,
        note: Callable[[str], None],
        seen: Seen | None = None,
    ) -> None:
        self.model = model.to(device)
        self.recipe = recipe
        self.facts = facts
        shape = facts.task.shape
        self.raw = raw or RawForm(shape, shape, missing=facts.task.form == "row")
        self.classes = classes
        self.run = run
        self.device = device
        self.note = note
        self.seen = seen

    def state(self) -> dict[str, Any]:
        """The model as plain values and tensors in main memory, to be pickled."""
        weights = {name: value.cpu() for name, value in self.model.state_dict().items()}
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "facts": self.facts,
            "raw": self.raw,
            "classes": self.classes,
            "path": str(self.run.path),
            "weights": weights,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device, where: str) -> TrainedModel:
        """The model that ``state`` describes; ``where`` it comes from, for errors."""
        if "members" in state:
            members = [TrainedModel.of(one, device, where) for one in state["members"]]
            return Ensemble(members, state["shares"], runs.Run(Path(state["path"])))
        recipe = Recipe.model_validate(state["recipe"])
        return cls(
            model=rebuild(recipe, state["facts"], state["weights"], where),
            recipe=recipe,
            facts=state["facts"],
            raw=state["raw"],
            classes=state["classes"],
            run=runs.Run(Path(state["path"])),
            device=device,
            note=warnings.warn,
        )

    @property
    def kind(self) -> str:
        """What it predicts: ``classification``, ``multi-label``, ``regression`` or ``dense``."""
        return self.facts.task.target.kind

    def predict(self, x: Any, batch: int | None = None, names: bool = False) -> Array:
        """Predictions of raw samples, in the unit and the shape of the labels.

        Classes are numbers 0 .. K-1, or ``names``; several labels are 0 or 1. Fields of 0/1 are
        the one exception: they are log-odds. ``x`` is an array, a tensor or a table (pandas,
        polars, Arrow). Raises DataError saying what was expected and what was given.
        """
        return self.decide(self.outputs(x, batch), names)

    def predict_proba(self, x: Any, batch: int | None = None) -> Array:
        """The probability of every class or label, ``[n, K]``. Raises DataError for numbers."""
        return self.probabilities(self.outputs(x, batch))

    def outputs(self, x: Any, batch: int | None = None) -> Tensor:
        """The outputs of the model for raw samples: ``[n, K]`` or ``[n, K, *shape]``, on the CPU.

        Logits for classes, log-odds for labels, or numbers in the unit of the labels. They equal
        the predictions of the run bit for bit, for the same samples in the same order and batches.
        """
        size = batch or self.recipe.evaluation_batch
        if self.raw.window is not None and not self._are_windows(x):
            if len(x) == 0:
                raise self.raw.empty("x")
            pieces = (self.windows(x[i : i + 1], i) for i in range(len(x)))
            return torch.cat([self.by_recording(*piece, size) for piece in pieces])
        # A frame is read as a whole, so that no batch changes what its cells mean.
        x = self._array(x)
        self.raw.check_shape(x)
        if len(x) == 0:
            raise self.raw.empty("x")
        chunks = (x[i : i + size] for i in range(0, len(x), size))
        return torch.cat(list(self.stream(chunks)))

    def _are_windows(self, x: Any) -> bool:
        """Whether samples are windows already, and no recordings to be cut into some."""
        return getattr(x, "shape", ())[1:] in (self.raw.shape, self.raw.laid)

    def windows(self, x: Any, first: int = 0) -> tuple[Tensor, list[int]]:
        """The prepared windows of recordings, and how many of them each recording has."""
        cut, counts = self.raw.windows(x, first)
        return self.prepare(cut, first), counts

    def by_recording(self, prepared: Tensor, counts: list[int], batch: int) -> Tensor:
        """One output a recording, ``[n, K]``: the mean over its prepared windows.

        Raises DataError for labels of each place, which have no mean.
        """
        if self.kind == "dense":
            raise DataError(
                "this model has a label for each place of a window, so recordings cannot be "
                f"predicted as a whole; give windows of {list(self.raw.shape)}"
            )
        outputs = torch.cat([self.forward(piece) for piece in torch.split(prepared, batch)])
        return torch.stack([piece.mean(dim=0) for piece in torch.split(outputs, counts)])

    def stream(self, chunks: Iterator[Any]) -> Iterator[Tensor]:
        """The outputs of each chunk of raw samples, in one forward pass."""
        first = 0
        for chunk in chunks:
            yield self.forward(self.prepare(chunk, first))
            first += len(chunk)

    def prepare(self, x: Any, first: int = 0) -> Tensor:
        """Raw samples as the model reads them, float32; ``first`` is the number of the first row.

        Raises DataError saying what was expected and what was given.
        """
        raw = self.raw.check(_native(self._array(x, first)), first)
        prepared = self.raw.apply(torch.from_numpy(np.require(raw, requirements=("C", "W"))))
        self.raw.require_float32(prepared, "x", range(first, first + len(prepared)))
        return prepared

    def _array(self, x: Any, first: int = 0) -> Array:
        if _is_frame(x):
            return self.raw.encode(x, first, self.note)
        return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)

    @device_errors()
    @torch.no_grad()
    @fetching.doing("use")
    def forward(self, x: Tensor) -> Tensor:
        """The outputs of prepared samples, in the precision and with the arithmetic of the run.

        Numbers are in the unit of the labels.
        """
        half = self.recipe.precision == "bf16"
        cast = torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()
        with randomness.Kernels(self.recipe.deterministic, self.note), cast:
            outputs: Tensor = self.model(x.to(self.device)).cpu()
        return self.raw.restore_labels(outputs)

    def decide(self, outputs: Tensor, names: bool = False) -> Array:
        """What ``predict`` returns for ``outputs``."""
        if self.kind == "classification":
            index_N: Array = outputs.argmax(dim=1).numpy()
            return np.array(self.class_names)[index_N] if names else index_N
        if self.kind == "multi-label":
            outputs = (outputs > 0).to(outputs.dtype)
        decided: Array = self.raw.raw_labels(outputs).numpy()
        return decided

    def probabilities(self, outputs: Tensor) -> Array:
        """What ``predict_proba`` returns for ``outputs``."""
        if self.kind == "classification":
            shares: Array = outputs.float().softmax(dim=1).numpy()
            return shares
        if self.kind == "multi-label":
            odds: Array = outputs.float().sigmoid().numpy()
            return odds
        raise DataError(f"task '{self.facts.task.name}' has {self.kind} labels: no probabilities")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes or labels; their numbers if they have none."""
        count = self.facts.task.target.size
        return self.classes or tuple(str(index) for index in range(count))

    def labels(self, y: Any, first: int = 0) -> Tensor:
        """Raw labels as the metric reads them: int64 ``[n]``, or float ``[n, K, *shape]``.

        Classes come as names, numbers, or rows with a single 1. Axes of size 1 do not matter.
        Numbers take the way of those of the run, so that scores are equal to the last digit. Raises
        DataError, also for missing classes and numbers.
        """
        y = labelling.as_labels(y)
        if self.kind in ("classification", "regression"):
            labelling.require_all(y, first)
        if self.kind == "classification":
            return torch.from_numpy(labelling.class_numbers(y, self.class_names, first))
        target = self.facts.task.target
        shape = (target.size, *target.shape)
        known = torch.tensor(labelling.fields(y, self.raw, shape, first))  # may be read-only
        kept = self.raw.standardise_labels(known)
        self.raw.require_float32(kept.float(), "y", range(first, first + len(kept)))
        return self.raw.restore_labels(kept)

    def metric(self) -> Metric:
        """The metric of the run, empty."""
        seed = self.recipe.seed
        generator = randomness.generator(seed, "component", "metric")
        context = Context(self.facts, generator, Store(), output=self.facts.task.target)
        metric: Metric = self.recipe.task.config.metric.build(context)
        metric.reset()
        return metric

    def score(self, x: Any, y: Any) -> float:
        """The metric of the run on raw samples and their labels."""
        metric = self.metric()
        outputs, known = self.outputs(x), self.labels(y)
        if len(outputs) != len(known):
            raise DataError(f"x has {len(outputs)} samples, but y {len(known)}")
        metric.update(outputs, known)
        return metric.compute()

    def samples(self) -> Array:
        """The few raw test samples that the run has kept; empty if it has none."""
        folder = self.run.path / "samples"
        if not (folder / checkpoint.SUMS).is_file():
            return np.empty((0, *self.raw.shape))
        kept: Tensor = checkpoint.load(folder)["test"]["x"]
        raw: Array = self.raw.invert(kept).numpy()
        return raw


class Ensemble(TrainedModel):
    """``members`` and their ``weights``, which add up to 1, as one model.

    Raises DataError if the members prepare samples differently.
    """

    def __init__(
        self, members: Sequence[TrainedModel], weights: Sequence[float], run: runs.Run
    ) -> None:
        first = members[0]
        super().__init__(
            first.model, first.recipe, first.facts, first.raw, first.classes, run, first.device,
            first.note, first.seen,
        )  # fmt: skip
        self.members, self.weights = tuple(members), tuple(weights)
        for other in members[1:]:
            if not first.raw.reads_like(other.raw) or other.classes != first.classes:
                raise DataError(
                    f"{run.path}: {other.run.path} does not prepare samples as {first.run.path}"
                )

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the members' outputs for prepared samples."""
        found = [member.forward(x) for member in self.members]
        return ensemble.combined(self.kind, found, self.weights)

    def state(self) -> dict[str, Any]:
        """The models as plain values and tensors in main memory, to be pickled."""
        members = [member.state() for member in self.members]
        return {"members": members, "shares": list(self.weights), "path": str(self.run.path)}


@file_errors()
@device_errors()
@fetching.doing("use")
def load_trained(
    reference: str | Path,
    device: str | None = None,
    plugin_files: tuple[str, ...] = (),
    note: Callable[[str], None] = warnings.warn,
) -> TrainedModel:
    """The trained model of a run, with its best weights; or that of an ensemble of runs.

    ``device`` is the run's unless named, and the CPU, with a note, if the run's is not here. Raises
    UsageError if there is no such run or no such device, DataError if it has no trained model.
    """
    named = None if device is None else devices.checked(str(device))
    run = runs.locate(str(reference))
    if (run.path / runs.ENSEMBLE).is_file():
        found = ensemble.members(run)
        members = [load_trained(path, device, plugin_files, note) for path in found]
        return Ensemble(members, list(found.values()), run)
    registry = plugins.registry(plugin_files)
    with own_recipe(run.path):
        layered = compose([str(run.path / "resolved.yaml")], registry, (), None)
        recipe = validate(layered, registry)
    weights, where = best_weights(run)
    if not (run.path / "inputs").exists():
        raise DataError(
            f"{run.path} does not say how its samples were prepared (it was made by an earlier "
            "version); run its recipe again: xmodal run --force " + str(run.path / "resolved.yaml")
        )
    raw, seen = _inputs(run)
    if run.state != "done":
        note(f"{run.path} is not finished (state: {run.state}); these are its best weights so far")
    manifest = run.read("manifest.json")
    facts: Facts = TypeAdapter(Facts).validate_python(manifest["facts"])
    return TrainedModel(
        model=rebuild(recipe, facts, weights, where),
        recipe=recipe,
        facts=facts,
        raw=raw,
        classes=tuple(manifest["classes"]),
        run=run,
        device=named or devices.checked(devices.or_cpu(recipe.device, note)),
        note=note,
        seen=seen,
    )


def _inputs(run: runs.Run) -> tuple[RawForm | None, Seen | None]:
    """How raw samples are prepared, and which of them were trained on."""
    kept = checkpoint.load(run.path / "inputs", run.digest)
    try:
        raw = None if kept["raw"] is None else RawForm.of(kept["raw"])
        return raw, Seen.of(kept["seen"]) if "seen" in kept else None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{run.path / 'inputs'} is damaged: {shown(error)}") from None


def _native(x: Array) -> Array:
    """Numbers that torch accepts: in this machine's byte order, no wider than float64."""
    wide = x.dtype.kind == "f" and x.dtype.itemsize > 8
    return x.astype(np.float64 if wide else x.dtype.newbyteorder("="), copy=False)


def _is_frame(x: Any) -> bool:
    return hasattr(x, "columns") and hasattr(x, "shape") and len(x.shape) == 2
