"""Mimetic initialisation: the products of the weights, in every kind of attention there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xmodal import api
from xmodal.errors import UsageError
from xmodal.plugins import registry
from xmodal.testing.tiny import TinyBackbone, build, tiny_context
from xmodal_backbones.mimetic import Attention, Mimetic, attentions

BODIES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "tiny": ({}, 2, 2, 32),
    "vit-s14": ({"layers": 2}, 2, 6, 384),
    "minilm-l6": ({"layers": 1}, 1, 12, 384),
    "mpnet-base": ({"layers": 1}, 1, 12, 768),
    "timm": ({"name": "vit_tiny_patch16_224"}, 12, 3, 192),
}
"""Settings, and how many attentions of how many heads and which width."""


def body(backbone: str, **settings: Any) -> Any:
    kind: Any = registry().load("backbone", backbone)
    return build(kind, {**settings, "pretrained": False})


def mimetic(backbone: Any, **settings: Any) -> list[Attention]:
    Mimetic(Mimetic.Config(**settings), tiny_context()).apply(backbone)
    return attentions(backbone)


def product(first: Tensor, second: Tensor) -> Tensor:
    """W W' of layers that hold the transposes: x W is ``x @ weight.T``."""
    return (first.T @ second.T).detach()


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in list(BODIES)[1:])]
)
def test_without_noise_the_products_are_multiples_of_the_identity(name: str) -> None:
    settings, layers, heads, width = BODIES[name]
    found = mimetic(body(name, **settings), query_key=(0, 0.7), value_output=(0, 0.4))
    assert [(a.heads, a.output.weight.shape[0]) for a in found] == [(heads, width)] * layers
    for attention in found:
        query, key, value = attention.inputs
        same = torch.eye(width)
        assert torch.allclose(product(value, attention.output.weight), -0.4 * same, atol=1e-4)
        for q, k in zip(query.chunk(heads), key.chunk(heads), strict=True):
            # The best approximation of rank K has K singular values of .7, and is symmetric.
            values = torch.linalg.svdvals(q.T @ k)
            size = width // heads
            assert torch.allclose(values[:size], torch.full((size,), 0.7), atol=1e-4)
            assert values[size:].max() < 1e-4
            assert torch.allclose(q.T @ k, (q.T @ k).T, atol=1e-4)
        assert all(not bias.any() for bias in attention.biases)


def test_noise_and_signs() -> None:
    """W_v W_o is c Z - d I exactly: Z has variance 1/D; a head's diagonal is b on average over D
    in as far as rank K allows."""
    (attention, other) = mimetic(body("tiny"), query_key=(0.7, 0.7), value_output=(0.4, 0.4))
    query, key, value = (w.detach() for w in attention.inputs)
    width = 32
    noise = product(value, attention.output.weight) + 0.4 * torch.eye(width)
    assert float(noise.std()) == pytest.approx(0.4 / width**0.5, rel=0.1)
    assert abs(float(noise.mean())) < 4 * 0.4 / width**0.5 / width
    for q, k in zip(query.chunk(2), key.chunk(2), strict=True):
        head = q.T @ k
        # Its singular values are the largest ones of .7 Z + .7 I: between those of I and 0.7 * 3.
        largest = torch.linalg.svdvals(head)[:16]
        assert float(largest.min()) > 0.7
        assert float(largest.max()) < 0.7 * 3.2
        assert float(head.diagonal().mean()) > 0.2
    assert not torch.equal(attention.inputs[0], other.inputs[0])


def test_it_says_what_it_cannot_find() -> None:
    with pytest.raises(UsageError, match="finds no attention"):
        mimetic(build(TinyBackbone))


@pytest.mark.slow
def test_a_run_starts_with_it_and_can_be_used(tmp_path: Path) -> None:
    done = api.run(
        "methods/scratch-mimetic", "tasks/openml/car", scale="smoke", root=tmp_path, report=False
    ).run
    assert "mimetic: attention of 2 layers" in done.read("result.json")["notes"]
    import xmodal

    trained = xmodal.load(done.path)
    assert len(trained.predict(trained.samples())) > 0
