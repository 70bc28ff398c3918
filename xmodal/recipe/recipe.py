"""The recipe: which component plays each part of a run, and with what settings."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from xmodal.advice import Code
from xmodal.errors import did_you_mean
from xmodal.settings import Kind, Settings, Use

if TYPE_CHECKING:
    from xmodal.interfaces import (
        Adapter,
        Backbone,
        Embedder,
        Loss,
        Mixer,
        Predictor,
        Scheduler,
        Selector,
        Source,
        Stage,
        Task,
        Tracker,
    )
else:  # the interfaces import torch, which checking names and keys does not need
    Adapter, Backbone, Embedder = Kind("adapter"), Kind("backbone"), Kind("embedder")
    Loss, Mixer, Predictor = Kind("loss"), Kind("mixer"), Kind("predictor")
    Scheduler, Selector, Source = Kind("scheduler"), Kind("selector"), Kind("source")
    Stage, Task, Tracker = Kind("stage"), Kind("task"), Kind("tracker")

Suited = Literal["grid", "sequence", "row", "classification", "multi-label", "regression", "dense"]
"""Forms of samples, and kinds of labels."""
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9]\d*))?")


def well_formed(device: str) -> str:
    """``device``, if it is a valid device name. Raises ValueError with the nearest valid name."""
    if _DEVICE.fullmatch(device):
        return device
    meant = re.sub(r"^gpu", "cuda", device.strip().lower())
    known = (meant,) if _DEVICE.fullmatch(meant) else ("auto", "cpu", "cuda", "cuda:0", "mps")
    hint = did_you_mean(meant, known)
    raise ValueError(f"'{device}' is not a device; expected auto, cpu, cuda, cuda:N or mps{hint}")


class Saving(Settings):
    """When checkpoints are written and how many are kept."""

    every_steps: int | None = Field(
        None, ge=1, description="Also save after every so many optimizer steps within an epoch."
    )
    every_minutes: float | None = Field(
        10.0, gt=0, description="Also save after every so many minutes within an epoch."
    )
    keep: int = Field(2, ge=1, description="Complete checkpoints to keep besides the best model.")
    finished: int = Field(
        0,
        ge=0,
        description="Complete checkpoints to keep once the run is done.",
    )


class Recipe(Settings):
    """A complete run: the same recipe, data and versions give the same result."""

    description: str = Field("", description="One line that describes the recipe.")
    method: str = Field(
        "", description="What lists call the method. Default: the last recipe of methods/."
    )
    scale: str = Field("", description="The scale that was laid on, for lists. Nothing to set.")
    banner: str = Field(
        "", description="A warning that stands beside the run's numbers wherever they are shown."
    )
    role: Literal["method", "control", "trivial", "rival"] = Field(
        "method",
        description="The role of a method in a comparison: a contender, a control that only "
        "matches the compute of a more expensive method, a trivial answer that every other "
        "method must beat, or a rival from elsewhere that fine-tunes nothing.",
    )
    suits: tuple[Suited, ...] = Field(
        (),
        description="Forms of samples and kinds of labels for which comparisons add a trivial "
        "method; of either, nothing named means all.",
    )
    family: str = Field(
        "",
        description="The kind of the task's data (image, series, table, ...) for verdicts, which "
        "count tasks of one family as one observation. Default: what the task says.",
    )
    task: Use[Task] = Field(description="The target task to learn.")
    source: Use[Source] | None = Field(
        None, description="Labelled data of the modality that the backbone was pretrained on."
    )
    backbone: Use[Backbone] = Field(description="The pretrained backbone.")
    adapter: Use[Adapter] | None = Field(
        None, description="Changes the backbone in place, such as low-rank updates."
    )
    embedder: Use[Embedder] = Field(description="Turns target samples into tokens.")
    mixer: Use[Mixer] = Field(description="Builds the views that a step trains on.")
    selector: Use[Selector] | None = Field(None, description="Chooses important tokens.")
    scheduler: Use[Scheduler] | None = Field(None, description="Sets how many tokens to replace.")
    predictor: Use[Predictor] = Field(description="Turns features into predictions.")
    source_predictor: Use[Predictor] | None = Field(
        None, description="Head for source labels; default: like the predictor, with own weights."
    )
    source_head: Literal["own", "target"] = Field(
        "own", description="Whether source labels have their own head or share the target's."
    )
    source_loss: Use[Loss] | None = Field(
        None, description="Loss of source labels; default: the source's."
    )
    stages: tuple[Use[Stage], ...] = Field(description="The phases of the run, in order.")
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the training samples to use.")
    labelled: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the used training samples that keep their labels; methods that learn "
        "from unlabelled samples can use the others.",
    )
    augment: bool = Field(
        False,
        description="Give training samples moved by the task's exact symmetries: to networks "
        "another move in every epoch, to models that are fitted once up to 8 copies of each.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**53,  # what every reader of JSON keeps exactly
        description="The same seed gives the same split, order and head.",
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="The most arithmetic of the encoder in plain fine-tuning, in 10^12 operations; "
        "tokens, then steps, then epochs beyond it are left out, as a note says. A fixed model "
        "counts, no clock. Two CPU cores do about 4 a minute. null: no limit.",
    )
    protocol: Literal["clean", "published"] = Field(
        "clean",
        description="clean: select on validation, test once. published: select on the test split.",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the backbone.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    workers: int = Field(0, ge=0, description="Data-loading processes; do not change the result.")
    deterministic: bool = Field(True, description="Use deterministic algorithms where they exist.")
    activation_checkpointing: bool = Field(
        False,
        description="Store only what each layer of the backbone reads, and compute the rest again "
        "in the backward pass: less memory, a third more time, the same results.",
    )
    evaluation_batch: int = Field(64, ge=1, description="Samples per batch outside training.")
    saving: Saving = Field(default_factory=Saving, description="Checkpoints.")
    ignore: tuple[Code, ...] = Field(
        (), description="Codes of advice that is not wanted; docs/advice.md lists them."
    )
    trackers: tuple[Use[Tracker], ...] = Field(
        (), description="Programs that also get the run's numbers; do not change the result."
    )

    @field_validator("stages")
    @classmethod
    def _at_least_one(cls, stages: tuple[Use[Stage], ...]) -> tuple[Use[Stage], ...]:
        if not stages:
            raise ValueError("a recipe needs at least one stage")
        return stages

    @field_validator("device")
    @classmethod
    def _named_as_devices_are(cls, device: str) -> str:
        return well_formed(device)

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[Use[Tracker], ...]) -> tuple[Use[Tracker], ...]:
        names = Counter(use.name for use in trackers)
        twice = [name for name, number in names.items() if number > 1]
        if twice:
            raise ValueError(f"'{twice[0]}' is named twice")
        return trackers
