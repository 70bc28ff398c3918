"""Contract checks of embedders, backbones and predictors.

Shapes: B samples, N tokens, D width, F width of the features, K outputs.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.data.store import Store
from xmodal.interfaces import (
    Backbone,
    BackboneFacts,
    Embedder,
    Facts,
    FittedPredictor,
    Predictor,
    Target,
    TaskFacts,
)
from xmodal.testing.fitting import KINDS, check_fitted
from xmodal.testing.liveness import check_liveness, real_samples
from xmodal.testing.tiny import (
    BATCH,
    GRIDS,
    Form,
    Given,
    TinyBackbone,
    build,
    check_class,
    expect,
    finite,
    gradient,
    gradients,
    random,
    same,
    seeded,
    shaped,
    tiny_backbone,
    tiny_context,
    tiny_facts,
    tiny_samples,
    tiny_target,
    tiny_task,
)
from xmodal.testing.tiny import tokens as check_tokens


def check_embedder(
    component: type[Embedder],
    given: Given = None,
    task: TaskFacts | None = None,
    backbone: BackboneFacts | None = None,
) -> None:
    """An embedder makes the grid that ``grid()`` gives, sample by sample, and is fully trainable.

    Without ``task``, tries every form; ``grid`` must give a reason for forms that it refuses.
    """
    (name, config), backbone = check_class(component, Embedder, given), backbone or tiny_backbone()
    refused = []
    tasks = [task] if task else [tiny_task(form) for form in ("grid", "sequence", "row")]
    for facts in tasks:
        try:
            grid = component.grid(config, facts, backbone)
        except ValueError as error:
            expect(bool(str(error)), f"{name}.grid refuses a task without a reason")
            refused.append(str(error))
            continue
        expect(
            isinstance(grid, tuple) and all(type(side) is int and side > 0 for side in grid),
            f"{name}.grid must be a tuple of positive ints, not {grid!r}",
        )
        _embed(component, given, Facts(facts, backbone, grid=grid))
    expect(len(refused) < len(tasks), f"{name} refuses every task: {refused}")


def _embed(component: type[Embedder], given: Given, facts: Facts) -> None:
    name = f"{component.__name__} on {facts.task.form} {list(facts.task.shape)}"
    context = tiny_context(facts, {"backbone": build(TinyBackbone)})
    embedder = build(component, given, context)
    x = tiny_samples(facts.task)
    for norm in (None, 2.5):
        kept = x.clone()
        embedder.calibrate(x, norm)
        for training in (True, False):
            embedder.train(training)
            embedded = embedder(x)
            check_tokens(embedded, BATCH, facts.backbone.width, f"{name}: the result")
            message = f"{name} makes the grid {embedded.grid}, but grid() says {facts.grid}"
            expect(embedded.grid == facts.grid, message)
        expect(torch.equal(kept, x), f"{name} changes its input in place")
    alone = torch.cat([embedder(x[i : i + 1]).x_BND for i in range(BATCH)])
    message = f"{name}: the tokens of one sample depend on the other samples of the batch"
    same(embedder(x).x_BND.detach(), alone.detach(), message)
    _mask(embedder, x, embedder(x).x_BND.detach(), name)
    embedder.train()
    if any(p.requires_grad for p in embedder.parameters()):
        gradients(embedder, embedder(x).x_BND, name)


@torch.no_grad()
def _mask(embedder: Embedder, x: Tensor, whole_BND: Tensor, name: str) -> None:
    """Pieces have one row a token, and a masked one leaves no trace in any token."""
    pieces_BNP = embedder.pieces(x)
    if pieces_BNP is None:
        return
    shaped(pieces_BNP, (*whole_BND.shape[:2], pieces_BNP.shape[-1]), f"{name}: the pieces")
    fill_D = random(whole_BND.shape[2])
    mask_BN = random(*whole_BND.shape[:2], seed=1) > 0
    nothing_BND = embedder.masked(torch.zeros_like(x), torch.ones_like(mask_BN), fill_D).x_BND
    expected_BND = torch.where(mask_BN[..., None], nothing_BND, whole_BND)
    message = f"{name}: masking one token changes others, or a masked one shows its content"
    same(embedder.masked(x, mask_BN, fill_D).x_BND, expected_BND, message)


def check_predictor(
    component: type[Predictor], given: Given = None, facts: Facts | None = None
) -> None:
    """A predictor gives the right shape for every kind of label that it supports, and all of it
    takes part.

    Without ``facts``, tries every kind of label that ``problems`` does not rule out, with the
    features of a small backbone. If it rules out all of them, with whole samples, as rivals read. A
    predictor that is fitted instead of trained is fitted (``check_fitted``).
    """
    if issubclass(component, FittedPredictor):
        check_fitted(component, given, [facts] if facts else None)
        return
    name, config = check_class(component, Predictor, given)
    for cases in [[facts]] if facts else [_label_cases(), _whole_cases()]:
        tried = 0
        for case in cases:
            supports = component.supports(case.task.target)
            expect(isinstance(supports, bool), f"{name}.supports must give True or False")
            if supports and not list(component.problems(config, case)):
                tried += 1
                _predict(component, given, case)
        if tried:
            return
    raise AssertionError(f"{name} supports none of the labels: {', '.join(KINDS)}")


def _label_cases() -> list[Facts]:
    cases = [tiny_facts("grid", tiny_target(kind)) for kind in KINDS]
    sequence = tiny_facts("sequence", tiny_target("dense", "sequence"))
    # Labels whose size is not a multiple of the token grid, as in padded samples.
    odd = tiny_facts("grid", replace(tiny_target("dense"), shape=(15, 23)))
    return [*cases, tiny_facts("sequence", tiny_target("regression")), sequence, odd]


def _whole_cases() -> list[Facts]:
    forms: tuple[Form, ...] = ("grid", "sequence")
    cases = [whole_samples(form, tiny_target(kind, form)) for form in forms for kind in KINDS]
    return [*cases, whole_samples("row"), whole_samples("row", tiny_target("regression"))]


def whole_samples(form: Form, target: Target | None = None) -> Facts:
    """Facts of a run in which backbone and embedder hand samples on as they are."""
    nothing = BackboneFacts("example-nothing", "any", width=0, feature_width=0)
    return Facts(tiny_task(form, target), nothing, grid=(1,))


def _predict(component: type[Predictor], given: Given, facts: Facts) -> None:
    target = facts.task.target
    name = f"{component.__name__} on {target.kind} labels {[target.size, *target.shape]}"
    context = tiny_context(facts, {"backbone": build(TinyBackbone)}, target)
    predictor = build(component, given, context)
    grid, width = facts.grid or (4,), facts.backbone.feature_width
    features = Tokens(random(BATCH, prod(grid), width), grid)
    if width == 0:
        features = Tokens(real_samples(facts.task).flatten(1)[:, None], grid)
    for training in (True, False):
        predictor.train(training)
        prediction = predictor(features)
        shaped(prediction, (BATCH, target.size, *target.shape), f"{name}: the prediction")
        finite(prediction, f"{name}: the prediction")
    alone = [predictor(Tokens(features.x_BND[i : i + 1], grid)) for i in range(BATCH)]
    message = f"{name}: the prediction of one sample depends on the other samples of the batch"
    same(prediction.detach(), torch.cat(alone).detach(), message)
    predictor.train()
    with seeded(0):
        gradients(predictor, predictor(features), name)
    check_liveness(predictor, lambda: predictor(features).float(), name)


def check_backbone(
    component: type[Backbone], given: Given = None, store: Store | None = None, raw: Any = None
) -> None:
    """A backbone's facts are true: widths, grids, patch, norm, frozen embedding, no batch effects;
    and all of it takes part in its features.

    ``raw`` holds source samples for ``prepare_source``; the default is two crops of a photograph,
    or a few words.
    """
    (name, config), store = check_class(component, Backbone, given), store or Store()
    facts = component.describe(config, store)
    expect(isinstance(facts, BackboneFacts), f"{name}.describe must give BackboneFacts")
    run = replace(tiny_facts(), backbone=facts)
    backbone = build(component, given, replace(tiny_context(run), store=store))
    expect(backbone.facts == facts, f"{name}: facts differ from describe(): {backbone.facts}")
    raw = _raw(facts) if raw is None else raw
    embedded = backbone.embed(backbone.prepare_source(raw))
    check_tokens(embedded, len(raw), facts.width, f"{name}.embed")
    limit = facts.max_tokens
    fits = limit is None or embedded.x_BND.shape[1] <= limit
    expect(fits, f"{name}.embed makes more tokens than max_tokens = {limit}")
    _backbone(backbone, embedded, name)
    _embedding(backbone, name)
    if facts.width:
        check_liveness(backbone, lambda: _features(backbone, raw), name)


def _features(backbone: Backbone, raw: Any) -> Tensor:
    return backbone(backbone.embed(backbone.prepare_source(raw))).x_BND


def _raw(facts: BackboneFacts) -> Any:
    if facts.modality == "text":
        return [["one", "two", "three"], ["four", "five"]]
    grid, patch = facts.grid or (4, 4), facts.patch or 4
    shape = (3, grid[0] * patch, grid[1] * patch)
    image = TaskFacts("example-image", shape, Target("classification", 2), {})
    return real_samples(image, 2).sigmoid()


def _backbone(backbone: Backbone, embedded: Tokens, name: str) -> None:
    facts = backbone.facts
    batch = len(embedded.x_BND)
    tokens = Tokens(embedded.x_BND.detach(), embedded.grid)
    backbone.eval()
    features = backbone(tokens)
    check_tokens(features, batch, facts.feature_width, f"{name}: the features")
    coarse = tuple(ceil(side / facts.reduction) for side in tokens.grid)
    message = f"{name}: features on {features.grid}, but reduction {facts.reduction} gives {coarse}"
    expect(features.grid == coarse, message)
    again = backbone(tokens).x_BND.detach()
    same(features.x_BND.detach(), again, f"{name} differs between two calls in evaluation")
    alone = [backbone(Tokens(tokens.x_BND[i : i + 1], tokens.grid)) for i in range(batch)]
    message = f"{name}: the features of one sample depend on the other samples of the batch"
    same(features.x_BND.detach(), torch.cat([t.x_BND for t in alone]).detach(), message, 1e-3)
    if backbone.native_bf16:
        _in_half(backbone, tokens, features, name)
    if embedded.x_BND.shape[2]:
        leaf = tokens.x_BND.clone().requires_grad_()
        torch.autograd.backward(backbone(Tokens(leaf, tokens.grid)).x_BND.square().sum())
        gradient(leaf, "the tokens", name)


def _in_half(backbone: Backbone, tokens: Tokens, features: Tokens, name: str) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        halved = backbone(tokens).x_BND
    expect(halved.dtype == torch.float32, f"{name} in bf16 gives features of type {halved.dtype}")
    message = f"{name} says native_bf16, but its features in bf16 differ from those in float32"
    size = float(features.x_BND.detach().abs().max())
    same(features.x_BND.detach() / size, halved / size, message, 0.1)


def _embedding(backbone: Backbone, name: str) -> None:
    facts = backbone.facts
    known = {id(p) for p in backbone.parameters()}
    strange = [p for p in backbone.embedding_parameters() if id(p) not in known]
    expect(not strange, f"{name}.embedding_parameters gives something that is not its parameter")
    norm = backbone.embedding_norm()
    message = f"{name}: embedding_norm() and the fact embedding_norm disagree"
    expect((norm is not None) == facts.embedding_norm, message)
    projection = backbone.patch_projection()
    if projection is not None:
        message = f"{name}: patch_projection() has kernel {projection.kernel_size}"
        expect(projection.kernel_size == (facts.patch,) * 2, f"{message}, not {facts.patch}")
    _positions(backbone, name)
    norm_value = backbone.reference_norm()
    expect(norm_value is None or 0 < norm_value < 1e6, f"{name}: reference_norm() {norm_value}")


def _positions(backbone: Backbone, name: str) -> None:
    for grid in (backbone.facts.grid, *GRIDS.values()):
        positions: Tensor | None = backbone.positions(grid) if grid else None
        if positions is not None:
            shape = (prod(grid), backbone.facts.width)
            shaped(positions, shape, f"{name}.positions({grid})")
