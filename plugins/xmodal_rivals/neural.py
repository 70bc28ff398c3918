"""What all neural rivals share: they read whole samples and are trained like any other model.

A rival is a predictor behind backbone ``identity`` and embedder ``flat``, which hand samples on as
they are. So it is trained by the same stage, on the same splits, with the task's own loss, and
scored by the same metric as a fine-tuned transformer.

Shapes: B samples, C channels, K outputs, H and W or L the sides of a sample (``*shape``).
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.interfaces import Context, Facts, Predictor, Settings, Target

KINDS = ("classification", "multi-label", "regression", "dense")


class NeuralRival(Predictor):
    """A network on whole samples ``[B, C, *shape]``; a subclass makes it in ``network``.

    ``kinds`` are the labels it can predict, ``forms`` the samples it can read. ``package`` is the
    module it needs, ``extra`` the extra of xmodal that installs it.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = KINDS
    forms: ClassVar[tuple[str, ...]] = ("grid", "sequence")
    package: ClassVar[str] = ""
    distribution: ClassVar[str] = ""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        self.shape = context.facts.task.shape
        self.output = context.output or context.facts.task.target
        with seeded(context.generator):
            self.body = self.network(config)
        count = sum(p.numel() for p in self.body.parameters())
        context.note(f"{self.name}: {count:,} parameters, all trained from scratch")

    @abstractmethod
    def network(self, config: Any) -> nn.Module:
        """The network: ``[B, *self.shape]`` to ``[B, K]`` or ``[B, K, *self.output.shape]``."""

    @classmethod
    def supports(cls, output: Target) -> bool:
        """Labels of ``kinds``."""
        return output.kind in cls.kinds

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report features instead of samples, and tasks that it cannot read or predict."""
        task, target = facts.task, facts.task.target
        if facts.backbone.width or facts.num_tokens not in (0, 1):
            yield (
                f"'{cls.name}' reads whole samples: it needs backbone 'identity' and embedder "
                f"'flat', as recipes/methods/{cls.name}.yaml says"
            )
        if task.form not in cls.forms:
            yield (
                f"'{cls.name}' reads samples of the form {' or '.join(cls.forms)}; those of "
                f"'{task.name}' have the form {task.form}"
            )
        elif target.shape and target.shape != task.shape[1:]:
            yield (
                f"'{cls.name}' predicts on the grid of the samples {list(task.shape[1:])}; the "
                f"labels of '{task.name}' have {list(target.shape)}"
            )
        if target.kind not in cls.kinds:
            yield (
                f"'{cls.name}' predicts {' and '.join(cls.kinds)} labels; '{task.name}' has "
                f"{target.kind} labels"
            )

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """The library that is not installed, with the command that installs it."""
        if cls.package and importlib.util.find_spec(cls.package) is None:
            yield (
                f"'{cls.name}' needs the package {cls.distribution}: "
                "python -m pip install 'xmodal[rivals-fields]'"
            )

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]``, or ``[B, K, *shape]`` for dense labels."""
        x_BC = features.x_BND.reshape(features.x_BND.shape[0], *self.shape)
        prediction: Tensor = self.body(x_BC)
        return prediction


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Initialise modules from a component's own generator; the global one stays as it is."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def padded(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Repeat the last entry of every spatial axis until it has the given side."""
    for axis, side in enumerate(sides, 2):
        # Not by torch's padding by repetition, whose gradient is not deterministic on a GPU.
        if extra := side - x.shape[axis]:
            last = x.narrow(axis, x.shape[axis] - 1, 1)
            x = torch.cat([x, *[last] * extra], dim=axis)
    return x


def cropped(x: Tensor, sides: Sequence[int]) -> Tensor:
    """The first entries of every spatial axis."""
    for axis, side in enumerate(sides, 2):
        x = x.narrow(axis, 0, side)
    return x


def coordinates(shape: Sequence[int]) -> Tensor:
    """The places of a grid, each axis from 0 to 1: ``[axes, *shape]``."""
    axes = [torch.linspace(0, 1, side) for side in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def convolution(axes: int) -> type[nn.Module]:
    """The convolution of torch for one or two spatial axes."""
    return nn.Conv1d if axes == 1 else nn.Conv2d


def batch_norm(axes: int) -> type[nn.Module]:
    """The batch normalisation of torch for one or two spatial axes."""
    return nn.BatchNorm1d if axes == 1 else nn.BatchNorm2d
