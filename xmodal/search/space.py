"""What a search tries: the cheap answers of the data's form, and ways to fine-tune.

Candidates and rungs are functions of the facts of the data and of a seed alone, so a search can be
repeated. The first way to fine-tune is the usual one; the others are drawn around it.

Successive halving: Jamieson and Talwalkar, AISTATS 2016.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xmodal.facts import TaskFacts

BATCH = 32
EPOCHS = 30
LEAST_STEPS, MOST_STEPS = 200, 4000
"""Steps of the highest rung: 30 passes over the training samples, within these bounds."""
RUNGS = 3
FACTOR = 3
"""A rung takes three times the steps of the one below; a third of its candidates climbs on."""
WIDTH = 9
"""Ways to fine-tune that a bracket starts with; a longer search draws another bracket."""
RATES = (1e-4, 3e-4, 1e-3)
RIVALS = {
    "row": ("xgboost", "lightgbm", "catboost"),
    "sequence": ("quant", "minirocket", "hydra"),
    "grid": (),
}
"""Rivals by the form of the data that are fitted in seconds; those that are installed are tried."""
LAYERS = {"text": (6, 2), "image": (12, 6)}
"""Layers of the packaged backbones, MiniLM-L6 and ViT-S/14, that are kept."""


@dataclass(frozen=True)
class Candidate:
    """One answer to try: recipes and settings over them. ``cheap``: it is fitted, not trained.

    ``cost``: work of a sample's pass relative to that of other candidates of the search.
    """

    name: str
    recipes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    cheap: bool = False
    cost: float = 1.0

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings as the command line takes them."""
        return as_overrides(self.settings)


def as_overrides(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as the command line takes them, ``key=value``."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())


def cheap(facts: TaskFacts, trivial: Sequence[str]) -> list[Candidate]:
    """The cheap answers for such data: the ``trivial`` methods, then rivals."""
    names = (*trivial, *(f"methods/{name}" for name in RIVALS[facts.form]))
    return [Candidate(name.removeprefix("methods/"), (name,), cheap=True) for name in names]


def fine_tuning(facts: TaskFacts, seed: int) -> Iterator[Candidate]:
    """Ways to fine-tune, without end: the usual one, then others, each once until all were drawn.

    ``seed`` decides the order of the others.
    """
    modality = "image" if facts.form == "grid" else "text"
    lengths = list(_tokens(facts))
    choices = list(itertools.product(("nft", "lora", "pare", "linear-probe"), RATES,
                                     LAYERS[modality], lengths))  # fmt: skip
    usual = choices.index(("nft", RATES[1], LAYERS[modality][0], lengths[0]))
    order = np.random.default_rng(seed).permutation(len(choices)).tolist()
    for index in (usual, *(other for other in order if other != usual)):
        yield _candidate(facts, modality, *choices[index])


def _candidate(
    facts: TaskFacts, modality: str, method: str, rate: float, layers: int, tokens: int
) -> Candidate:
    settings: dict[str, Any] = {
        "backbone.layers": layers,
        "training.optimizer.lr": rate,
    }
    name = f"{method} lr {rate:g}, {layers} layers"
    if facts.form != "row":
        settings["embedder"] = _embedder(facts, tokens)
        name += f", {tokens} tokens"
    passes = 2 if method == "pare" else 1
    return Candidate(name, (f"methods/{method}",), settings, cost=passes * layers * tokens)


def _tokens(facts: TaskFacts) -> Iterator[int]:
    """Numbers of tokens to cut a sample into, the usual one first."""
    if facts.form == "row":
        yield facts.shape[0]
        return
    if facts.form == "sequence":
        most = min(facts.shape[1], 64)
        yield from dict.fromkeys((min(32, most), most, min(16, most)))
        return
    sides = dict.fromkeys(_side(facts, patches) for patches in (7, 14))
    yield from (_grid(facts, side) for side in sides)


def _side(facts: TaskFacts, patches: int) -> int:
    """The side of patches of which ``patches`` lie along the longer side of an image."""
    return max(1, math.ceil(max(facts.shape[1:]) / patches))


def _grid(facts: TaskFacts, side: int) -> int:
    return math.prod(math.ceil(length / side) for length in facts.shape[1:])


def _embedder(facts: TaskFacts, tokens: int) -> dict[str, Any]:
    if facts.form == "sequence":
        return {"use": "conv-1d", "kernel": math.ceil(facts.shape[1] / tokens)}
    side = next(s for p in (7, 14) if _grid(facts, s := _side(facts, p)) == tokens)
    return {"use": "patch", "size": "native", "patch": side}


@dataclass(frozen=True)
class Rung:
    """Steps of a rung, as passes of so many steps each."""

    epochs: int
    steps: int

    @property
    def total(self) -> int:
        """All optimizer steps."""
        return self.epochs * self.steps


def rungs(samples: int) -> tuple[Rung, ...]:
    """The rungs for so many training samples, lowest first."""
    whole = math.ceil(samples / BATCH)
    most = min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * whole))
    found = []
    for power in reversed(range(RUNGS)):
        steps = math.ceil(most / FACTOR**power)
        epochs = max(3, math.ceil(steps / whole))
        found.append(Rung(epochs, min(whole, math.ceil(steps / epochs))))
    return tuple(found)


def training(rung: Rung, epochs: int | None = None) -> dict[str, Any]:
    """The settings of a rung; ``epochs`` of them, where a last fit is to end earlier."""
    count = rung.epochs if epochs is None else epochs
    return {
        "stages": {"finetune": {"epochs": count, "max_steps": rung.steps}},
        "training.batch": {"size": BATCH, "micro": None},
        "training.optimizer.weight_decay": 0.01,
        "training.schedule": {
            "warmup_epochs": count / 10, "decay": "cosine", "decay_epochs": None,
        },
        "training.clip": 1.0,
    }  # fmt: skip
