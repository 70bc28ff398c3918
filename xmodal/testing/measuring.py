"""Contract checks of distances between point sets and of adapters of a backbone.

Shapes: n source points, m target points, D their width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmodal.batch import Points, Tokens
from xmodal.interfaces import Adapter, Distance
from xmodal.testing.support import (
    Given,
    build,
    check_config,
    expect,
    finite,
    same,
    seeded,
    shaped,
)
from xmodal.testing.tiny import GRIDS, TinyBackbone, random, tiny_context, tiny_tokens

WIDTH = 5
FAR = 10.0


def check_distance(component: type[Distance], given: Given = None) -> None:
    """A distance is a finite scalar with a gradient, small for one sample of the same points, large
    for far ones; classes may be missing, and no input is changed.
    """
    expect(issubclass(component, Distance), f"{component.__name__} must derive from Distance")
    check_config(component, given)
    name = component.__name__
    near = random(48, WIDTH, seed=0)
    classes = torch.arange(48) % 3
    for known in (classes, None):
        source = Points(near + (0 if known is None else known[:, None]), known)
        for other in (None, torch.zeros(32, dtype=torch.int64)):
            x = random(32, WIDTH, seed=1).requires_grad_()
            value = _distance(component, given, source, Points(x, other))
            shaped(value, (), f"{name}: the distance")
            finite(value, f"{name}: the distance")
            value.backward()  # type: ignore[no-untyped-call]
            expect(x.grad is not None, f"{name}: no gradient reaches the target's points")
            assert x.grad is not None
            finite(x.grad, f"{name}: the gradient of the target's points")
    source = Points(near, classes)
    values = [_distance(component, given, source, Points(near + s, classes)) for s in (0, FAR)]
    expect(bool(values[0] < values[1]), f"{name}: {values[0]:.4g} to itself, {values[1]:.4g} afar")
    again = _distance(component, given, source, Points(near + FAR, classes))
    same(values[1].detach(), again.detach(), f"{name} must be a function of its points and seed")
    expect(torch.equal(near, random(48, WIDTH, seed=0)), f"{name} changes its input in place")


def _distance(component: type[Distance], given: Given, source: Points, target: Points) -> Tensor:
    distance: Any = build(component, given, tiny_context())
    distance.fit(source)
    value: Tensor = distance(target)
    return value


def check_adapter(component: type[Adapter], given: Given = None) -> None:
    """An adapter leaves a backbone a backbone, gives the same names every time, and adds
    what can train.
    """
    expect(issubclass(component, Adapter), f"{component.__name__} must derive from Adapter")
    check_config(component, given)
    name = component.__name__
    plain = _backbone()
    backbones = [_backbone(), _backbone()]
    for backbone in backbones:
        with seeded(0):
            build(component, given).apply(backbone)
    names = [[key for key, _ in backbone.named_parameters()] for backbone in backbones]
    expect(names[0] == names[1], f"{name} must give the same parameter names every time")
    expect(len(names[0]) == len(set(names[0])), f"{name}: two parameters have one name")
    changed = set(names[0]) != {key for key, _ in plain.named_parameters()}
    expect(changed, f"{name} changes no parameter of the backbone")
    tokens = tiny_tokens(GRIDS["grid"])
    outputs = [backbone.eval()(tokens) for backbone in (*backbones, plain)]
    expect(
        all(isinstance(o, Tokens) for o in outputs), f"{name}: the backbone must still give Tokens"
    )
    shaped(outputs[0].x_BND, tuple(outputs[2].x_BND.shape), f"{name}: the features")
    finite(outputs[0].x_BND, f"{name}: the features")
    same(outputs[0].x_BND.detach(), outputs[1].x_BND.detach(), f"{name} differs between two uses")
    image = random(2, 3, 16, 24)
    kept = [backbone.embed(image).x_BND.detach() for backbone in (backbones[0], plain)]
    same(kept[0], kept[1], f"{name} changes the frozen source embedding")


def _backbone() -> TinyBackbone:
    return build(TinyBackbone)  # type: ignore[no-any-return]
