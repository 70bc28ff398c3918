"""What the GPU benchmark works with: models of two sizes, generated data, sessions on a device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from figures import Report
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from xmodal import plugins
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(
    (path.stem for path in (ROOT / "recipes/methods").glob("*.yaml")),
    key=lambda name: (name not in ("nft", "pare"), name),
)
"""The most important ones first: time may run out."""
LARGE = ("task={use: darcy, train: 64, validation: 64, test: 8, solver_grid: 85}",)
SMALL = ("task={use: darcy, train: 8, validation: 8, test: 4, resolution: 22, solver_grid: 22}",)
MIDDLE = "scheduler={use: linear, start: 0.75, stop: 0.25, unit: share, per: step}"
"""PaRe with another k in every step, half of the tokens on average."""
SOURCE = ("source={use: digits-on-photos, samples: 32}", "source_head=own")


@dataclass(frozen=True)
class Shape:
    """A backbone and what it reads; ``size`` samples a step."""

    name: str
    overrides: tuple[str, ...]
    size: int


VIT = ("embedder={use: patch, size: native, patch: 5}", "predictor={use: dense}")
SHAPES = (
    Shape("Swin-B, 3136 tokens", (*LARGE, "backbone={use: swin, pretrained: false}"), 32),
    Shape("ViT-S/14, 289 tokens", (*LARGE, "backbone={use: vit-s14, pretrained: false}", *VIT), 32),
)
SMALLER = (
    Shape("Swin-T, 3136 tokens",
          (*LARGE, "backbone={use: swin, size: tiny, pretrained: false}"), 4),
    Shape("ViT-S/14, 4 layers, 289 tokens",
          (*LARGE, "backbone={use: vit-s14, pretrained: false, layers: 4}", *VIT), 4),
)  # fmt: skip
PATCHES = ("embedder={use: patch, size: native}", "predictor={use: dense}")
TINY_SHAPES = (
    Shape("tiny", (*SMALL, "backbone={use: tiny, pretrained: false}", *PATCHES), 4),
    Shape("ViT, 1 layer", (*SMALL, "backbone={use: vit-s14, pretrained: false, layers: 1}",
                           "embedder={use: patch, size: native, patch: 11}",
                           "predictor={use: dense}"), 4),
)  # fmt: skip


@dataclass
class Bench:
    """What every section works with."""

    device: torch.device
    tiny: bool
    methods: Sequence[str]
    folder: Path
    report: Report
    store: Store = field(default_factory=Store)
    ends: float = 0.0
    rate: float = 0.0

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.type == "cuda"

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The models to time."""
        return TINY_SHAPES if self.tiny else SHAPES

    @property
    def smaller_shapes(self) -> tuple[Shape, ...]:
        """Models with the same kernels that cost less to make and to keep."""
        return TINY_SHAPES if self.tiny else SMALLER

    def goal(self, value: float) -> float | None:
        """A goal that holds for a GPU only."""
        return value if self.cuda else None

    def late(self) -> bool:
        """Whether the section's time is over."""
        return time.monotonic() > self.ends

    def session(
        self,
        recipes: Sequence[str],
        overrides: Sequence[str],
        scale: str | None = None,
        steps: int | None = None,
        change: Callable[[Tensor], None] | None = None,
    ) -> RunSession:
        """A session on the device. ``steps``: repeat the training samples for an epoch of so many.

        ``change`` may alter the training labels in place.
        """
        given = [f"device={self.device}", *(SOURCE if scale is None else ()), *overrides]
        plan = compose_plan(recipes, plugins.registry(), self.store, given, scale)
        builder = Builder(plan, self.store, lambda line: None)
        data = builder.data()
        if change is not None:
            x, y = loader.first(data.train, loader.count(data.train))
            y = y.clone()
            change(y)
            data = replace(data, train=TensorDataset(x, y))
        if steps is not None:
            stage = plan.recipe.stages[-1].config
            count = loader.count(data.train)
            order = [n % count for n in range(steps * stage.batch.size)]
            data = replace(data, train=Subset(data.train, order))
        return builder.session(data)

    def free(self) -> None:
        """Give the device's memory back."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
