"""Perceiver IO from the library transformers, with random weights.

Shapes: B samples, C channels, M places of a sample, Q queries, P numbers per place, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from xmodal.interfaces import Facts, Settings
from xmodal_rivals.neural import NeuralRival, coordinates


class PerceiverIO(NeuralRival):
    """Latents read all places of a sample, attend to each other, and answer queries.

    A place is its channels and the Fourier features of its coordinates. Labels of a whole sample
    have one learned query, labels on a grid one query for every place.
    """

    name = "perceiver-io"
    citation = "Jaegle et al., Perceiver IO, ICLR 2022 (arXiv 2107.14795)"

    class Config(Settings):
        latents: PositiveInt = Field(256, description="Latent vectors.")
        width: PositiveInt = Field(256, description="Numbers of a latent vector.")
        layers: PositiveInt = Field(6, description="Layers of self-attention among latents.")
        heads: PositiveInt = Field(8, description="Heads of self-attention.")
        bands: PositiveInt = Field(
            32, description="Frequencies per axis of the coordinates; at most half its places."
        )

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """As of all neural rivals, and heads that do not divide the width."""
        yield from super().problems(config, facts)
        if config.width % config.heads:
            yield f"width {config.width} is not a multiple of {config.heads} heads"

    def network(self, config: Config) -> nn.Module:
        """The library's encoder and decoder."""
        return Perceiver(self.shape, self.output.size, config, self.output.kind == "dense")


class Perceiver(nn.Module):
    """Places in, answers out."""

    places_MP: Tensor

    def __init__(
        self, shape: Sequence[int], outputs: int, config: PerceiverIO.Config, dense: bool
    ) -> None:
        super().__init__()
        from transformers import PerceiverConfig, PerceiverModel
        from transformers.models.perceiver.modeling_perceiver import PerceiverBasicDecoder

        channels, *self.sides = shape
        self.dense, self.outputs = dense, outputs
        places_MP = fourier_features(self.sides, config.bands)
        self.register_buffer("places_MP", places_MP, persistent=False)
        self.config = PerceiverConfig(
            num_latents=config.latents,
            d_latents=config.width,
            d_model=channels + places_MP.shape[1],
            num_self_attends_per_block=config.layers,
            num_self_attention_heads=config.heads,
            num_cross_attention_heads=1,
            attention_probs_dropout_prob=0.0,
        )
        self.encoder = PerceiverModel(self.config)
        asked = places_MP.shape[1] if dense else config.width
        self.query = None if dense else nn.Parameter(0.02 * torch.randn(1, 1, asked))
        self.decoder = PerceiverBasicDecoder(
            self.config,
            output_num_channels=outputs,
            position_encoding_type="none",
            num_channels=asked,
            use_query_residual=not dense,
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *sides]`` to ``[B, K]`` or ``[B, K, *sides]``."""
        places_BMP = self.places_MP.expand(x.shape[0], *self.places_MP.shape)
        inputs_BMD = torch.cat([x.flatten(2).transpose(1, 2), places_BMP], dim=2)
        # Not through the model itself, which makes a mask of ones and asks the device about it.
        start = self.encoder.embeddings(batch_size=x.shape[0])
        latents = self.encoder.encoder(start, inputs=inputs_BMD).last_hidden_state
        query_BQP = places_BMP if self.query is None else self.query.expand(x.shape[0], -1, -1)
        y_BQK: Tensor = self.decoder(query_BQP, latents).logits
        if self.dense:
            return y_BQK.transpose(1, 2).reshape(x.shape[0], self.outputs, *self.sides)
        return y_BQK.flatten(1)


def fourier_features(sides: Sequence[int], bands: int) -> Tensor:
    """Coordinates from -1 to 1, and their sines and cosines up to the grid's own resolution.

    ``[M, axes (1 + 2 bands)]``, with fewer bands for an axis of fewer than twice as many places.
    """
    place = 2 * coordinates(sides).flatten(1) - 1
    features = [place]
    for axis_M, side in zip(place, sides, strict=True):
        number = min(bands, max(1, side // 2))
        frequency = torch.linspace(1, max(1.0, side / 2), number)[:, None]
        features += [(torch.pi * frequency * axis_M).sin(), (torch.pi * frequency * axis_M).cos()]
    joined = torch.cat(features).T.contiguous()
    assert len(joined) == prod(sides)
    return joined
