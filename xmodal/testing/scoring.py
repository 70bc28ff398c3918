"""Contract checks of losses and metrics.

Shapes: B samples, K outputs; dense predictions and labels are ``[B, K, *shape]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xmodal.interfaces import Facts, Loss, Metric, Target
from xmodal.testing.encoding import KINDS
from xmodal.testing.support import (
    Given,
    build,
    check_config,
    expect,
    finite,
    same,
    settings,
    shaped,
)
from xmodal.testing.tiny import (
    CLASSES,
    tiny_context,
    tiny_facts,
    tiny_labels,
    tiny_prediction,
    tiny_target,
)

SAMPLES = 2 * CLASSES
CERTAIN = 50.0


def _cases(facts: Facts | None) -> list[Facts]:
    """Facts with every kind of label, or just the given ones."""
    if facts is not None:
        return [facts]
    dense_1d = tiny_facts("sequence", tiny_target("dense", "sequence"))
    return [*(tiny_facts("grid", tiny_target(kind)) for kind in KINDS), dense_1d]


def _perfect(target: Target, y: Tensor) -> list[Tensor]:
    """Predictions that deserve the best score: certain logits, the labels themselves, or both."""
    if target.kind == "classification":
        # Losses with smoothed labels punish certainty: the milder of the two suits them.
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
    """A loss gives one finite number a sample, with a finite gradient, and 0 where all is right.

    ``zero_at_perfect=False`` is for losses whose minimum is not 0, such as smoothed labels.
    """
    expect(issubclass(component, Loss), f"{component.__name__} must derive from Loss")
    check_config(component, given)
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
    expect(leaf.grad is not None, f"{name}: no gradient reaches the prediction")
    assert leaf.grad is not None
    finite(leaf.grad, f"{name}: the gradient")
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
    """A metric is one finite number of the whole split, whatever the batches and their order.

    Without ``facts``, every kind of label is tried that ``problems`` does not rule out.
    """
    expect(issubclass(component, Metric), f"{component.__name__} must derive from Metric")
    check_config(component, given)
    name, config, tried = component.__name__, settings(component, given), 0
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
    expect(_close(_score(metric, [(prediction, y)]), whole), f"{name}: reset() forgets not all")


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
