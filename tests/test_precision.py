"""A backbone in half precision: copies of its weights, gradients in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from xmodal import precision
from xmodal.batch import Tokens
from xmodal.interfaces import Backbone
from xmodal.plugins import registry
from xmodal.testing.tiny import TinyBackbone, tiny_context


def tiny() -> Backbone:
    cls = registry().load("backbone", "tiny")
    assert issubclass(cls, Backbone)
    return cls(cls.Config(), tiny_context())


def tokens(batch: int = 4) -> Tokens:
    x_BND = torch.randn(batch, 16, 32, generator=torch.Generator().manual_seed(0))
    return Tokens(x_BND.requires_grad_(), (4, 4))


def half() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def squares(features: Tokens) -> Tensor:
    weight_F = torch.linspace(-1, 1, features.x_BND.shape[-1])
    return (features.x_BND * weight_F).square().mean()


def test_everything_inside_is_computed_in_bf16_and_nothing_outside() -> None:
    backbone, given, seen = tiny(), tokens(), []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((output.dtype, *(p.dtype for p in module.parameters(recurse=False))))

    for module in backbone.modules():
        if not list(module.children()):
            module.register_forward_hook(look)
    with half():
        features = backbone(given)
        assert torch.is_autocast_enabled("cpu")
    assert len(seen) > 10
    assert {kind for kinds in seen for kind in kinds} == {torch.bfloat16}
    assert features.x_BND.dtype == torch.float32
    squares(features).backward()
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in backbone.parameters() if p.grad is not None} == {torch.float32}
    assert given.x_BND.grad is not None
    assert given.x_BND.grad.dtype == torch.float32


def test_it_equals_a_backbone_converted_to_bf16() -> None:
    """The usual way to compute in bf16: all weights are bf16. Here they only are for the pass."""
    backbone, given = tiny(), tokens()
    with half():
        loss = squares(backbone(given))
    loss.backward()
    converted = copy.deepcopy(backbone).bfloat16()
    for parameter in converted.parameters():
        parameter.grad = None
    with precision.half_kernels("cpu"):
        features = converted(Tokens(given.x_BND.detach().bfloat16(), given.grid))
    expected = squares(Tokens(features.x_BND.float(), features.grid))
    expected.backward()
    assert torch.equal(loss, expected)
    for own, other in zip(backbone.parameters(), converted.parameters(), strict=True):
        assert own.grad is not None
        assert other.grad is not None
        assert torch.equal(own.grad, other.grad.float())


def gradients(backbone: Backbone, autocast: bool) -> Tensor:
    backbone.zero_grad()
    if autocast:
        with half():
            features = backbone(tokens(64))
    else:
        features = backbone(tokens(64))
    squares(features).backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])


def test_gradients_are_as_exact_as_those_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny()
    exact = gradients(backbone, autocast=False)
    own = (gradients(backbone, autocast=True) - exact).norm() / exact.norm()
    monkeypatch.setattr(type(backbone), "native_bf16", False)
    usual = (gradients(backbone, autocast=True) - exact).norm() / exact.norm()
    assert 0 < own < 1.5 * usual < 0.02


def test_frozen_weights_get_no_gradient_and_lent_ones_get_theirs() -> None:
    backbone = tiny()
    names = [name for name, _ in backbone.named_parameters()]
    backbone.get_parameter(names[0]).requires_grad_(False)
    lent = backbone.get_parameter(names[1]).detach().clone().requires_grad_()
    with half():
        loss = squares(torch.func.functional_call(backbone, {names[1]: lent}, (tokens(),)))
    loss.backward()
    assert backbone.get_parameter(names[0]).grad is None
    assert backbone.get_parameter(names[1]).grad is None
    assert lent.grad is not None
    assert lent.grad.abs().sum() > 0


def test_copies_of_frozen_weights_need_no_gradient() -> None:
    """Else every step would compute them, which costs a third of it, and keep what that needs."""
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    layers[0].requires_grad_(False)
    made = precision.copies(layers, torch.bfloat16)
    needs = {name: made[name].requires_grad for name in made}
    assert needs == {"0.weight": False, "0.bias": False, "1.weight": True, "1.bias": True}
    layers.requires_grad_(False)
    assert not any(copy.requires_grad for copy in precision.copies(layers, torch.bfloat16).values())


def test_weights_that_changed_are_read_again() -> None:
    backbone = tiny()
    with torch.no_grad(), half():
        before = backbone(tokens()).x_BND
        next(backbone.parameters()).data.mul_(3)  # as an update that autograd does not see
        assert not torch.equal(before, backbone(tokens()).x_BND)


def test_a_gradient_has_a_gradient() -> None:
    """Bilevel methods differentiate a step; here d/dw of (d(w^3 sum)/dw) is 6 w."""
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, -0.5]]))
    weight = precision.copies(layer, torch.bfloat16)["weight"]
    (first,) = torch.autograd.grad(weight.pow(3).sum(), layer.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), layer.weight)
    assert torch.equal(first, 3 * layer.weight.detach() ** 2)
    assert torch.equal(second, 6 * layer.weight.detach())
    assert second.dtype == torch.float32


def test_a_backbone_that_does_not_say_so_runs_under_autocast() -> None:
    assert not Backbone.native_bf16
    backbone = TinyBackbone(TinyBackbone.Config(), tiny_context())
    seen = []
    backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].x_BND.dtype))
    with half():
        backbone(Tokens(torch.randn(2, 4, backbone.facts.width), (4,)))
    assert seen == [torch.float32]


def test_layer_norm_keeps_its_digits_on_the_cpu() -> None:
    """Torch's own kernel sums the weights' gradients in bf16: wrong by a tenth for these rows."""
    x_RD = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    gradient_RD = x_RD.sin() + 0.3
    with precision.half_kernels("cpu"):
        weight_D, bias_D = torch.ones(8).requires_grad_(), torch.zeros(8).requires_grad_()
        out_RD = functional.layer_norm(x_RD, (8,), weight_D.bfloat16(), bias_D.bfloat16())
    out_RD.backward(gradient_RD)
    assert out_RD.dtype == torch.bfloat16
    assert bias_D.grad is not None
    torch.testing.assert_close(
        bias_D.grad.double(), gradient_RD.double().sum(0), rtol=0.004, atol=0.0
    )
