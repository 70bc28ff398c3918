"""The part of a model that predicts, rebuilt from what a run directory keeps.

Neither the training data nor the pretrained weights are read: the facts come from the manifest, the
body is built with random weights, and the run's own weights replace all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xmodal import runs
from xmodal.data.store import Store
from xmodal.engine import checkpoint, randomness
from xmodal.engine.build import Builder
from xmodal.engine.plan import Plan
from xmodal.errors import DataError
from xmodal.interfaces import (
    Backbone,
    BackboneFacts,
    Embedder,
    Facts,
    Predictor,
    SourceFacts,
    Target,
    TaskFacts,
)
from xmodal.recipe.model import Recipe
from xmodal.recipe.use import Use

PARTS = ("embedder", "backbone", "predictor", "decode")
_TUPLES = ("shape", "levels", "grid")


class Network(nn.Module):
    """Embedder, body, head and decoding: samples to predictions in the unit of the labels."""

    def __init__(
        self, embedder: Embedder, backbone: Backbone, predictor: Predictor, decode: nn.Module
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.backbone = backbone
        self.predictor = predictor
        self.decode = decode

    def forward(self, x: Tensor) -> Tensor:
        """Predict ``[B, K]`` or ``[B, K, *shape]`` from standardised samples, float32."""
        prediction = self.predictor(self.backbone(self.embedder(x)))
        decoded: Tensor = self.decode(prediction.float())
        return decoded


def facts_of(document: Mapping[str, Any]) -> Facts:
    """The facts that a manifest holds."""
    source = document["source"]
    if source is not None:
        source = SourceFacts(**{**source, "target": _target(source["target"])})
    task = _tupled(document["task"])
    return Facts(
        task=TaskFacts(**{**task, "target": _target(task["target"])}),
        backbone=BackboneFacts(**_tupled(document["backbone"])),
        source=source,
        grid=tuple(document["grid"]),
    )


def _target(document: Mapping[str, Any]) -> Target:
    return Target(**_tupled(document))


def _tupled(document: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {k: tuple(v) if k in _TUPLES else v for k, v in document.items()}


def rebuild(
    recipe: Recipe,
    facts: Facts,
    weights: Mapping[str, Tensor],
    where: str,
    note: Callable[[str], None] = lambda line: None,
) -> Network:
    """The network of a run with its ``weights`` (a model's state), in evaluation mode.

    Raises DataError where they do not fit, or where the task cannot decode without its data.
    """
    own = {k: v for k, v in weights.items() if k.partition(".")[0] in PARTS}
    decoding = {k.removeprefix("decode."): v for k, v in own.items() if k.startswith("decode.")}
    builder = Builder(Plan(recipe, facts, None), Store(), note)
    # What is drawn here is replaced; the caller's random numbers must not notice.
    with torch.random.fork_rng(devices=[]):
        backbone = builder.make(unpretrained(recipe.backbone), "backbone")
        if recipe.adapter is not None:
            with randomness.seeded(recipe.seed, "initialise", "adapted"):
                builder.make(recipe.adapter, "adapter").apply(backbone)
        embedder = builder.make(recipe.embedder, "embedder", backbone=backbone)
        target = facts.task.target
        predictor = builder.make(recipe.predictor, "predictor", target, backbone=backbone)
    decode = recipe.task.component.decoder(recipe.task.config, decoding)
    network = Network(embedder, backbone, predictor, decode)
    checkpoint.load_exactly(network, own, where)
    return network.eval().requires_grad_(False)


def unpretrained(use: Use[Any]) -> Use[Any]:
    """A body that reads no pretrained weights, where its settings can say so."""
    if "pretrained" not in type(use.config).model_fields:
        return use
    return Use(use.name, use.component, use.config.model_copy(update={"pretrained": False}))


def best_weights(run: runs.Run) -> tuple[dict[str, Tensor], str]:
    """The best weights of a run and where they lie. Raises DataError where there are none yet."""
    found = checkpoint.complete(run.checkpoints, checkpoint.BEST)
    if not found:
        raise DataError(f"{run.path} has no trained model yet (state: {run.state})")
    weights: dict[str, Tensor] = checkpoint.load(found[0])["model"]
    return weights, str(found[0])
