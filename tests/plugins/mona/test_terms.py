"""Alignment, uniformity and positive pairs against hand-worked cases and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from xmodal_mona.terms import alignment, positive_pairs, uniformity, unit_features

# East, north, west: squared distances 2 (E-N), 4 (E-W), 2 (N-W).
COMPASS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


def pairs(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_positive_pairs_of_classes_by_hand() -> None:
    found = positive_pairs(torch.tensor([5, 3, 5, 3]))
    # (0,1) (0,2) (0,3) (1,2) (1,3) (2,3)
    assert found.tolist() == [False, True, False, False, True, False]


def test_positive_pairs_of_numbers_are_the_nearest_by_hand() -> None:
    # 0 -> 1, 1 -> 0, 2 -> 3, 3 -> 2, and 4 is nearest to nobody but has a nearest: 3.
    y = torch.tensor([[0.0], [1.0], [10.0], [12.0], [20.0]])
    found = positive_pairs(y)
    names = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    assert [n for n, yes in zip(names, found.tolist(), strict=True) if yes] == [
        (0, 1),
        (2, 3),
        (3, 4),
    ]


def test_all_ties_are_positive() -> None:
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])  # distances 1, 1, sqrt 2
    assert positive_pairs(labels).tolist() == [True, True, False]


def test_maps_with_gaps_are_labels_too() -> None:
    y = torch.zeros(3, 1, 4, 4)
    y[1:] = 1.0
    y[0, 0, 0, 0] = torch.nan
    assert positive_pairs(y).tolist() == [True, True, True]


def test_alignment_and_uniformity_by_hand() -> None:
    assert alignment(COMPASS, pairs(1, 0, 0)).item() == pytest.approx(2.0)
    assert alignment(COMPASS, pairs(1, 1, 0)).item() == pytest.approx(3.0)
    assert alignment(COMPASS, pairs(0, 1, 0), exponent=1.0).item() == pytest.approx(2.0)
    expected = math.log((2 * math.exp(-2 * 2) + math.exp(-2 * 4)) / 3)
    assert uniformity(COMPASS).item() == pytest.approx(expected, rel=1e-12)
    expected = math.log((2 * math.exp(-0.5 * 2) + math.exp(-0.5 * 4)) / 3)
    assert uniformity(COMPASS, temperature=0.5).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_terms_and_gradients_against_loops(exponent: float) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 5, dtype=torch.float64, generator=random, requires_grad=True)
    y = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    z = unit_features(x)
    ours = alignment(z, positive_pairs(y), exponent) + uniformity(z, 1.5)
    points = [row / row.square().sum().sqrt() for row in x.mean(dim=1)]
    near, spread = [], []
    for i in range(7):
        for j in range(7):
            squared = (points[i] - points[j]).square().sum()
            if i != j:
                spread.append(torch.exp(-1.5 * squared))
            if i != j and y[i] == y[j]:
                near.append(squared.pow(exponent / 2))
    theirs = torch.stack(near).mean() + torch.stack(spread).mean().log()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    (a,) = torch.autograd.grad(ours, x, retain_graph=True)
    (b,) = torch.autograd.grad(theirs, x)
    torch.testing.assert_close(a, b)


def test_gradients_numerically() -> None:
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positive = positive_pairs(torch.tensor([0, 0, 1, 1, 0]))
    assert gradcheck(lambda t: alignment(t, positive), z.requires_grad_())
    assert gradcheck(uniformity, z)


@pytest.mark.parametrize("y", [torch.arange(4), torch.zeros(1, dtype=torch.int64)])
def test_no_positive_pair_is_no_alignment(y: Tensor) -> None:
    z = torch.randn(len(y), 3, requires_grad=True)
    loss = alignment(z, positive_pairs(y))
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_one_sample_is_as_uniform_as_can_be() -> None:
    z = torch.randn(1, 3, requires_grad=True)
    uniformity(z).backward()
    assert uniformity(z).item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_equal_samples_have_finite_gradients() -> None:
    z = torch.ones(3, 2, requires_grad=True)
    (alignment(z, pairs(1, 1, 1)) + uniformity(z)).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_features_have_length_one_in_at_least_float32() -> None:
    z = unit_features(torch.randn(4, 6, 8).bfloat16())
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))
    assert unit_features(COMPASS[:, None]).dtype == torch.float64
