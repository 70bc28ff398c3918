"""The distances between point sets against POT, linear programming, closed forms and loops."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.optimize
import torch
from pydantic import ValidationError

from xmodal.batch import Points
from xmodal.plugins import registry
from xmodal.testing.tiny import build as build_component
from xmodal.testing.tiny import random, tiny_context
from xmodal_orca.distances import entropic
from xmodal_orca.distances.bures import Bures
from xmodal_orca.distances.emd import EMD
from xmodal_orca.distances.l2 import L2
from xmodal_orca.distances.mmd import MMD
from xmodal_orca.distances.otdd import OTDD
from xmodal_orca.distances.points import half_squared
from xmodal_orca.distances.sinkhorn import Sinkhorn
from xmodal_orca.distances.sliced import Sliced

pytestmark = pytest.mark.slow

NAMES = ("otdd", "sinkhorn", "emd", "bures", "mmd", "sliced", "l2")
ZERO_TO_ITSELF = ("otdd", "sinkhorn", "emd", "bures", "mmd", "sliced")
EPSILON = 0.3


def build(kind, seed=0, **config):
    return build_component(kind, config, tiny_context(seed=seed))


def named(name, **config):
    return build(registry().load("distance", name), **config)


def fitted(distance, x, classes=None):
    distance.fit(Points(x, classes))
    return distance


def cloud(count, width=3, seed=0, shift=0.0):
    return random(count, width, seed=seed).double() + shift


def value_and_gradient(distance, z, classes=None):
    leaf = z.clone().requires_grad_()
    value = distance(Points(leaf, classes))
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def finite_differences(function, z, step=1e-5):
    gradient = torch.zeros_like(z)
    for index in np.ndindex(*z.shape):
        up, down = z.clone(), z.clone()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def half_cost(x, z):
    return 0.5 * ((x[:, None] - z[None]) ** 2).sum(2)


def pot_entropic(cost, epsilon):
    """Value and plan of <P, C> + ε KL(P | a ⊗ b), from POT's converged plan."""
    n, m = cost.shape
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    limits = {"numItermax": 5000, "stopThr": 1e-11, "warn": False}
    plan = ot.sinkhorn(a, b, cost, epsilon, "sinkhorn_log", **limits)
    relative = plan * (np.log(np.maximum(plan, 1e-300)) - np.log(np.outer(a, b)))
    return (plan * cost).sum() + epsilon * relative.sum(), plan


def pot_divergence(x, z, epsilon):
    costs = [half_cost(p, q).numpy() for p, q in ((x, z), (x, x), (z, z))]
    cross, own, other = (pot_entropic(cost, epsilon)[0] for cost in costs)
    return cross - 0.5 * own - 0.5 * other


# --- exact transport ---


@pytest.mark.parametrize(("n", "m"), [(6, 4), (5, 5), (4, 1), (1, 3)])
def test_emd_is_the_linear_program(n, m):
    x, z = cloud(n), cloud(m, seed=1, shift=0.5)
    cost = half_cost(x, z).numpy()
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    sums = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    solved = scipy.optimize.linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=sums)
    distance = fitted(build(EMD), x)
    value, gradient = value_and_gradient(distance, z)
    assert value.item() == pytest.approx(solved.fun, rel=1e-9)
    plan = torch.from_numpy(solved.x.reshape(n, m))
    by_hand = plan.sum(0)[:, None] * z - plan.T @ x
    torch.testing.assert_close(gradient, by_hand, rtol=1e-7, atol=1e-9)
    expected = finite_differences(lambda q: distance(Points(q)), z)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


# --- Sinkhorn ---


@pytest.mark.long
@pytest.mark.parametrize(("n", "m"), [(9, 6), (5, 5), (7, 1), (1, 4), (1, 1)])
@pytest.mark.parametrize("debias", [True, False])
def test_sinkhorn_is_the_converged_divergence(n, m, debias):
    x, z = cloud(n), cloud(m, seed=1, shift=0.5)
    distance = fitted(build(Sinkhorn, reg=EPSILON, debias=debias, tolerance=1e-11), x)
    value, gradient = value_and_gradient(distance, z)
    if debias:
        expected = pot_divergence(x, z, EPSILON)
    else:
        expected = pot_entropic(half_cost(x, z).numpy(), EPSILON)[0]
    assert value.item() == pytest.approx(expected, rel=1e-7, abs=1e-9)
    differences = finite_differences(lambda q: distance(Points(q)), z)
    torch.testing.assert_close(gradient, differences, rtol=1e-4, atol=1e-6)


def _unrolled(x, z, epsilon, steps):
    """The divergence by plain iterations on the potentials, with their whole graph."""

    def transport(p, q):
        cost = half_cost(p, q)
        f, g = torch.zeros(len(p)).double(), torch.zeros(len(q)).double()
        for _ in range(steps):
            f = -epsilon * torch.logsumexp((g - cost) / epsilon - math.log(len(q)), 1)
            g = -epsilon * torch.logsumexp((f[:, None] - cost) / epsilon - math.log(len(p)), 0)
        return f.mean() + g.mean()

    return transport(x, z) - 0.5 * transport(x, x) - 0.5 * transport(z, z)


@pytest.mark.slow
def test_sinkhorn_gradient_is_that_of_a_converged_unrolled_loop():
    x, z = cloud(30, 4), cloud(12, 4, seed=1, shift=0.5)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(_unrolled(x, leaf, 0.1, 2000), leaf)
    _, tight = value_and_gradient(fitted(build(Sinkhorn, tolerance=1e-9), x), z)
    torch.testing.assert_close(tight, expected, rtol=1e-5, atol=1e-7)
    _, loose = value_and_gradient(fitted(build(Sinkhorn), x.float()), z.float())
    cosine = torch.cosine_similarity(loose.double().flatten(), expected.flatten(), dim=0)
    assert cosine > 0.9999


def test_sinkhorn_without_regularisation_is_exact_transport():
    x, z = cloud(20), cloud(8, seed=1, shift=1.0)
    near = build(Sinkhorn, reg=1e-3, debias=False, tolerance=1e-6)
    value, gradient = value_and_gradient(fitted(near, x), z)
    exact, exact_gradient = value_and_gradient(fitted(build(EMD), x), z)
    # 0 <= OT_ε − OT <= ε log min(n, m).
    assert exact <= value + 1e-9
    assert value <= exact + 1e-3 * math.log(8) + 1e-9
    assert torch.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), dim=0) > 0.999


def test_sinkhorn_keeps_the_sources_own_term():
    """It is computed once, and the target's points are all that later calls look at."""
    x, z = cloud(20), cloud(6, seed=1)
    distance = fitted(build(Sinkhorn, reg=EPSILON, tolerance=1e-9), x)
    own = entropic.self_transport(lambda r: half_squared(x[r], x)[None], _equal(20), EPSILON)
    expected = pot_entropic(half_cost(x, x).numpy(), EPSILON)[0]
    assert own.item() == pytest.approx(expected, abs=1e-3 * EPSILON)
    seen = []
    entropic_self = entropic.self_transport
    try:
        entropic.self_transport = lambda rows, a, *rest: (
            seen.append(a.shape[1]) or entropic_self(rows, a, *rest)
        )
        distance(Points(z))
    finally:
        entropic.self_transport = entropic_self
    assert seen == [6]


def _equal(*shape):
    return torch.full((1, *shape), 1 / shape[-1], dtype=torch.float64)


def test_padded_problems_are_solved_as_alone():
    sizes = [(7, 3), (4, 5), (1, 1)]
    cost, a, b = torch.zeros(3, 7, 5).double(), torch.zeros(3, 7).double(), _equal(3, 5)[0] * 0
    alone = []
    for number, (n, m) in enumerate(sizes):
        part = half_cost(cloud(n, seed=number), cloud(m, seed=9 + number, shift=1.0))
        cost[number, :n, :m] = part
        a[number, :n], b[number, :m] = 1 / n, 1 / m
        alone.append(pot_entropic(part.numpy(), EPSILON)[0])
    together = entropic.transport(cost.requires_grad_(), a, b, EPSILON, 1e-10)
    torch.testing.assert_close(together.detach(), torch.tensor(alone).double())
    (plan,) = torch.autograd.grad(together.sum(), cost)
    for number, (n, m) in enumerate(sizes):
        inside = plan[number, :n, :m].sum()
        assert inside.item() == pytest.approx(1)
        assert plan[number].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("spread", [30.0, 100.0])
def test_sinkhorn_survives_costs_of_many_epsilons(spread):
    """In float32, with costs up to a million times ε, where kernels underflow."""
    x, z = cloud(40) * spread, cloud(11, seed=1) * spread + 3 * spread
    value, gradient = value_and_gradient(fitted(build(Sinkhorn), x.float()), z.float())
    exact, exact_gradient = value_and_gradient(fitted(build(EMD), x), z)
    assert value.item() == pytest.approx(exact.item(), rel=2e-3)
    cosine = torch.cosine_similarity(gradient.double().flatten(), exact_gradient.flatten(), dim=0)
    assert cosine > 0.999


def test_the_symmetric_problem_in_blocks(monkeypatch):
    x = cloud(23)
    whole = entropic.self_transport(lambda r: half_squared(x[r], x)[None], _equal(23), 0.1)
    monkeypatch.setattr(entropic, "_CELLS", 50)
    rows = []
    blocks = entropic.self_transport(
        lambda r: rows.append(len(x[r])) or half_squared(x[r], x)[None], _equal(23), 0.1
    )
    assert max(rows) == 2
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)


# --- Bures ---


def _sqrtm_distance(x, z, ridge):
    """From the definition, with scipy's matrix root."""
    x, z = x.numpy(), z.numpy()
    one = np.cov(x.T, bias=True)
    amount = ridge * np.trace(one) / len(one)
    one = one + amount * np.eye(len(one))
    other = np.cov(z.T, bias=True) + amount * np.eye(len(one))
    root = scipy.linalg.sqrtm(one).real
    cross = np.trace(scipy.linalg.sqrtm(root @ other @ root).real)
    return ((x.mean(0) - z.mean(0)) ** 2).sum() + np.trace(one) + np.trace(other) - 2 * cross


@pytest.mark.parametrize(("n", "m", "width"), [(30, 20, 4), (30, 3, 6), (4, 2, 6)])
def test_bures_is_the_matrix_formula(n, m, width):
    x, z = cloud(n, width), 2 * cloud(m, width, seed=1, shift=0.5)
    distance = fitted(build(Bures, ridge=0.01), x)
    value, gradient = value_and_gradient(distance, z)
    assert value.item() == pytest.approx(_sqrtm_distance(x, z, 0.01), rel=1e-8)
    expected = finite_differences(lambda q: distance(Points(q)), z)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_bures_agrees_with_pot_and_with_the_closed_form_of_commuting_gaussians():
    x = cloud(40, 4)
    x = x - x.mean(0)
    scale = torch.tensor([0.5, 2.0, 3.0, 1.0]).double()
    vectors = torch.linalg.eigh(x.T @ x / 40).eigenvectors
    z = (x @ vectors * scale) @ vectors.T + 1.5
    value, _ = value_and_gradient(fitted(build(Bures, ridge=1e-12), x), z)
    eigenvalues = torch.linalg.eigvalsh(x.T @ x / 40)
    commuting = 4 * 1.5**2 + (eigenvalues * (1 - scale) ** 2).sum()
    assert value.item() == pytest.approx(commuting.item(), rel=1e-6)
    covariances = [np.cov(p.T.numpy(), bias=True) for p in (x, z)]
    means = x.mean(0).numpy(), z.mean(0).numpy()
    from_pot = ot.gaussian.bures_wasserstein_distance(*means, *covariances)
    assert value.item() == pytest.approx(from_pot**2, rel=1e-6)


def test_bures_is_stable_for_fewer_points_than_dimensions():
    x = random(300, 128)
    z = random(5, 128, seed=1) + 0.2
    value, gradient = value_and_gradient(fitted(build(Bures), x), z)
    in_double, exact = value_and_gradient(fitted(build(Bures), x.double()), z.double())
    assert value.item() == pytest.approx(in_double.item(), rel=1e-5)
    torch.testing.assert_close(gradient, exact.float(), rtol=1e-3, atol=1e-4)
    assert gradient.norm() < 10


# --- MMD, sliced, l2 ---


def _published_mmd(x, z):
    """The published loss on the joint kernel matrix, in float64."""
    total = torch.cat([x, z])
    squared = ((total[None] - total[:, None]) ** 2).sum(2)
    count = len(total)
    width = squared.detach().sum() / (count**2 - count) / 2 ** (5 // 2)
    kernel = sum(torch.exp(-squared / (width * 2**i)) for i in range(5))
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - kernel[:n, n:].mean() * 2


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 5), (9, 1)])
def test_mmd_is_the_published_loss(n, m):
    x, z = cloud(n, 5), cloud(m, 5, seed=1, shift=0.7)
    value, gradient = value_and_gradient(fitted(build(MMD), x), z)
    leaf = z.clone().requires_grad_()
    expected = _published_mmd(x, leaf)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0])


def test_mmd_with_the_sources_width_is_the_definition(monkeypatch):
    monkeypatch.setattr("xmodal_orca.distances.mmd._CELLS", 20)
    x, z = cloud(11, 2), cloud(4, 2, seed=1, shift=0.7)
    distance = fitted(build(MMD, bandwidth="source"), x)
    squares = [((p - q) ** 2).sum().item() for i, p in enumerate(x) for q in x[:i]]
    width = sum(squares) / len(squares)

    def mean_kernel(one, other):
        values = [
            sum(math.exp(-((p - q) ** 2).sum().item() / (width * 2.0**i)) for i in range(-2, 3))
            for p in one
            for q in other
        ]
        return sum(values) / len(values)

    expected = mean_kernel(x, x) + mean_kernel(z, z) - 2 * mean_kernel(x, z)
    value, gradient = value_and_gradient(distance, z)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    differences = finite_differences(lambda q: distance(Points(q)), z)
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 7), (20, 1), (1, 6)])
def test_sliced_is_that_of_pot(n, m):
    x, z = cloud(n, 4), cloud(m, 4, seed=1, shift=0.5)
    distance = fitted(build(Sliced, projections=16), x)
    lines = distance._lines_DR
    torch.testing.assert_close(lines.norm(dim=0), torch.ones(16).double())
    expected = ot.sliced_wasserstein_distance(x, z, projections=lines) ** 2
    value, gradient = value_and_gradient(distance, z)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    differences = finite_differences(lambda q: distance(Points(q)), z, step=1e-6)
    torch.testing.assert_close(gradient, differences, rtol=1e-5, atol=1e-7)


def test_l2_is_the_mean_over_pairs():
    x, z = cloud(6), cloud(4, seed=1)
    distance = fitted(build(L2), x)
    pairs = [math.sqrt(((p - q) ** 2).sum().item()) for p in x for q in z]
    value, gradient = value_and_gradient(distance, z)
    assert value.item() == pytest.approx(sum(pairs) / 24, rel=1e-12)
    differences = finite_differences(lambda q: distance(Points(q)), z)
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-8)


# --- what all have in common ---


@pytest.mark.parametrize("name", ZERO_TO_ITSELF)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_sets_are_at_distance_zero_and_others_are_not(name, dtype):
    x = random(24, 6).to(dtype)
    classes = torch.arange(24) % 3
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    distance = fitted(named(name), x, classes)
    near = distance(Points(x[order], classes[order])).item()
    far = distance(Points(x[order] + 1, classes[order])).item()
    assert abs(near) < 2e-4
    assert far > 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_few_and_identical_points(name, dtype):
    many, one = random(12, 5).to(dtype), random(1, 5, seed=1).to(dtype)
    sources = (many, one, one.repeat(4, 1))
    targets = (one, one.repeat(3, 1), many[:2], many)
    for x in sources:
        distance = fitted(named(name), x)
        for z in targets:
            value, gradient = value_and_gradient(distance, z)
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all()
            assert gradient.dtype == dtype
            labels = torch.arange(len(z)) % 2
            assert torch.isfinite(distance(Points(z, labels)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_neither_a_common_shift_nor_the_order_changes_anything(name, offset):
    """In float32, against the same numbers in float64 around 0."""
    x, z = random(60, 6).float() + offset, random(9, 6, seed=1).float() + offset + 1
    classes = torch.arange(60) % 4
    exact = fitted(named(name), x.double() - offset, classes)
    value, gradient = value_and_gradient(exact, z.double() - offset)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    turned = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    distance = fitted(named(name), x[order], classes[order])
    found, slope = value_and_gradient(distance, z[turned])
    assert float(found) == pytest.approx(float(value), rel=2e-4)
    assert (slope.double() - gradient[turned]).norm() < 2e-4 * gradient.norm()


@pytest.mark.parametrize("name", NAMES)
def test_moving_along_the_gradient_brings_the_sets_nearer(name):
    x, z = random(60, 4), random(10, 4, seed=1) + 2
    distance = fitted(named(name), x, torch.arange(60) % 4)
    before, gradient = value_and_gradient(distance, z)
    after = distance(Points(z - 0.1 * gradient / gradient.norm()))
    assert after < before


@pytest.mark.parametrize("name", NAMES)
def test_the_source_gets_no_gradient_and_the_global_stream_stays(name):
    x, z = random(20, 3).requires_grad_(), random(8, 3, seed=1).requires_grad_()
    state = torch.get_rng_state()
    fitted(named(name), x)(Points(z)).backward()
    assert x.grad is None
    assert z.grad is not None
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert not fitted(named(name), x)(Points(z)).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_two_calls_give_the_same_bits(name):
    x, z = random(50, 6), random(9, 6, seed=1)
    first, second = (fitted(named(name), x) for _ in range(2))
    results = [value_and_gradient(d, z) for d in (first, first, second)]
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("name", ["otdd", "sinkhorn", "emd", "mmd"])
def test_a_subsample_is_drawn_once_from_the_components_stream(name):
    x, z = random(200, 3), random(8, 3, seed=1)
    component = registry().load("distance", name)
    context = tiny_context(seed=3)
    distance = build_component(component, {"subsample": 20}, context)
    context.generator.manual_seed(99)  # as a restored checkpoint would
    value = fitted(distance, x, torch.arange(200) % 2)(Points(z))
    again = build(component, seed=3, subsample=20)
    assert torch.equal(fitted(again, x, torch.arange(200) % 2)(Points(z)), value)
    other = fitted(build(component, seed=4, subsample=20), x, torch.arange(200) % 2)
    assert not torch.equal(other(Points(z)), value)
    everything = fitted(build(component, subsample=200), x)(Points(z))
    assert torch.equal(everything, fitted(build(component, subsample=None), x)(Points(z)))


@pytest.mark.parametrize("name", NAMES)
def test_points_that_do_not_fit_are_refused(name):
    distance = fitted(named(name), random(6, 3))
    with pytest.raises(ValueError, match="2 wide, the source's 3"):
        distance(Points(random(4, 2)))
    with pytest.raises(ValueError, match=r"points of shape \[n, D\]"):
        distance(Points(random(0, 3)))
    with pytest.raises(ValueError, match=r"points of shape \[n, D\]"):
        named(name).fit(Points(random(3)))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Sinkhorn, {"reg": 0}),
        (Sinkhorn, {"reg": float("inf")}),
        (Sinkhorn, {"subsample": 0}),
        (Sinkhorn, {"tolerance": 0}),
        (EMD, {"reg": 0.1}),
        (Bures, {"ridge": 0}),
        (MMD, {"bandwidth": 2}),
        (Sliced, {"projections": 0}),
        (OTDD, {"labels": "none"}),
        (OTDD, {"min_count": 0}),
    ],
)
def test_hostile_settings_are_refused(kind, config):
    with pytest.raises(ValidationError, match=next(iter(config))):
        kind.Config(**config)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_what_the_cpu_gives(name):
    x, z, classes = random(90, 6), random(12, 6, seed=1), torch.arange(90) % 3
    value, gradient = value_and_gradient(fitted(named(name), x, classes), z)
    on_gpu = fitted(named(name), x.cuda(), classes)
    gpu_value, gpu_gradient = value_and_gradient(on_gpu, z.cuda(), torch.zeros(12).long())
    torch.testing.assert_close(gpu_value.cpu(), value, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gpu_gradient.cpu(), gradient, rtol=1e-2, atol=1e-3)
