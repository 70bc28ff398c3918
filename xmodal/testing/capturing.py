"""Whether a mixer or a selector can be in a step that is captured as a CUDA graph; needs no GPU.

This is not part of their contract: a part that fails here works, but slower on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils._python_dispatch import _disable_current_modes

from xmodal.batch import SOURCE, TARGET, Progress, Sample, Selection, Tokens, View
from xmodal.engine.capture import CannotBeCaptured, ClosedProgress, NoQuestions, form_of
from xmodal.interfaces import Component, Facts, Mixer, Selector
from xmodal.steps import Make, answered_by
from xmodal.testing.selecting import GRID, NUM_TOKENS
from xmodal.testing.tiny import (
    Given,
    TinyScheduler,
    TinySelector,
    build,
    expect,
    progress,
    seeded,
    tiny_context,
    tiny_facts,
    tiny_sample,
    tiny_tokens,
)

_POINTS = (progress(), progress(step=1), progress(epoch=1), progress(epoch=3, step=1))
Call = Callable[[Any, Progress], Sequence[Any]]


def check_host_inputs(
    component: type[Mixer] | type[Selector],
    given: Given = None,
    facts: Facts | None = None,
    parts: Mapping[str, Component] | None = None,
) -> None:
    """A mixer or selector asks the device nothing and declares what changes from step to step.

    It is recorded at one point of the training and must give the right result at others, where only
    the functions that it handed to ``xmodal.steps.from_host`` are called anew. ``parts`` replaces
    the kit's own selector and scheduler.
    """
    facts = facts or tiny_facts()
    for k in (1, NUM_TOKENS // 2):
        if issubclass(component, Selector):
            _recorded(component, given, facts, {}, _selecting(k))
            continue
        for grid in (GRID, (3, 5)) if component.needs_source else (None,):
            own = {"selector": build(TinySelector), "scheduler": build(TinyScheduler, {"k": k})}
            available = {**own, **(parts or {})}
            used = {part: available[part] for part in component.uses}
            _recorded(component, given, facts, used, _mixing(grid))


def _selecting(k: int) -> Call:
    def call(selector: Selector, point: Progress) -> Sequence[Any]:
        tokens = tiny_tokens(GRID)
        leaf = Tokens(tokens.x_BND.requires_grad_(), GRID)
        chosen: Selection = selector(leaf, torch.full((), k), point)
        if chosen.mask_BN.requires_grad:
            chosen.mask_BN.sum().backward()  # type: ignore[no-untyped-call]
        return chosen.mask_BN, chosen.scores_BN

    return call


def _mixing(grid: tuple[int, ...] | None) -> Call:
    def call(mixer: Mixer, point: Progress) -> Sequence[Any]:
        target, source = tiny_sample(TARGET, GRID), tiny_sample(SOURCE, grid) if grid else None
        leaf = Tokens(target.tokens.x_BND.requires_grad_(), GRID)
        views: tuple[View, ...] = mixer(Sample(leaf, target.y, TARGET), source, point)
        sum(view.tokens.x_BND.square().sum() for view in views).backward()  # type: ignore[union-attr]
        weights = [term.weight for view in views for term in view.terms]
        logged = [value for view in views for value in view.log.values()]
        return *(view.tokens.x_BND for view in views), *weights, *logged

    return call


def _recorded(
    component: type[Component], given: Given, facts: Facts, parts: Mapping[str, Any], call: Call
) -> None:
    """Record the makes at each point, and take them to the others."""
    context = tiny_context(facts, parts)
    module, name = build(component, given, context), component.__name__
    closed = cast(Progress, ClosedProgress())
    for first in _POINTS:
        call(module, first)  # what happens once, such as a note, has happened
        context.generator.manual_seed(7)
        recorder = _KeptMakes(first)
        try:
            with seeded(0), answered_by(recorder), NoQuestions():  # type: ignore[no-untyped-call]
                call(module, closed)
        except CannotBeCaptured as why:
            raise AssertionError(f"{name} cannot be captured on a GPU: it {why}") from None
        for other in _POINTS:
            context.generator.manual_seed(7)
            with seeded(0):
                expected = call(module, other)
            context.generator.manual_seed(7)
            inputs = [make(other) for make in recorder.makes]
            if list(map(form_of, inputs)) != list(map(form_of, recorder.values)):
                continue  # a step of another form is captured by itself
            drawn = context.generator.get_state()
            with seeded(0), answered_by(_Replayed(inputs)):
                found = call(module, closed)
            message = f"{name} draws random numbers outside of from_host"
            expect(torch.equal(drawn, context.generator.get_state()), message)
            message = (
                f"{name}: what it hands to from_host must depend on the progress it is called with "
                "and on context.generator alone"
            )
            expect(len(found) == len(expected), message)
            for one, two in zip(found, expected, strict=True):
                expect(torch.equal(torch.as_tensor(one), torch.as_tensor(two)), message)


class _KeptMakes:
    """Keeps what is handed to ``from_host`` at one point."""

    def __init__(self, point: Progress) -> None:
        self.point = point
        self.makes: list[Make] = []
        self.values: list[Mapping[str, Any]] = []

    def take(self, make: Make, device: torch.device) -> Mapping[str, Any]:
        """The values of a new call."""
        self.makes.append(make)
        with _disable_current_modes():  # the host may do what the device may not
            self.values.append(make(self.point))
        return self.values[-1]


class _Replayed:
    """Answers ``from_host`` with these values, in order."""

    def __init__(self, values: Sequence[Mapping[str, Any]]) -> None:
        self._values = iter(values)

    def take(self, make: Make, device: torch.device) -> Mapping[str, Any]:
        """The values of the next call."""
        return next(self._values)
