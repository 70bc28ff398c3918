"""Contract checks of selectors, schedulers and mixers.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xmodal.batch import SOURCE, TARGET, Progress, Sample, Selection, Tokens, View
from xmodal.interfaces import Component, Facts, Mixer, Scheduler, Selector
from xmodal.testing.tiny import (
    BATCH,
    GRIDS,
    WIDTH,
    Given,
    TinyScheduler,
    TinySelector,
    build,
    check_class,
    expect,
    finite,
    gradient,
    has_dropout,
    progress,
    same,
    seeded,
    shaped,
    tiny_context,
    tiny_facts,
    tiny_sample,
    tiny_tokens,
)
from xmodal.testing.tiny import tokens as check_tokens

GRID = GRIDS["grid"]
NUM_TOKENS = GRID[0] * GRID[1]


def _replayed(context: Any, call: Callable[[], Any], global_seed: int = 0) -> Any:
    """Call with the component's own generator in a fixed state."""
    context.generator.manual_seed(7)
    with seeded(global_seed):
        return call()


def check_selector(
    component: type[Selector], given: Given = None, facts: Facts | None = None
) -> None:
    """A selector picks exactly k tokens per row, ranks all tokens and treats samples separately."""
    check_class(component, Selector, given)
    context = tiny_context(facts or tiny_facts())
    selector = build(component, given, context)
    ties = Tokens(torch.ones(BATCH, NUM_TOKENS, WIDTH), GRID)
    for training in (True, False):
        selector.train(training)
        for k in (0, 1, NUM_TOKENS // 2, NUM_TOKENS):
            for point in (progress(), progress(epoch=3, step=1)):
                _selection(selector, tiny_tokens(GRID), k, point)
                _selection(selector, ties, k, point)
                _selection(selector, tiny_tokens(GRID), torch.tensor(k), point)
        _selection(selector, tiny_tokens((1,)), 1, progress())
        _replays(selector, context)
        _separate(selector, context)


def _selection(selector: Selector, tokens: Tokens, k: int | Tensor, point: Progress) -> None:
    name = f"{type(selector).__name__} with k={k}"  # shows whether it is a tensor
    leaf = Tokens(tokens.x_BND.clone().requires_grad_(), tokens.grid)
    chosen = selector(leaf, k, point)
    expect(isinstance(chosen, Selection), f"{name} must return a Selection")
    shape = tuple(tokens.x_BND.shape[:2])
    shaped(chosen.mask_BN, shape, f"{name}: mask_BN")
    shaped(chosen.scores_BN, shape, f"{name}: scores_BN")
    expect(bool(chosen.k == k), f"{name}: the selection says k={chosen.k}")
    expect(chosen.mask_BN.is_floating_point(), f"{name}: mask_BN must be floating point")
    mask_BN = chosen.mask_BN.detach()
    # A straight-through mask is hard + soft - soft, which may miss 0 and 1 by a rounding error.
    expect(
        bool(torch.minimum(mask_BN.abs(), (mask_BN - 1).abs()).max() < 1e-5),
        f"{name}: mask_BN must be 0 or 1 everywhere",
    )
    ones_B = (mask_BN > 0.5).sum(dim=1)
    expect(bool((ones_B == k).all()), f"{name}: the rows of mask_BN have {ones_B.tolist()} ones")
    finite(chosen.scores_BN, f"{name}: scores_BN")
    _ranked(mask_BN > 0.5, chosen.scores_BN.detach(), name)
    picked_BK = mask_BN.gather(1, chosen.indices_BK)
    expect(bool((picked_BK > 0.5).all()), f"{name}: indices_BK are not the ones of mask_BN")
    expect(bool((chosen.indices_BK.diff() > 0).all()), f"{name}: indices_BK must ascend")
    _mask_gradient(selector, leaf.x_BND, chosen.mask_BN, name)


def _ranked(chosen_BN: Tensor, scores_BN: Tensor, name: str) -> None:
    lowest_B = scores_BN.masked_fill(~chosen_BN, torch.inf).amin(dim=1)
    highest_B = scores_BN.masked_fill(chosen_BN, -torch.inf).amax(dim=1)
    message = f"{name}: scores_BN ranks a token that was left out above a token that was chosen"
    expect(bool((lowest_B >= highest_B).all()), message)


def _mask_gradient(selector: nn.Module, x_BND: Tensor, mask_BN: Tensor, name: str) -> None:
    if not mask_BN.requires_grad:
        return
    selector.zero_grad(set_to_none=True)
    weights_BN = torch.linspace(-1, 1, mask_BN.numel()).view_as(mask_BN)
    (mask_BN * weights_BN).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in (x_BND, *selector.parameters()):
        if parameter.grad is not None:
            finite(parameter.grad, f"{name}: the gradient of mask_BN")


def _replays(selector: Selector, context: Any) -> None:
    """The same generator state gives the same choice, whatever the global generator does.

    Dropout may use the global generator.
    """
    name, tokens, k = type(selector).__name__, tiny_tokens(GRID), NUM_TOKENS // 2
    seeds = (0, 0) if selector.training and has_dropout(selector) else (0, 1)
    first, second = (
        _replayed(context, lambda: selector(tokens, k, progress()), seed) for seed in seeds
    )
    message = f"{name} must be a function of its input and of context.generator alone"
    same(first.mask_BN.detach(), second.mask_BN.detach(), message)


def _separate(selector: Selector, context: Any) -> None:
    """Other numbers in the first sample do not change the choice in the others."""
    name, tokens, k = type(selector).__name__, tiny_tokens(GRID), NUM_TOKENS // 2
    changed_BND = tokens.x_BND.clone()
    changed_BND[0] = changed_BND[0].flip(0) * 3
    other = Tokens(changed_BND, tokens.grid)
    first = _replayed(context, lambda: selector(tokens, k, progress()))
    second = _replayed(context, lambda: selector(other, k, progress()))
    message = f"{name}: the choice in one sample depends on the other samples of the batch"
    same(first.mask_BN[1:].detach(), second.mask_BN[1:].detach(), message)


def check_scheduler(
    component: type[Scheduler], given: Given = None, facts: Facts | None = None
) -> None:
    """A scheduler gives a whole number in 0 .. N, independent of earlier calls."""
    check_class(component, Scheduler, given)
    context = tiny_context(facts or tiny_facts())
    points = [
        progress(epoch, epochs, step, 3)
        for epochs in (1, 3, 10)
        for epoch in range(epochs)
        for step in (0, 2)
    ]
    for num_tokens in (0, 1, 7, 3136):
        counts = _counts(component, given, context, points, num_tokens)
        again = _counts(component, given, context, points[::-1], num_tokens, 1)[::-1]
        message = f"{component.__name__} must depend on progress and context.generator alone"
        expect(counts == again, f"{message}, not on earlier calls")


def _counts(
    component: type[Scheduler],
    given: Given,
    context: Any,
    points: list[Progress],
    total: int,
    global_seed: int = 0,
) -> list[int]:
    scheduler, counts = build(component, given, context), []
    for point in points:
        k = _replayed(context, partial(scheduler, point, total), global_seed)
        where = f"{component.__name__} at epoch {point.epoch} of {point.epochs}, N={total}"
        expect(type(k) is int, f"{where} must give an int, not {type(k).__name__}")
        expect(0 <= k <= total, f"{where} gives k={k}")
        counts.append(k)
    return counts


def check_mixer(
    component: type[Mixer],
    given: Given = None,
    facts: Facts | None = None,
    parts: Mapping[str, Component] | None = None,
    repeats: bool = False,
) -> None:
    """A mixer gives valid views for every k and every source length, and does not change inputs.

    ``parts`` replaces the kit's own selector and scheduler. ``repeats``: the mixer gives the same
    tokens more than once on purpose, for example to see another dropout.
    """
    check_class(component, Mixer, given)
    facts = facts or tiny_facts()
    grids = (GRID, (3, 5), (6, 6)) if component.needs_source else (None,)
    for k in (0, 1, NUM_TOKENS // 2, NUM_TOKENS):
        available: dict[str, Any] = {
            "selector": build(TinySelector),
            "scheduler": build(TinyScheduler, {"k": k}),
        }
        available |= parts or {}
        chosen = {part: available[part] for part in component.uses}
        for grid in grids:
            context = tiny_context(facts, chosen)
            mixer, name = build(component, given, context), f"{component.__name__} at k={k}"
            _mix(mixer, context, grid, name, repeats)


def _mix(mixer: Mixer, context: Any, grid: Any, name: str, repeats: bool) -> None:
    target, source = tiny_sample(TARGET, GRID), tiny_sample(SOURCE, grid) if grid else None
    before = [s.tokens.x_BND.clone() for s in (target, source) if s]
    views = _replayed(context, lambda: mixer(target, source, progress()))
    after = [s.tokens.x_BND for s in (target, source) if s]
    for old, new in zip(before, after, strict=True):
        expect(torch.equal(old, new), f"{name} changes its input in place")
    expect(isinstance(views, tuple) and bool(views), f"{name} must return a non-empty tuple")
    for number, view in enumerate(views):
        _view(view, number, len(views), target, source, name)
    total = sum(term.weight for view in views for term in view.terms)
    expect(total > 0, f"{name}: all weights are 0, so there is nothing to train on")
    for number, view in enumerate(views):
        doubles = [v for v in views[number + 1 :] if _equal(v.tokens, view.tokens)]
        message = f"{name}: two views hold the same tokens; give one view both terms"
        expect(repeats or not doubles, message)
    again = _replayed(context, lambda: mixer(target, source, progress()), global_seed=1)
    message = f"{name} must be a function of its input and of context.generator alone"
    expect(len(again) == len(views), message)
    for one, other in zip(views, again, strict=True):
        same(one.tokens.x_BND.detach(), other.tokens.x_BND.detach(), message)
    _flows(mixer, target, source, name)


def _equal(one: Tokens, other: Tokens) -> bool:
    return one.x_BND.shape == other.x_BND.shape and torch.equal(one.x_BND, other.x_BND)


def _view(
    view: View, number: int, views: int, target: Sample, source: Sample | None, name: str
) -> None:
    expect(isinstance(view, View), f"{name} must return Views")
    rows, width = len(view.tokens.x_BND), target.tokens.x_BND.shape[2]
    check_tokens(view.tokens, rows, width, f"{name}: the tokens of a view")
    expect(bool(view.terms), f"{name}: a view has no terms, so encoding it is useless")
    for term in view.terms:
        weight = float(term.weight)
        expect(0 <= weight < float("inf"), f"{name}: a term has weight {weight}")
        samples = {s.head: s for s in (target, source) if s}
        heads = ", ".join(samples)
        expect(term.head in samples, f"{name}: a term has head '{term.head}', not one of {heads}")
        if term.y is None:
            of_another = term.like is not None and 0 <= term.like < views and term.like != number
            expect(of_another, f"{name}: a term has neither labels nor another view to agree with")
            continue
        expect(len(term.y) == rows, f"{name}: {len(term.y)} labels for {rows} rows of tokens")
        known = bool(torch.isin(term.y, samples[term.head].y).all())
        expect(known, f"{name}: labels of head '{term.head}' are not those of its input")
    for key, value in view.log.items():
        expect(abs(float(value)) < float("inf"), f"{name}: log '{key}' is {value}")
    if view.origin_BN is not None:
        _origin(view, target.tokens.x_BND, source.tokens.x_BND if source else None, name)


def _origin(view: View, target_BND: Tensor, source_BMD: Tensor | None, name: str) -> None:
    """Every slot holds the token named in ``origin_BN``: its own, or a token of the partner."""
    assert view.origin_BN is not None
    origin_BN, x_BND = view.origin_BN, view.tokens.x_BND.detach()
    shaped(origin_BN, tuple(x_BND.shape[:2]), f"{name}: origin_BN")
    expect(origin_BN.dtype == torch.int64, f"{name}: origin_BN must be int64")
    expect(bool((origin_BN >= -1).all()), f"{name}: origin_BN must be -1 or a position")
    for row, slot in (origin_BN >= -1).nonzero().tolist():
        index = int(origin_BN[row, slot])
        if index == -1:
            candidates = target_BND[row, slot][None]
        else:
            partner = target_BND if source_BMD is None else source_BMD[row : row + 1]
            expect(index < partner.shape[1], f"{name}: origin_BN names token {index}, out of range")
            candidates = partner[:, index]
        close = torch.isclose(candidates, x_BND[row, slot], atol=1e-5).all(dim=1).any()
        expect(bool(close), f"{name}: slot {slot} does not hold token {index}, as origin_BN says")


def _flows(mixer: Mixer, target: Sample, source: Sample | None, name: str) -> None:
    """The target's embedder gets a finite, non-zero gradient from the views."""
    leaf_BND = target.tokens.x_BND.clone().requires_grad_()
    learning = replace(target, tokens=Tokens(leaf_BND, target.tokens.grid))
    total = torch.zeros(())
    for view in mixer(learning, source, progress()):
        weight = sum(term.weight for term in view.terms)
        total = total + weight * view.tokens.x_BND.square().sum()
    expect(total.requires_grad, f"{name}: no gradient reaches the target's tokens")
    total.backward()  # type: ignore[no-untyped-call]
    gradient(leaf_BND, "the target's tokens", name)
