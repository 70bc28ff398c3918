"""Agreement of two predictions under every built-in loss: 0 where equal, KL where classes.

Shapes: B samples, K outputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import entropy
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from xmodal.interfaces import Loss, Target
from xmodal.testing.tiny import build as make
from xmodal.testing.tiny import tiny_context, tiny_facts
from xmodal_basics import losses

CLASSES, LABELS, MAPS = (
    Target("classification", 4),
    Target("multi-label", 5),
    Target("dense", 1, (3, 2)),
)
EVERY = [
    (losses.CrossEntropy, CLASSES, {}),
    (losses.CrossEntropy, CLASSES, {"label_smoothing": 0.1}),
    (losses.Focal, CLASSES, {"alpha": 0.5}),
    (losses.BinaryCrossEntropy, LABELS, {}),
    (losses.BinaryCrossEntropy, MAPS, {"pos_weight": 3.0}),
    *(
        (kind, MAPS, {})
        for kind in (losses.SquaredError, losses.AbsoluteError, losses.RelativeL2Loss)
    ),
    *((kind, MAPS, {}) for kind in (losses.NormalisedRMSELoss, losses.RootMeanSquaredErrorLoss)),
]


def build(kind: type[Loss], output: Target, given: dict[str, Any]) -> Any:
    facts = tiny_facts("grid", output)
    return make(kind, given, tiny_context(facts, output=output))


def predictions(output: Target, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (6, output.size, *output.shape)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("kind", "output", "given"), EVERY)
def test_zero_where_equal_positive_elsewhere_and_finite(kind, output, given):
    loss = build(kind, output, given)
    for scale in (1.0, 100.0):
        p, q = scale * predictions(output, 0).float(), scale * predictions(output, 1).float()
        leaf = p.clone().requires_grad_()
        same = loss.agreement(leaf, p)
        assert same.shape == (6,)
        assert torch.equal(same, torch.zeros(6))
        same.sum().backward()
        assert float(leaf.grad.abs().max()) < 1e-6
        apart = loss.agreement(leaf, q)
        # Two predictions that are certain of one class agree to rounding.
        assert bool((apart > (0 if scale == 1 else -1e-6)).all())
        assert float(apart.detach().sum()) > 0.1
        (gradient,) = torch.autograd.grad(apart.sum(), leaf)
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("given", [{}, {"balanced": True}, {"label_smoothing": 0.1}])
def test_classes_are_torchs_and_scipys_divergence(given):
    p, q = predictions(CLASSES, 0), predictions(CLASSES, 1)
    value = build(losses.CrossEntropy, CLASSES, given).agreement(p, q)
    expected = kl_divergence(Categorical(logits=q), Categorical(logits=p))
    torch.testing.assert_close(value, expected)
    for row in range(6):
        assert float(value[row]) == pytest.approx(entropy(q[row].softmax(0), p[row].softmax(0)))
    focal = build(losses.Focal, CLASSES, {"alpha": 0.25})
    torch.testing.assert_close(focal.agreement(p, q), 0.25 * expected)


@pytest.mark.parametrize("output", [LABELS, MAPS])
@pytest.mark.parametrize("pos_weight", [1.0, 5.0])
def test_labels_are_torchs_divergence(output, pos_weight):
    p, q = predictions(output, 0), predictions(output, 1)
    value = build(losses.BinaryCrossEntropy, output, {"pos_weight": pos_weight}).agreement(p, q)
    expected = kl_divergence(Bernoulli(logits=q), Bernoulli(logits=p)).flatten(1).mean(1)
    torch.testing.assert_close(value, expected)


def test_the_gradient_is_that_of_soft_cross_entropy():
    """KL differs from it by the entropy of the other prediction, a constant."""
    p, q = predictions(CLASSES, 0).requires_grad_(), predictions(CLASSES, 1)
    value = build(losses.CrossEntropy, CLASSES, {}).agreement(p, q).sum()
    (found,) = torch.autograd.grad(value, p)
    soft = nn.CrossEntropyLoss(reduction="sum")(p, q.softmax(1))
    (expected,) = torch.autograd.grad(soft, p)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("kind", "output"), [(losses.CrossEntropy, CLASSES), (losses.BinaryCrossEntropy, LABELS)]
)
def test_gradients_by_finite_differences(kind, output):
    loss, q = build(kind, output, {}), predictions(output, 1)
    p = predictions(output, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss.agreement(x, q), (p,))
