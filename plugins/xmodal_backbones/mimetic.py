"""Mimetic initialisation: attention that starts as it looks after pretraining, without any data.

Trockman and Kolter saw in pretrained vision transformers that W_q W_k^T is near a multiple of the
identity and W_v W_o near a negative one, and start random bodies so, in closed form.

Shapes: D width, K width of a head. Symbols as in the paper, where tokens are rows: x W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal.errors import UsageError
from xmodal.interfaces import Adapter, Backbone, Context, Settings

SEPARATE = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("query", "key", "value", ""),
    ("q", "k", "v", "o"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
)
"""How libraries name the four layers of an attention; BERT has the last one in a sibling."""
FUSED = (("qkv", "proj"), ("qkv", "out"))


class Mimetic(Adapter):
    """Overwrites the attention weights of every layer; everything else stays as it is.

    For each head, W_q W_k^T is the best approximation of rank K to ``a Z + b I``; W_v W_o is
    ``c Z - d I``. Z is normal with variance 1/D. Both are split evenly by the singular values. The
    biases of these layers become 0.
    """

    citation = "Trockman, Kolter: Mimetic Initialization of Self-Attention Layers, ICML 2023"

    class Config(Settings):
        """Settings of ``mimetic``."""

        query_key: tuple[float, float] = Field(
            (0.7, 0.7), description="a and b: noise and identity in W_q W_k^T."
        )
        value_output: tuple[float, float] = Field(
            (0.4, 0.4), description="c and d: noise and negative identity in W_v W_o."
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._generator, self._note = context.generator, context.note

    @torch.no_grad()
    def apply(self, backbone: Backbone) -> None:
        """Overwrite the weights. Raises UsageError if no attention is found."""
        if getattr(backbone.config, "pretrained", False):
            self._note("mimetic: the pretrained attention of the backbone is overwritten")
        found = attentions(backbone)
        if not found:
            raise UsageError(
                f"adapter 'mimetic' finds no attention layers in {type(backbone).__name__}"
            )
        for attention in found:
            self._overwrite(attention)
        self._note(f"mimetic: attention of {len(found)} layers")

    def _overwrite(self, attention: Attention) -> None:
        width, heads = attention.output.weight.shape[0], attention.heads
        size = width // heads
        noise, same = self.config.query_key
        queries, keys = [], []
        for _ in range(heads):
            left_DD, right_DD = self._factors(width, noise, same)
            queries.append(left_DD[:, :size].T)
            keys.append(right_DD[:size])
        noise, same = self.config.value_output
        left_DD, right_DD = self._factors(width, noise, -same)
        # Linear layers hold the transpose: y = x W^T.
        parts = (torch.cat(queries), torch.cat(keys), left_DD.T)
        for target, weight in zip(attention.inputs, parts, strict=True):
            target.copy_(weight)
        attention.output.weight.copy_(right_DD.T)
        for bias in attention.biases:
            bias.zero_()

    def _factors(self, width: int, noise: float, same: float) -> tuple[Tensor, Tensor]:
        """L and R with L R = noise Z + same I, by singular values, largest first."""
        z_DD = torch.randn(width, width, generator=self._generator) / width**0.5
        u_DD, s_D, vt_DD = torch.linalg.svd(noise * z_DD + same * torch.eye(width))
        return u_DD * s_D.sqrt(), s_D.sqrt()[:, None] * vt_DD


@dataclass(frozen=True)
class Attention:
    """The weights of one attention: views of those of query, key and value, and the output."""

    inputs: tuple[Tensor, ...]
    output: nn.Linear
    biases: tuple[Tensor, ...]
    heads: int


def attentions(backbone: nn.Module) -> list[Attention]:
    """Every self-attention whose layers have known names and whose query is as wide as its input.

    Raises UsageError if one does not tell its number of heads.
    """
    modules = dict(backbone.named_modules())
    found = []
    for name, module in modules.items():
        for first, out in FUSED:
            qkv, output = getattr(module, first, None), getattr(module, out, None)
            if isinstance(qkv, nn.Linear) and isinstance(output, nn.Linear):
                biases = (b for b in (qkv.bias, output.bias) if b is not None)
                inputs = qkv.weight.chunk(3)
                found.append(Attention(inputs, output, tuple(biases), _heads(name, module)))
                break
        for *firsts, out in SEPARATE:
            parts = [getattr(module, first, None) for first in firsts]
            parts.append(getattr(module, out, None) if out else _bert_output(name, modules))
            layers = [part for part in parts if isinstance(part, nn.Linear)]
            if len(layers) == 4:
                biases = (layer.bias for layer in layers if layer.bias is not None)
                inputs = tuple(layer.weight for layer in layers[:3])
                found.append(Attention(inputs, layers[3], tuple(biases), _heads(name, module)))
                break
    return [a for a in found if all(w.shape == a.output.weight.shape for w in a.inputs)]


def _bert_output(name: str, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(name.rpartition(".")[0] + ".output.dense")


def _heads(name: str, module: nn.Module) -> int:
    for key in ("num_attention_heads", "num_heads", "n_heads"):
        if isinstance(number := getattr(module, key, None), int):
            return number
    raise UsageError(f"adapter 'mimetic': the attention '{name}' does not tell its number of heads")
