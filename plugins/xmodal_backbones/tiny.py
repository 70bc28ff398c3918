"""A tiny transformer with fixed random weights: for tests, smoke runs and trying recipes out.

It knows nothing: here, "pretrained" only means that every run gets the same weights.

Shapes: B samples, N tokens, D width, L word pieces.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.interfaces import BackboneFacts, Context
from xmodal_backbones.common import BackboneSettings, BuiltinBackbone, count, seeded

_WIDTH, _HEADS, _PATCH, _WORDS, _LAYERS = 32, 2, 4, 1024, 2


def sinusoids(length: int, device: torch.device) -> Tensor:
    """Sine and cosine positions ``[length, D]`` (Vaswani et al. 2017)."""
    place_L1 = torch.arange(length, device=device)[:, None]
    even_R = torch.arange(0, _WIDTH, 2, device=device)
    rate_R = torch.exp(even_R * (-math.log(10_000) / _WIDTH))
    return torch.cat([(place_L1 * rate_R).sin(), (place_L1 * rate_R).cos()], dim=1)


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.num_heads = _HEADS
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv_BN3HE = self.qkv(self.norm1(x_BND)).unflatten(-1, (3, _HEADS, -1))
        q_BHNE, k_BHNE, v_BHNE = qkv_BN3HE.permute(2, 0, 3, 1, 4)
        read_BHNE = functional.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE)
        x_BND = x_BND + self.drop(self.out(read_BHNE.transpose(1, 2).flatten(2)))
        out: Tensor = x_BND + self.drop(self.mlp(self.norm2(x_BND)))
        return out


class _Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH)


class _Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH)


class Tiny(BuiltinBackbone):
    """Two layers of width 32 with fixed random weights; reads images or text. No download."""

    licence = "none: they are random numbers"

    class Config(BackboneSettings):
        """Settings of ``tiny``."""

        modality: Literal["image", "text"] = Field("image", description="The modality it reads.")

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.facts = self.describe(config, context.store)
        fixed = torch.Generator().manual_seed(0)
        with seeded(fixed if config.pretrained else context.generator):
            self.layers = nn.Sequential(*[_Block(config.dropout or 0.0) for _ in range(_LAYERS)])
            self.norm = nn.LayerNorm(_WIDTH)
            self.keep_embedding(_Patches() if config.modality == "image" else _Words())
        context.note(f"{self.facts.name}: {count(self):,} parameters, fixed random weights")

    @classmethod
    def describe(cls, config: Config, store: Store) -> BackboneFacts:
        """The facts of the chosen modality."""
        if config.modality == "image":
            return BackboneFacts(
                "tiny", "image", _WIDTH, _WIDTH, patch=_PATCH, grid=(8, 8), layers=_LAYERS
            )
        return BackboneFacts(
            "tiny-text", "text", _WIDTH, _WIDTH, max_tokens=512, embedding_norm=True, layers=_LAYERS
        )

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode ``[B, N, D]``; the grid does not change."""
        return Tokens(self.norm(self.layers(tokens.x_BND)), tokens.grid)

    def recomputable(self) -> Iterable[nn.Module]:
        """Both layers."""
        return self.layers

    def embed(self, x: Tensor) -> Tokens:
        """Embed images ``[B, 3, H, W]`` or ids ``[B, L]``."""
        if self.config.modality == "text":
            x_BLD = self.embedding.words(x)
            positions_LD = sinusoids(x.shape[1], x.device).to(x_BLD)
            return Tokens(self.embedding.norm(x_BLD + positions_LD), (x.shape[1],))
        map_BDHW = self.embedding.projection(x)
        grid = (map_BDHW.shape[2], map_BDHW.shape[3])
        x_BND = map_BDHW.flatten(2).transpose(1, 2)
        return Tokens(x_BND + sinusoids(x_BND.shape[1], x.device).to(x_BND), grid)

    def tokenize(self, words: list[str]) -> list[list[int]]:
        """One hashed id per word."""
        return [[zlib.crc32(word.lower().encode()) % _WORDS] for word in words]

    def prepare_source(self, raw: Any) -> Tensor:
        """Centre images; hash words and cut all rows to the shortest; ids pass unchanged."""
        if self.config.modality == "image":
            return (torch.as_tensor(raw, dtype=torch.float32) - 0.5) / 0.25
        if isinstance(raw, Tensor):
            return raw
        rows = [[piece for word in self.tokenize(row) for piece in word] for row in raw]
        length = min(len(row) for row in rows)
        return torch.tensor([row[:length] for row in rows], dtype=torch.int64)

    def patch_projection(self) -> nn.Conv2d | None:
        """The fixed patch projection of the image backbone."""
        return self.embedding.projection if self.config.modality == "image" else None

    def embedding_norm(self) -> nn.LayerNorm | None:
        """The LayerNorm at the end of the text embedding."""
        return self.embedding.norm if self.config.modality == "text" else None

    def positions(self, grid: tuple[int, ...]) -> Tensor | None:
        """Sine and cosine positions of the first N places."""
        like = next(self.parameters())
        return sinusoids(math.prod(grid), like.device).to(like)
