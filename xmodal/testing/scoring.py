"""Contract checks of losses, metrics, distances and adapters.

Shapes: B samples, K outputs; dense predictions and labels are ``[B, K, *shape]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xmodal.batch import Points, Tokens
from xmodal.interfaces import Adapter, Backbone, Distance, Facts, Loss, Metric, Target
from xmodal.testing.fitting import KINDS
from xmodal.testing.tiny import (
    BATCH,
    CLASSES,
    GRIDS,
    Given,
    TinyBackbone,
    build,
    check_class,
    expect,
    finite,
    gradient,
    random,
    same,
    seeded,
    shaped,
    tiny_context,
    tiny_facts,
    tiny_labels,
    tiny_prediction,
    tiny_target,
)

SAMPLES = 2 * CLASSES
CERTAIN = 50.0


def _cases(facts: Facts | None) -> list[Facts]:
    """Facts for every kind of label, or only the given facts."""
    if facts is not None:
        return [facts]
    dense_1d = tiny_facts("sequence", tiny_target("dense", "sequence"))
    return [*(tiny_facts("grid", tiny_target(kind)) for kind in KINDS), dense_1d]


def _perfect(target: Target, y: Tensor) -> list[Tensor]:
    """Predictions that should get the best score: certain logits, the labels, or both."""
    if target.kind == "classification":
        # Losses with smoothed labels penalise certainty, so the less certain logits suit them.
        return [logit * functional.one_hot(y, target.size).float() for logit in (CERTAIN, 4.0)]
    logits = CERTAIN * (2 * y - 1)
    return {"multi-label": [logits], "regression": [y.clone()]}.get(
        target.kind, [y.clone(), logits]
    )


def check_loss(
    component: type[Loss],
    given: Given = None,
    facts: Facts | None = None,
    zero_at_perfect: bool = True,
) -> None:
    """A loss gives one finite number per sample, with a finite gradient; 0 for perfect predictions.

    ``zero_at_perfect=False`` is for losses whose minimum is not 0, such as smoothed labels.
    """
    check_class(component, Loss, given)
    tried = 0
    for case in _cases(facts):
        target = case.task.target
        supports = component.supports(target)
        expect(isinstance(supports, bool), f"{component.__name__}.supports must give a bool")
        if supports:
            tried += 1
            loss = build(component, given, tiny_context(case, output=target))
            _loss(loss, target, zero_at_perfect)
    expect(tried > 0, f"{component.__name__} supports none of the labels: {', '.join(KINDS)}")


def _loss(loss: Loss, target: Target, zero_at_perfect: bool) -> None:
    name = f"{type(loss).__name__} on {target.kind} labels"
    y, prediction = tiny_labels(target, SAMPLES), tiny_prediction(target, SAMPLES)
    kept = y.clone()
    loss.fit(y)
    leaf = prediction.clone().requires_grad_()
    value = loss(leaf, y)
    shaped(value, (SAMPLES,), f"{name}: the loss")
    finite(value, f"{name}: the loss")
    value.sum().backward()
    gradient(leaf, "the prediction", name)
    expect(torch.equal(kept, y), f"{name} changes the labels in place")
    alone = torch.cat([loss(prediction[i : i + 1], y[i : i + 1]) for i in range(SAMPLES)])
    message = f"{name}: the loss of one sample depends on the other samples of the batch"
    same(value.detach(), alone.detach(), message)
    best = min(_at_perfect(loss, right, y, name) for right in _perfect(target, y))
    typical = float(value.detach().mean())
    expect(best <= typical, f"{name}: {best:g} for perfect, {typical:g} for random predictions")
    if zero_at_perfect:
        expect(abs(best) < 1e-4, f"{name}: {best:g} for a perfect prediction, not 0")


def _at_perfect(loss: Loss, right: Tensor, y: Tensor, name: str) -> float:
    leaf = right.clone().requires_grad_()
    value = loss(leaf, y)
    finite(value, f"{name}: the loss of a perfect prediction")
    value.sum().backward()
    assert leaf.grad is not None
    finite(leaf.grad, f"{name}: the gradient at a perfect prediction")
    return float(value.detach().mean())


def check_metric(component: type[Metric], given: Given = None, facts: Facts | None = None) -> None:
    """A metric gives one finite number per split, independent of batches and their order.

    Without ``facts``, tries every kind of label that ``problems`` does not rule out.
    """
    (name, config), tried = check_class(component, Metric, given), 0
    expect(component.better in ("lower", "higher"), f"{name}.better must be 'lower' or 'higher'")
    for case in _cases(facts):
        if not list(component.problems(config, case)):
            tried += 1
            context = tiny_context(case, output=case.task.target)
            _metric(build(component, given, context), case.task.target)
    expect(tried > 0, f"{name}.problems rules out every kind of label")


def _score(metric: Metric, batches: Sequence[tuple[Any, Any]]) -> float:
    metric.reset()
    for prediction, y in batches:
        metric.update(prediction, y)
    return metric.compute()


def _metric(metric: Metric, target: Target) -> None:
    name = f"{type(metric).__name__} on {target.kind} labels"
    y, prediction = tiny_labels(target, SAMPLES), tiny_prediction(target, SAMPLES)
    kept = (prediction.clone(), y.clone())
    whole = _score(metric, [(prediction, y)])
    expect(type(whole) is float, f"{name} must give a float, not {type(whole).__name__}")
    expect(math.isfinite(whole), f"{name} gives {whole}")
    unchanged = torch.equal(kept[0], prediction) and torch.equal(kept[1], y)
    expect(unchanged, f"{name} changes its input in place")
    expect(_close(metric.compute(), whole), f"{name}: a second compute() differs")
    pieces = [(prediction[i : i + 5], y[i : i + 5]) for i in range(0, SAMPLES, 5)]
    split = _score(metric, pieces)
    expect(_close(split, whole), f"{name}: {split} in batches of 5, {whole} at once")
    order = torch.arange(SAMPLES - 1, -1, -1)
    turned = _score(metric, [(prediction[order], y[order])])
    expect(_close(turned, whole), f"{name}: {turned} in reverse order, {whole} otherwise")
    scores = [_score(metric, [(right, y)]) for right in _perfect(target, y)]
    best = min(scores) if metric.better == "lower" else max(scores)
    good = best <= whole if metric.better == "lower" else best >= whole
    expect(good, f"{name}: better is {metric.better}, but perfect is {best}, random {whole}")
    expect(_close(_score(metric, [(prediction, y)]), whole), f"{name}: reset() keeps some state")


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)


WIDTH = 5
FAR = 10.0


def check_distance(component: type[Distance], given: Given = None) -> None:
    """A distance is a finite scalar with a gradient, larger for distant points than for near ones.

    It must accept points without classes, and must not change its inputs.
    """
    name, _ = check_class(component, Distance, given)
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
            gradient(x, "the target's points", name)
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


def check_adapter(
    component: type[Adapter], given: Given = None, make: Callable[[], Backbone] | None = None
) -> None:
    """An adapter keeps a backbone usable, gives the same names every time, and changes something.

    ``make`` makes the backbone, the same every time; by default a small one without attention.
    """
    name, _ = check_class(component, Adapter, given)
    make = make or _backbone
    plain = make()
    backbones = [make(), make()]
    for backbone in backbones:
        with seeded(0):
            build(component, given).apply(backbone)
    names = [[key for key, _ in backbone.named_parameters()] for backbone in backbones]
    expect(names[0] == names[1], f"{name} must give the same parameter names every time")
    expect(len(names[0]) == len(set(names[0])), f"{name}: two parameters have the same name")
    before, after = dict(plain.named_parameters()), dict(backbones[0].named_parameters())
    changed = before.keys() != after.keys() or any(
        not torch.equal(value, after[key]) for key, value in before.items()
    )
    expect(changed, f"{name} changes no parameter of the backbone")
    grid = GRIDS["grid"]
    tokens = Tokens(random(BATCH, math.prod(grid), plain.facts.width), grid)
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
