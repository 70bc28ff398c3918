"""The released Sinkhorn, one step a scale, against a second implementation in NumPy.

Shapes: n source points, m target points, D their width, C source classes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from xmodal.batch import Points
from xmodal.testing.tiny import tiny_context
from xmodal_orca.distances.annealed import scales
from xmodal_orca.distances.otdd import OTDD

BLUR2 = 0.1


def squared(x_ND: np.ndarray, z_MD: np.ndarray) -> np.ndarray:
    return ((x_ND[:, None] - z_MD[None]) ** 2).sum(-1)


def box(*sets: np.ndarray) -> float:
    both = np.concatenate(sets)
    return float(np.linalg.norm(both.max(0) - both.min(0)))


def published_scales(diameter: float) -> list[float]:
    """Squared diameter; exponents from 2 log d down by 2 log ½ to 2 log blur; blur²."""
    first, last, step = 2 * math.log(diameter), math.log(BLUR2), 2 * math.log(0.5)
    return [diameter**2, *np.exp(np.arange(first, last, step)), BLUR2]


def divergence(
    cost_NM: np.ndarray, own_NN: np.ndarray, own_MM: np.ndarray, epsilons: list[float]
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The value without the source's own term, that term, and the weights of the last step.

    Weights: [n, m] of the source's points for each target point, [m, m] of the target's own.
    """
    n, m = cost_NM.shape

    def soft(cost: np.ndarray, potential: np.ndarray, epsilon: float) -> np.ndarray:
        h = -math.log(len(potential)) + potential / epsilon
        return -epsilon * logsumexp(h - cost / epsilon, axis=1)

    def step(f, g, p, q, epsilon):
        return (
            soft(cost_NM, g, epsilon),
            soft(cost_NM.T, f, epsilon),
            soft(own_NN, p, epsilon),
            soft(own_MM, q, epsilon),
        )

    state = step(np.zeros(n), np.zeros(m), np.zeros(n), np.zeros(m), epsilons[0])
    for epsilon in epsilons:
        state = tuple((a + b) / 2 for a, b in zip(state, step(*state, epsilon), strict=True))
    f, _, _, q = state
    last = step(*state, epsilons[-1])
    to_source = softmax((f[:, None] - cost_NM) / epsilons[-1], axis=0)
    to_itself = softmax((q[:, None] - own_MM) / epsilons[-1], axis=0)
    return last[0].mean() + last[1].mean() - last[3].mean(), last[2].mean(), to_source, to_itself


def published(
    x_ND: np.ndarray, y_N: np.ndarray, z_MD: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """The value without the source's own term, that term, and the gradient in the target."""
    count = int(y_N.max()) + 1
    sets = [*(x_ND[y_N == c] for c in range(count)), z_MD]
    W = np.zeros((count + 1, count + 1))
    for i in range(count + 1):
        for j in range(i + 1, count + 1):
            one, other = sets[i], sets[j]
            costs = squared(one, other), squared(one, one), squared(other, other)
            value, own, *_ = divergence(*costs, published_scales(box(one, other)))
            W[i, j] = W[j, i] = value - own
    cost_NM = 0.5 * squared(x_ND, z_MD) + 0.5 * W[y_N, count][:, None]
    own_NN = 0.5 * squared(x_ND, x_ND) + 0.5 * W[y_N][:, y_N]
    # Labels are a last coordinate: 0 .. C-1, and C for the target.
    size = math.hypot(box(x_ND, z_MD), count)
    own_MM = 0.5 * squared(z_MD, z_MD)
    value, own, to_source, to_itself = divergence(cost_NM, own_NN, own_MM, published_scales(size))
    m = len(z_MD)
    # d cost / d z_j = z_j - x_i; the columns of the weights sum to 1.
    return value, own, ((z_MD - to_source.T @ x_ND) - (z_MD - to_itself.T @ z_MD)) / m


def ours(
    x_ND: np.ndarray, y_N: np.ndarray, z_MD: np.ndarray, **settings: str
) -> tuple[float, np.ndarray]:
    distance = OTDD(OTDD.Config(**settings), tiny_context())
    distance.fit(Points(torch.tensor(x_ND), torch.tensor(y_N)))
    leaf = torch.tensor(z_MD, requires_grad=True)
    value = distance(Points(leaf, torch.zeros(len(z_MD), dtype=torch.int64)))
    return float(value.detach()), torch.autograd.grad(value, leaf)[0].numpy()


ANNEALED = {"inner": "annealed", "outer": "annealed"}
CLOUDS = [(1.0, 0.5, 10), (0.2, 2.0, 3), (0.05, 0.1, 2), (1.0, 0.0, 1)]


@pytest.mark.parametrize(("spread", "shift", "count"), CLOUDS)
def test_annealed_is_the_released_divergence(spread: float, shift: float, count: int) -> None:
    random = np.random.default_rng(count)
    y_N = np.arange(60) % count
    means = spread * random.normal(size=(count, 8))
    x_ND = means[y_N] + spread * random.normal(size=(60, 8))
    z_MD = spread * (0.8 * random.normal(size=(15, 8)) + shift)
    value, own, gradient_MD = published(x_ND, y_N, z_MD)
    found, slope_MD = ours(x_ND, y_N, z_MD, **ANNEALED)
    assert np.allclose(slope_MD, gradient_MD, rtol=1e-9, atol=1e-12)
    # The source's own term, a constant, is that of the optimum here.
    assert found == pytest.approx(value - own, rel=0.02, abs=2e-3)


def test_how_far_the_released_gradient_is_from_the_optimum() -> None:
    """Where costs are hundreds of ε it is far, where they are a few ε it is not."""
    random = np.random.default_rng(0)
    y_N = np.arange(200) % 10
    x_ND = random.normal(size=(10, 32))[y_N] + random.normal(size=(200, 32))
    z_MD = 0.8 * random.normal(size=(40, 32)) + 0.5
    errors = []
    for scale in (1.0, 0.05):
        pair = [ours(scale * x_ND, y_N, scale * z_MD, **how)[1] for how in (ANNEALED, {})]
        errors.append(np.linalg.norm(pair[0] - pair[1]) / np.linalg.norm(pair[1]))
    assert errors[0] > 0.3
    assert errors[1] < 0.05


def test_scales() -> None:
    assert scales(1.0, 0.1) == pytest.approx([1, 1, 0.25, 0.1])
    assert scales(0.2, 0.1) == pytest.approx([0.04, 0.1])
    assert scales(0.0, 0.1) == [0.1]
    assert scales(3.7, 0.1) == pytest.approx(published_scales(3.7))


@pytest.mark.parametrize("points", [1, 2])
def test_equal_points_and_single_points_are_finite(points: int) -> None:
    x_ND, y_N = np.ones((4, 3)), np.zeros(4, dtype=int)
    value, slope_MD = ours(x_ND, y_N, np.ones((points, 3)), **ANNEALED)
    assert value == pytest.approx(0, abs=1e-6)
    assert np.allclose(slope_MD, 0)


def test_labels_have_no_gradient_in_the_released_divergence() -> None:
    with pytest.raises(ValueError, match="no gradient through labels"):
        OTDD.Config(outer="annealed", label_gradient=True)
