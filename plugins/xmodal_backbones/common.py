"""Shared code of all backbones: settings, the frozen source embedding, normalisation of images.

A backbone trains without its own embedding layer, because target samples arrive through an
embedder. The pretrained embedding only reads source samples; it stays frozen, outside the trained
parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.data import IMAGENET
from xmodal.interfaces import Backbone, Facts, Settings


class BackboneSettings(Settings):
    """Settings of every backbone."""

    pretrained: bool = Field(True, description="Load pretrained weights; false: random weights.")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout in the backbone; empty: as in the model's config."
    )
    every_layer: bool = Field(
        False,
        description="Give one feature vector for each layer, the mean of its tokens (and the "
        "backbone's own first token, if it has one), instead of the last layer's tokens.",
    )


class ImageBackboneSettings(BackboneSettings):
    """Settings of image backbones."""

    drop_path: float | None = Field(
        None, ge=0, lt=1, description="Stochastic depth; empty: as in the model's config."
    )


class BuiltinBackbone(Backbone):
    """A backbone whose source embedding is frozen.

    The embedding is not a registered submodule. It is not trained, and checkpoints need not save it
    because the recipe determines it. It still moves between devices with the backbone.
    """

    native_bf16 = True
    _looking = False

    def __call__(self, tokens: Tokens) -> Tokens:
        """Encode; with ``every_layer`` into ``[B, L + 1, 2 F]``, see ``layer_means``."""
        if self._looking or not self.config.every_layer:
            return super().__call__(tokens)
        # In bf16, a copy of this module calls it once more.
        self._looking = True
        try:
            return layer_means(self, tokens)
        finally:
            self._looking = False

    def keep_embedding(self, embedding: nn.Module) -> None:
        """Freeze the source embedding and keep it apart from the trained parameters."""
        self.__dict__["_embedding"] = embedding.eval().requires_grad_(False)

    @property
    def embedding(self) -> Any:
        """The frozen source embedding."""
        return self.__dict__["_embedding"]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.embedding._apply(fn)
        return self


def layer_means(backbone: Backbone, tokens: Tokens) -> Tokens:
    """What is in each layer of a backbone, ``[B, L + 1, F]`` or ``[B, L + 1, 2 F]``, float32.

    Row 0 is the mean of ``tokens``, row l the mean over the tokens after layer l, before any final
    norm. Where the backbone puts tokens of its own in front, its first one (the class token) stands
    beside the mean. Narrower layers end in zeros.
    """
    number = tokens.x_BND.shape[1]
    found: list[tuple[Tensor, Tensor | None]] = [(tokens.x_BND.float().mean(1), None)]

    def keep(layer: nn.Module, given: Any, out: Any) -> None:
        h_BMF = (out[0] if isinstance(out, tuple) else out).float()
        if h_BMF.ndim == 4:  # timm's Swin keeps height and width apart
            h_BMF = h_BMF.flatten(1, 2)
        own = max(0, h_BMF.shape[1] - number)
        found.append((h_BMF[:, own:].mean(1), h_BMF[:, 0] if own else None))

    handles = [
        layer.register_forward_hook(keep) for layer in dict.fromkeys(backbone.recomputable())
    ]
    try:
        backbone(tokens)
    finally:
        for handle in handles:
            handle.remove()
    width = max(mean_BF.shape[1] for mean_BF, _ in found)
    beside = any(first_BF is not None for _, first_BF in found)
    rows = []
    for mean_BF, first_BF in found:
        parts = [functional.pad(mean_BF, (0, width - mean_BF.shape[1]))]
        if beside:
            first_BF = torch.zeros_like(mean_BF) if first_BF is None else first_BF
            parts.append(functional.pad(first_BF, (0, width - first_BF.shape[1])))
        rows.append(torch.cat(parts, dim=1))
    return Tokens(torch.stack(rows, dim=1), (len(rows),))


class ImageBackbone(BuiltinBackbone):
    """A backbone that was pretrained on images normalised with ``mean`` and ``std``."""

    mean_std = IMAGENET

    def prepare_source(self, raw: Any) -> Tensor:
        """Normalise float images ``[n, 3, H, W]`` in [0, 1]."""
        x_BCHW: Tensor = torch.as_tensor(raw, dtype=torch.float32)
        mean_C, std_C = (x_BCHW.new_tensor(values) for values in self.mean_std)
        return (x_BCHW - mean_C[:, None, None]) / std_C[:, None, None]


class PatchBackbone(ImageBackbone):
    """An image backbone whose ``embedding`` has ``projection`` and ``positions``."""

    def embed(self, x: Tensor) -> Tokens:
        """Embed prepared images ``[B, 3, H, W]``."""
        return Tokens(*self.embedding(x))

    def patch_projection(self) -> nn.Conv2d:
        """The pretrained patch projection."""
        projection: nn.Conv2d = self.embedding.projection
        return projection

    def positions(self, grid: tuple[int, ...]) -> Tensor | None:
        """Position embeddings resized to a 2-D grid; None for a sequence, and where relative."""
        found: Tensor | None = self.embedding.positions(grid) if len(grid) == 2 else None
        return found


@contextlib.contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Initialise modules from a component's own generator, without changing the global generator.

    Seeds only the CPU generator, because modules are built on the CPU.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def count(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def needs_2d(facts: Facts) -> Iterable[str]:
    """The problem if a windowed backbone would get a sequence of tokens."""
    if facts.grid and len(facts.grid) != 2:
        yield (
            f"backbone '{facts.backbone.name}' needs a 2-D token grid; this embedder makes a "
            f"sequence from task '{facts.task.name}'"
        )


def with_image_dropout(hf_config: Any, config: ImageBackboneSettings) -> Any:
    """Set dropout (hidden and attention) and stochastic depth if the recipe sets them."""
    if config.dropout is not None:
        hf_config.hidden_dropout_prob = config.dropout
        hf_config.attention_probs_dropout_prob = config.dropout
    if config.drop_path is not None:
        hf_config.drop_path_rate = config.drop_path
    return hf_config
