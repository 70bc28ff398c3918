"""The contract check of predictors that are fitted by the stage ``fit``.

Shapes: B samples, F numbers per sample, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.errors import UsageError
from xmodal.interfaces import Facts, FitData, FittedPredictor
from xmodal.testing.tiny import (
    Given,
    build,
    check_class,
    expect,
    finite,
    same,
    settings,
    shaped,
    tiny_context,
    tiny_facts,
    tiny_labels,
    tiny_samples,
    tiny_target,
)

SAMPLES = 48
KINDS = ("classification", "multi-label", "regression", "dense")


def check_fitted(
    component: type[FittedPredictor], given: Given = None, cases: Iterable[Facts] | None = None
) -> None:
    """A fitted predictor gives the right shape for every task that ``problems`` does not rule out.

    It says so before it is fitted; it predicts sample by sample; fitting again gives the same
    model, and so does loading the tensors of another one, to the last bit; what it says to have
    chosen on validation gives the same model without validation samples; and it can do without
    gradients, and with missing values if ``problems`` allows tables.
    """
    name, config = check_class(component, FittedPredictor, given)
    tried = 0
    for case in cases if cases is not None else _cases():
        if component.supports(case.task.target) and not list(component.problems(config, case)):
            tried += 1
            _fit(component, given, case)
    expect(tried > 0, f"{name} rules out every form of task and every kind of label")


def _cases() -> Iterable[Facts]:
    for kind in KINDS:
        yield tiny_facts("grid", tiny_target(kind))
        yield tiny_facts("sequence", tiny_target(kind, "sequence"))
        if kind != "dense":
            yield tiny_facts("row", tiny_target(kind, "row"))


def _fit(component: type[FittedPredictor], given: Given, facts: Facts) -> None:
    task, target = facts.task, facts.task.target
    name = f"{component.__name__} on {task.form} {list(task.shape)}, {target.kind} labels"
    x, more = (tiny_samples(task, SAMPLES, seed=seed).flatten(1) for seed in (0, 1))
    if task.form == "row":
        x[::7, 0] = float("nan")
        x[::5, 2] = -1.0  # a missing category
    y, more_y = tiny_labels(target, SAMPLES), tiny_labels(target, SAMPLES, seed=1)
    others = more[:0]
    if component.keeps_predictions:
        others = tiny_samples(task, SAMPLES, seed=2).flatten(1)
    if component.uses_validation:
        data = FitData(x, y, more, more_y, others)
    else:
        data = FitData(x, y, more[:0], more_y[:0], others)
    one, other = (build(component, given, tiny_context(facts)) for _ in range(2))
    try:
        one(_tokens(x))
    except UsageError:
        pass
    else:
        raise AssertionError(f"{name} predicts without having been fitted")
    expect(not one.fitted, f"{name}: fitted before it was")
    kept = x.clone()
    one.fit(data)
    expect(torch.equal(x.nan_to_num(), kept.nan_to_num()), f"{name} changes its data in place")
    expect(one.fitted, f"{name}: not fitted after it was")
    prediction = one(_tokens(x))
    shaped(prediction, (SAMPLES, target.size, *target.shape), f"{name}: the prediction")
    finite(prediction, f"{name}: the prediction")
    alone = torch.cat([one(_tokens(row[None])) for row in x[:8]])
    message = f"{name}: the prediction of one sample depends on the other samples of the batch"
    same(prediction[:8], alone, message)
    other.load_state_dict(one.state_dict())
    expect(other.fitted, f"{name}: not fitted after its tensors were loaded")
    message = f"{name}: a model that was loaded predicts otherwise"
    expect(torch.equal(prediction, other(_tokens(x))), message)
    again = build(component, given, tiny_context(facts))
    again.fit(data)
    message = f"{name}: the same data and seed give another model"
    expect(torch.equal(prediction, again(_tokens(x))), message)
    chosen = other.chosen()
    if chosen is not None and component.uses_validation:
        mine = settings(component, given).model_dump(exclude_unset=True)
        told = build(component, {**mine, **chosen}, tiny_context(facts))
        told.fit(replace(data, validation_x_NF=more[:0], validation_y=more_y[:0]))
        message = f"{name}: with what it chose ({dict(chosen)}) a fit gives another model"
        expect(torch.equal(prediction, told(_tokens(x))), message)


def _tokens(x_BF: Tensor) -> Tokens:
    return Tokens(x_BF[:, None], (1,))
