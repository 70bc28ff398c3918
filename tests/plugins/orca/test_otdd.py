"""OTDD assembled by hand from POT's pieces, and the identity that makes it cheap."""

from __future__ import annotations

import functools

import numpy as np
import ot
import pytest
import scipy.linalg
import torch

from xmodal.batch import Points
from xmodal.testing.tiny import build as build_component
from xmodal.testing.tiny import random, tiny_context
from xmodal_orca.distances import entropic, labels
from xmodal_orca.distances.bures import RIDGE
from xmodal_orca.distances.otdd import OTDD
from xmodal_orca.distances.points import by_class
from xmodal_orca.distances.sinkhorn import Sinkhorn

pytestmark = pytest.mark.slow

TIGHT = {"reg": 2.0, "tolerance": 1e-10}


def build(kind=OTDD, **config):
    return build_component(kind, config, tiny_context())


def labelled(sizes, seed=0, shift=0.0, width=3):
    """Classes of these sizes around means of their own, in mixed order, named 3, 10, 17, ..."""
    classes = torch.cat([torch.full((size,), 3 + 7 * c) for c, size in enumerate(sizes)])
    x = random(len(classes), width, seed=seed).double() + shift
    x = x + random(100, width, seed=seed + 50).double()[classes]
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    return x[order], classes[order]


SOURCE = labelled([6, 4, 5])
TARGET = labelled([4, 3], seed=1, shift=0.7)
ONE_CLASS = labelled([5], seed=1, shift=0.7)
MANY_CLASSES = labelled([2, 2, 3, 2], seed=1)


def value_and_gradient(distance, z, classes):
    leaf = z.clone().requires_grad_()
    value = distance(Points(leaf, classes))
    return value.item(), torch.autograd.grad(value, leaf)[0]


# --- by hand ---


def squared(x, z):
    return ((x[:, None] - z[None]) ** 2).sum(2).numpy()


def entropic_value(cost, epsilon):
    return _solved(cost.shape, np.ascontiguousarray(cost).tobytes(), epsilon)


@functools.cache
def _solved(shape, numbers, epsilon):
    cost = np.frombuffer(numbers).reshape(shape)
    a, b = (np.full(size, 1 / size) for size in shape)
    limits = {"numItermax": 1000, "stopThr": 1e-8, "warn": False}
    plan = ot.sinkhorn(a, b, cost, epsilon, "sinkhorn_log", **limits)
    relative = plan * (np.log(np.maximum(plan, 1e-300)) - np.log(np.outer(a, b)))
    return (plan * cost).sum() + epsilon * relative.sum()


def exact_value(cost):
    return ot.emd2(*(np.full(size, 1 / size) for size in cost.shape), cost)


def debiased(cross, one, other, epsilon):
    return (
        entropic_value(cross, epsilon)
        - 0.5 * entropic_value(one, epsilon)
        - 0.5 * entropic_value(other, epsilon)
    )


def sinkhorn_W(p, q):
    return debiased(squared(p, q), squared(p, p), squared(q, q), TIGHT["reg"])


def biased_W(p, q):
    return entropic_value(squared(p, q), TIGHT["reg"])


def exact_W(p, q):
    return exact_value(squared(p, q))


def gaussian_W(p, q):
    x, y = SOURCE
    within = [np.cov(x[y == c].T.numpy(), bias=True) for c in y.unique()]
    ridge = RIDGE * np.mean([np.trace(c) / len(c) for c in within]) * np.eye(3)
    one, other = (np.cov(r.T.numpy(), bias=True) + ridge for r in (p, q))
    root = scipy.linalg.sqrtm(one).real
    cross = np.trace(scipy.linalg.sqrtm(root @ other @ root).real)
    means = ((p.mean(0) - q.mean(0)) ** 2).sum().item()
    return means + np.trace(one) + np.trace(other) - 2 * cross


def joint_cost(W, x, y, z, t):
    cost = 0.5 * squared(x, z)
    for one in y.unique():
        for other in t.unique():
            block = np.ix_((y == one).numpy(), (t == other).numpy())
            cost[block] += 0.5 * W(x[y == one], z[t == other])
    return cost


def by_hand(W, outer, source, target):
    cross = joint_cost(W, *source, *target)
    if outer == "exact":
        return exact_value(cross)
    if outer == "biased":
        return entropic_value(cross, TIGHT["reg"])
    own = joint_cost(W, *source, *source), joint_cost(W, *target, *target)
    return debiased(cross, *own, TIGHT["reg"])


CASES = {
    "published": ({}, sinkhorn_W, "sinkhorn"),
    "biased": ({"debias": False}, biased_W, "biased"),
    "exact": ({"inner": "exact", "outer": "exact"}, exact_W, "exact"),
    "exact-inside": ({"inner": "exact"}, exact_W, "sinkhorn"),
    "exact-outside": ({"outer": "exact"}, sinkhorn_W, "exact"),
    "gaussian": ({"labels": "gaussian"}, gaussian_W, "sinkhorn"),
    "gaussian-exact": ({"labels": "gaussian", "outer": "exact"}, gaussian_W, "exact"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", [TARGET, ONE_CLASS, MANY_CLASSES], ids=["two", "one", "four"])
def test_otdd_is_its_definition(case, target):
    config, W, outer = CASES[case]
    distance = build(**TIGHT, **config)
    distance.fit(Points(*SOURCE))
    value = distance(Points(*target)).item()
    assert value == pytest.approx(by_hand(W, outer, SOURCE, target), rel=1e-6)


def differences(function, z, step=1e-5):
    gradient = torch.zeros_like(z)
    for index in np.ndindex(*z.shape):
        up, down = z.clone(), z.clone()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("case", ["published", "exact", "gaussian"])
def test_the_gradient_through_labels(case):
    config, _, _ = CASES[case]
    z, t = TARGET
    distance = build(**TIGHT, **config, label_gradient=True)
    distance.fit(Points(*SOURCE))
    _, gradient = value_and_gradient(distance, z, t)
    expected = differences(lambda q: distance(Points(q, t)).item(), z)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_the_published_gradient_holds_labels_fixed():
    z, t = TARGET
    distance = build(**TIGHT, inner="exact")
    distance.fit(Points(*SOURCE))
    value, gradient = value_and_gradient(distance, z, t)
    x, y = SOURCE
    blocks = {(a, b): exact_W(p, q) for a, p in _parts(x, y, "s") for b, q in _parts(z, t, "t")}
    inside = {(a, b): exact_W(p, q) for a, p in _parts(z, t, "t") for b, q in _parts(z, t, "t")}
    own = by_hand(exact_W, "biased", SOURCE, SOURCE)

    def held(q):
        cross, other = 0.5 * squared(x, q), 0.5 * squared(q, q)
        for (a, b), distance_ab in blocks.items():
            cross[np.ix_((y == a[1]).numpy(), (t == b[1]).numpy())] += 0.5 * distance_ab
        for (a, b), distance_ab in inside.items():
            other[np.ix_((t == a[1]).numpy(), (t == b[1]).numpy())] += 0.5 * distance_ab
        reg = TIGHT["reg"]
        return entropic_value(cross, reg) - 0.5 * own - 0.5 * entropic_value(other, reg)

    assert value == pytest.approx(held(z), rel=1e-6)
    torch.testing.assert_close(gradient, differences(held, z, 1e-4), rtol=1e-3, atol=1e-5)


def _parts(x, y, side):
    return [((side, int(c)), x[y == c]) for c in y.unique()]


# --- the identity ---


@pytest.mark.parametrize("kind", ["exact", "gaussian"])
def test_with_one_target_class_labels_do_not_change_the_gradient(kind):
    """The label term is Σ_i a_i W[y_i, 0] whatever the plan: a constant of the target's points."""
    x, y = labelled([30, 20, 25], width=6)
    z = random(12, 6, seed=1).double() + 0.5
    plain, full = build(Sinkhorn, **TIGHT), build(labels=kind, **TIGHT)
    plain.fit(Points(x))
    full.fit(Points(x, y))
    without, expected = value_and_gradient(plain, z, None)
    value, gradient = value_and_gradient(full, z, torch.zeros(12).long())
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)
    W_C = full._labels.between(full._source, full._labels.prepare(_one_class(z)))[:, 0]
    label_term = 0.5 * W_C[full._source.classes.label_N].mean()
    # The source's own term differs too: there classes keep points apart.
    shift = value - without - label_term.item()
    assert shift == pytest.approx(0.5 * (plain._own - full._own).item(), abs=1e-7)


def _one_class(z):
    return by_class(Points(z), 1)


def test_with_two_target_classes_labels_do_change_it():
    plain, full = build(Sinkhorn, **TIGHT), build(**TIGHT)
    plain.fit(Points(*SOURCE))
    full.fit(Points(*SOURCE))
    gradients = [value_and_gradient(d, *TARGET)[1] for d in (plain, full)]
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[0].norm()


# --- classes ---


@pytest.mark.parametrize("case", CASES)
def test_without_classes_all_points_are_of_one(case):
    config, _, _ = CASES[case]
    x, z = SOURCE[0], TARGET[0]
    values = []
    for y, t in ((None, None), (torch.full((15,), 5), torch.full((7,), 2))):
        distance = build(**TIGHT, **config)
        distance.fit(Points(x, y))
        values.append(distance(Points(z, t)).item())
    assert values[0] == values[1]


def test_names_and_order_of_classes_do_not_matter():
    (x, y), (z, t) = SOURCE, TARGET
    names = torch.tensor([9, 4, 6])[(y - 3) // 7]
    order = torch.randperm(15, generator=torch.Generator().manual_seed(4))
    values = []
    for source in (Points(x, y), Points(x[order], names[order])):
        distance = build(**TIGHT)
        distance.fit(source)
        values.append(distance(Points(z, t)).item())
    assert values[0] == pytest.approx(values[1], rel=1e-8)


def test_small_classes_are_left_out():
    (x, y), (z, t) = SOURCE, TARGET
    extra = Points(torch.cat([x, x[:1] + 50]), torch.cat([y, torch.tensor([99])]))
    lone = Points(torch.cat([z, z[:1] - 50]), torch.cat([t, torch.tensor([99])]))
    values = []
    for source, target in ((Points(x, y), Points(z, t)), (extra, lone)):
        distance = build(**TIGHT)
        distance.fit(source)
        values.append(distance(target).item())
    assert values[0] == values[1]
    all_of_them = build(**TIGHT, min_count=1)
    all_of_them.fit(extra)
    assert all_of_them(lone).item() > values[0] + 1
    leaf = lone.x_ND.clone().requires_grad_()
    distance(Points(leaf, lone.classes_N)).backward()
    assert torch.equal(leaf.grad[-1], torch.zeros(3).double())
    # Where no class is large enough, all stay.
    singles = distance(Points(z[:2], torch.tensor([0, 1])))
    assert torch.isfinite(singles)


def test_classes_of_a_wrong_shape_are_refused():
    distance = build()
    with pytest.raises(ValueError, match="15 points have classes of shape"):
        distance.fit(Points(SOURCE[0], SOURCE[1][:4]))


def test_many_pairs_in_chunks(monkeypatch):
    values = []
    for cells in (labels._CELLS, 40):
        monkeypatch.setattr(labels, "_CELLS", cells)
        distance = build(**TIGHT)
        distance.fit(Points(*SOURCE))
        values.append(distance(Points(*TARGET)).item())
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_what_the_source_alone_decides_is_computed_in_fit(monkeypatch):
    distance = build(**TIGHT)
    distance.fit(Points(*SOURCE))
    pairs, own = [], []
    transport, self_transport = entropic.transport, entropic.self_transport

    def counted(cost, a, b, *rest):
        pairs.append(tuple(cost.shape))
        return transport(cost, a, b, *rest)

    def counted_self(rows, a, *rest):
        own.append(tuple(a.shape))
        return self_transport(rows, a, *rest)

    monkeypatch.setattr(entropic, "transport", counted)
    monkeypatch.setattr(entropic, "self_transport", counted_self)
    distance(Points(*TARGET))
    # 3 x 2 label pairs across, the transport itself, and one label pair within the target.
    assert pairs == [(6, 6, 4), (1, 15, 7), (1, 4, 3)]
    assert own == [(1, 4), (1, 3), (1, 7)]
