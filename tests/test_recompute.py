"""Activation checkpointing: the same numbers and draws from fewer stored tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.interfaces import Backbone
from xmodal.plugins import registry
from xmodal.recompute import recompute
from xmodal.testing.tiny import tiny_context


def backbones(dropout: float = 0.3) -> tuple[Backbone, Backbone]:
    """Two equal backbones; the second one recomputes."""
    cls = registry().load("backbone", "tiny")
    assert issubclass(cls, Backbone)
    plain = cls(cls.Config(dropout=dropout), tiny_context())
    other = copy.deepcopy(plain)
    assert recompute(other.recomputable()) == 2
    return plain, other


def trained(backbone: Backbone, half: bool = False) -> tuple[Tensor, ...]:
    """The loss of a pass with dropout, the generator after it, and all gradients."""
    torch.manual_seed(0)
    x_BND = torch.randn(4, 16, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        features = backbone(Tokens(x_BND, (4, 4)))
    loss = features.x_BND.sin().sum()
    state = torch.get_rng_state()
    torch.manual_seed(1)  # what comes between must not matter
    loss.backward()
    gradients = [p.grad for p in (x_BND, *backbone.parameters())]
    assert all(gradient is not None for gradient in gradients)
    return (loss.detach(), state, *(g for g in gradients if g is not None))


@pytest.mark.parametrize("half", [False, True])
def test_loss_gradients_and_draws_are_equal_to_the_last_bit(half: bool) -> None:
    plain, other = backbones()
    for expected, found in zip(trained(plain, half), trained(other, half), strict=True):
        assert torch.equal(expected, found)


def stored(backbone: Backbone, half: bool) -> int:
    """The numbers that autograd stores in a pass."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trained_tokens = torch.randn(4, 64, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            backbone(Tokens(trained_tokens, (8, 8)))
    return total


@pytest.mark.parametrize("half", [False, True])
def test_little_is_stored(half: bool) -> None:
    plain, other = backbones(0.0)
    assert stored(other, half) < 0.2 * stored(plain, half)


def test_weights_lent_for_one_pass_serve_the_second_one() -> None:
    plain, other = backbones(0.0)
    found = []
    for backbone in (plain, other):
        lent = {n: (2 * p.detach()).requires_grad_() for n, p in backbone.named_parameters()}
        given = Tokens(torch.ones(1, 16, 32).cumsum(1), (4, 4))
        out = torch.func.functional_call(backbone, lent, (given,))
        found.append(torch.autograd.grad(out.x_BND.sin().sum(), list(lent.values())))
        assert all(isinstance(p, nn.Parameter) for p in backbone.parameters())
    for expected, other_gradient in zip(*found, strict=True):
        assert torch.equal(expected, other_gradient)


def test_gradients_of_gradients_are_equal() -> None:
    found = []
    for backbone in backbones(0.0):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            x_BND = torch.linspace(-1, 1, 512).reshape(1, 16, 32).requires_grad_()
            out = backbone(Tokens(x_BND, (4, 4))).x_BND.sin().sum()
            (first,) = torch.autograd.grad(out, x_BND, create_graph=True)
            found.append(
                torch.autograd.grad(first.square().sum(), next(iter(backbone.parameters())))
            )
    torch.testing.assert_close(*found)


def test_nothing_is_recomputed_without_gradients() -> None:
    _, other = backbones()
    calls: list[Any] = []
    other.recomputable()[0].mlp.register_forward_hook(lambda *given: calls.append(given))  # type: ignore[index]
    with torch.no_grad():
        other(Tokens(torch.randn(1, 16, 32), (4, 4)))
    assert len(calls) == 1
    other(Tokens(torch.randn(1, 16, 32), (4, 4))).x_BND.sum().backward()
    assert len(calls) == 3


def test_a_copy_is_a_model_of_its_own() -> None:
    _, other = backbones(0.0)
    twin = copy.deepcopy(other)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert trained(other)[0] != trained(twin)[0]
