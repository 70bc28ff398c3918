"""What a backbone's pass costs and how exact it is, on a CPU; a minute, no downloads.

    python benchmarks/backbone_pass.py

First the error of features and gradients in bf16 against float32: under autocast, and as
``precision: bf16`` computes (docs/decisions.md). Then the time of a step of Swin-T, with the
library's layers and with ours, and with and without activation checkpointing.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.interfaces import Backbone, Context, Facts, Target, TaskFacts
from xmodal.plugins import registry
from xmodal.recompute import recompute

TASK = TaskFacts("benchmark", (3, 32, 32), Target("classification", 10), {"train": 1})
BACKBONES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("swin", {"size": "tiny", "drop_path": 0.0}, (28, 28)),
    ("vit-s14", {"layers": 6}, (8, 8)),
    ("timm", {"name": "vit_tiny_patch16_224"}, (8, 8)),
    ("minilm-l6", {"dropout": 0.0}, (64,)),
    ("tiny", {}, (8, 8)),
]


def make(name: str, settings: dict[str, Any]) -> Backbone:
    """A backbone with random weights, in training mode."""
    cls = registry().load("backbone", name)
    assert issubclass(cls, Backbone)
    config, store = cls.Config(**settings, pretrained=False), Store()
    facts = Facts(TASK, cls.describe(config, store))
    return cls(config, Context(facts, torch.Generator().manual_seed(0), store)).train()


def gradients(backbone: Backbone, x_BND: Tensor, grid: tuple[int, ...], half: bool) -> Any:
    """Features, and the gradients of all weights under a fixed linear head."""
    backbone.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        features_BNF = backbone(Tokens(x_BND, grid)).x_BND.float()
    generator = torch.Generator().manual_seed(2)
    head_FK = torch.randn(features_BNF.shape[-1], 10, generator=generator)
    logits_BK = features_BNF.mean(1) @ head_FK / len(head_FK) ** 0.5
    y_B = torch.arange(len(x_BND)) % 10
    torch.nn.functional.cross_entropy(logits_BK, y_B).backward()
    flat = [p.grad.flatten() for p in backbone.parameters() if p.grad is not None]
    return features_BNF.detach(), torch.cat(flat)


def error(found: Tensor, exact: Tensor) -> str:
    """The relative error of a tensor as a whole."""
    return f"{float((found - exact).norm() / exact.norm()):.4f}"


def exactness() -> None:
    """Print the errors of bf16."""
    print("relative error of bf16     features            gradients")
    print("                           autocast  native    autocast  native")
    for name, settings, grid in BACKBONES:
        backbone = make(name, settings)
        generator = torch.Generator().manual_seed(1)
        x_BND = torch.randn(8, torch.Size(grid).numel(), backbone.facts.width, generator=generator)
        exact = gradients(backbone, x_BND, grid, half=False)
        native = gradients(backbone, x_BND, grid, half=True)
        kind: Any = type(backbone)
        kind.native_bf16 = False
        usual = gradients(backbone, x_BND, grid, half=True)
        kind.native_bf16 = True
        numbers = [error(f[i], exact[i]) for i in (0, 1) for f in (usual, native)]
        print(f"{backbone.facts.name:26}", *(f"{number:9}" for number in numbers))


def seconds(step: Callable[[], Tensor], rounds: int = 5) -> float:
    """Processor seconds of a forward and a backward pass: the median."""
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        step().square().sum().backward()
        times.append(time.process_time() - begun)
    return statistics.median(times[1:])


def swin() -> None:
    """Print the time of a step of Swin-T."""
    from transformers import SwinConfig, SwinModel

    library: Any = SwinModel(SwinConfig(drop_path_rate=0.0)).encoder.train()
    ours = make("swin", {"size": "tiny", "drop_path": 0.0})
    recomputing = copy.deepcopy(ours)
    recompute(recomputing.recomputable())
    x_BND = torch.randn(2, 56 * 56, 96, requires_grad=True)
    tokens = Tokens(x_BND, (56, 56))
    theirs = seconds(lambda: library(x_BND, (56, 56)).last_hidden_state)
    own = seconds(lambda: ours(tokens).x_BND)
    again = seconds(lambda: recomputing(tokens).x_BND)
    print(f"\nSwin-T, 2 images of 224 px: library {theirs:.2f} s, here {own:.2f} s, ", end="")
    print(f"with activation checkpointing {again:.2f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    exactness()
    swin()
