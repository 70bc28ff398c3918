"""Losses against scikit-learn, torch and hand computation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from xmodal.interfaces import BackboneFacts, Context, Facts, Target, TaskFacts
from xmodal_basics import losses

NAN = float("nan")


MAPS = Target("dense", 1, (4, 4))


def build(cls: type[Any], output: Target = MAPS, **settings: Any) -> Any:
    facts = Facts(TaskFacts("toy", (1, 4, 4), output, {}), BackboneFacts("stub", "any", 4, 4))
    generator = torch.Generator().manual_seed(0)
    context = Context(facts, generator, store=SimpleNamespace())  # type: ignore[arg-type]
    return cls(cls.Config(**settings), context)


CLASSES = Target("classification", 4)
NUMERIC = [
    losses.SquaredError,
    losses.AbsoluteError,
    losses.RelativeL2Loss,
    losses.NormalisedRMSELoss,
    losses.RootMeanSquaredErrorLoss,
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    p, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 0])
    loss = build(losses.CrossEntropy, CLASSES, label_smoothing=smoothing)
    reference = nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)(p, y)
    torch.testing.assert_close(loss(p, y), reference)


def test_balanced_weights_are_scikit_learns() -> None:
    y = torch.tensor([0, 0, 0, 1, 3, 3, 2, 0])
    loss = build(losses.CrossEntropy, CLASSES, balanced=True)
    with pytest.raises(RuntimeError, match="fit"):
        loss(torch.zeros(8, 4), y)
    loss.fit(y)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y.numpy())
    torch.testing.assert_close(loss.weight_K, torch.tensor(expected).float())
    weighted = loss(torch.zeros(8, 4), y)
    assert weighted.mean().item() == pytest.approx(np.log(4))
    assert not loss.state_dict()


def test_weights_over_a_batch_are_torchs_weighted_mean() -> None:
    """Values and gradients of what the released ORCA trains on, in every batch."""
    generator = torch.Generator().manual_seed(0)
    fitted = torch.tensor([0] * 70 + [1] * 22 + [2] * 4 + [3] * 4)
    loss = build(losses.CrossEntropy, CLASSES, balanced="batch").train()
    loss.fit(fitted)
    released = nn.CrossEntropyLoss(weight=100 / torch.bincount(fitted).float())
    for _ in range(5):
        y = fitted[torch.randperm(100, generator=generator)[:16]]
        p = torch.randn(16, 4, generator=generator, requires_grad=True)
        ours, theirs = loss(p, y).mean(), released(p, y)
        torch.testing.assert_close(ours, theirs)
        for found, expected in zip(
            torch.autograd.grad(ours, p), torch.autograd.grad(theirs, p), strict=True
        ):
            torch.testing.assert_close(found, expected)


def test_weights_do_not_depend_on_the_batches_of_an_evaluation() -> None:
    y = torch.tensor([0] * 7 + [1] * 2 + [2, 3])
    p = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    loss = build(losses.CrossEntropy, CLASSES, balanced="batch").eval()
    loss.fit(y)
    apart = torch.cat([loss(p[:4], y[:4]), loss(p[4:], y[4:])])
    torch.testing.assert_close(loss(p, y), apart)
    plain = build(losses.CrossEntropy, CLASSES, balanced=True).train()
    plain.fit(y)
    torch.testing.assert_close(loss(p, y), plain(p, y))


def test_a_class_that_never_occurs_has_weight_one() -> None:
    loss = build(losses.CrossEntropy, CLASSES, balanced=True)
    loss.fit(torch.tensor([0, 0, 0, 1]))
    torch.testing.assert_close(loss.weight_K, torch.tensor([2 / 3, 2.0, 1.0, 1.0]))


def test_focal() -> None:
    p, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 0])
    plain = nn.CrossEntropyLoss(reduction="none")(p, y)
    torch.testing.assert_close(build(losses.Focal, CLASSES, gamma=0.0)(p, y), plain)
    truth = p.softmax(1)[torch.arange(6), y]
    expected = 0.25 * (1 - truth) ** 2 * -truth.log()
    torch.testing.assert_close(build(losses.Focal, CLASSES, alpha=0.25)(p, y), expected)


@pytest.mark.parametrize("pos_weight", [1.0, 10.0])
def test_bce(pos_weight: float) -> None:
    p, y = torch.randn(3, 5), torch.randint(2, (3, 5)).float()
    loss = build(losses.BinaryCrossEntropy, Target("multi-label", 5), pos_weight=pos_weight)
    reference = nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor(pos_weight))(p, y)
    torch.testing.assert_close(loss(p, y), reference.mean(1))


def test_numeric_losses_by_hand() -> None:
    p, y = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    error = (p - y).flatten(1)
    rmse = error.square().mean(1).sqrt()
    torch.testing.assert_close(build(losses.SquaredError)(p, y), error.square().mean(1))
    torch.testing.assert_close(build(losses.AbsoluteError)(p, y), error.abs().mean(1))
    torch.testing.assert_close(build(losses.RootMeanSquaredErrorLoss)(p, y), rmse)
    # Per output: outputs may have different units.
    relative = ((p - y).flatten(2).norm(dim=2) / y.flatten(2).norm(dim=2)).mean(1)
    torch.testing.assert_close(build(losses.RelativeL2Loss)(p, y), relative)
    torch.testing.assert_close(build(losses.NormalisedRMSELoss)(p, y), relative)
    single = error[:, :16].norm(dim=1) / y[:, :1].flatten(1).norm(dim=1)
    torch.testing.assert_close(build(losses.RelativeL2Loss)(p[:, :1], y[:, :1]), single)
    # The mean over a batch times its size is the released sum over the batch.
    summed = build(losses.RelativeL2Loss, factor=len(y))(p, y).mean()
    torch.testing.assert_close(summed, relative.sum())


@pytest.mark.parametrize("cls", [losses.RelativeL2Loss, losses.RootMeanSquaredErrorLoss])
def test_gradients(cls: Any) -> None:
    p = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    y[0, 0, 1, 1] = NAN
    assert torch.autograd.gradcheck(lambda p: build(cls)(p, y), (p,))


@pytest.mark.parametrize("cls", [*NUMERIC, losses.BinaryCrossEntropy])
def test_unknown_labels_are_left_out(cls: Any) -> None:
    p, y = torch.randn(2, 1, 4, 4), torch.randint(2, (2, 1, 4, 4)).float()
    y[..., 0] = NAN
    p.requires_grad_()
    got = build(cls)(p, y)
    torch.testing.assert_close(got, build(cls)(p[..., 1:], y[..., 1:]))
    got.sum().backward()
    assert p.grad is not None
    assert p.grad.isfinite().all()
    assert not p.grad[..., 0].any()


@pytest.mark.parametrize("cls", NUMERIC)
def test_exact_prediction_has_finite_gradient(cls: Any) -> None:
    y = torch.randn(2, 1, 4, 4)
    p = y.clone().requires_grad_()
    loss = build(cls)(p, y)
    loss.sum().backward()
    assert not loss.any()
    assert p.grad is not None
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("cls", [*NUMERIC, losses.BinaryCrossEntropy])
def test_all_losses_keep_the_batch_and_refuse_to_broadcast(cls: Any) -> None:
    p, y = torch.rand(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    value = build(cls)(p, y)
    assert value.shape == (5,)
    torch.testing.assert_close(build(cls)(p.flip(0), y.flip(0)), value.flip(0))
    with pytest.raises(ValueError, match="differ in shape"):
        build(cls)(p, y[:, 0])


def test_zero_label_stays_finite() -> None:
    assert build(losses.RelativeL2Loss)(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).isfinite()


def test_supports() -> None:
    kinds = ("classification", "multi-label", "regression", "dense")
    table = {
        losses.CrossEntropy: "1000",
        losses.Focal: "1000",
        losses.BinaryCrossEntropy: "0101",
        losses.SquaredError: "0011",
        losses.RelativeL2Loss: "0011",
    }
    for cls, row in table.items():
        assert "".join(str(int(cls.supports(Target(k, 2)))) for k in kinds) == row  # type: ignore[arg-type]


def test_a_relative_loss_of_standardised_labels_is_that_of_the_labels() -> None:
    """Also where the mean is a million deviations: only the size of a label needs it."""
    p, y = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    for mean in (0.0, -3.0, 1e6):
        offset = torch.tensor([mean, 7.0], dtype=torch.float64).view(2, 1, 1)
        loss = build(losses.RelativeL2Loss)
        loss.unit(offset * 1e-9, torch.full((2, 1, 1), 1e-9, dtype=torch.float64))
        true = y.double() + offset
        wanted = ((p - y).flatten(2).norm(dim=2) / true.flatten(2).norm(dim=2)).mean(1)
        torch.testing.assert_close(loss(p, y), wanted.float(), rtol=1e-5, atol=0.0)


def test_a_label_of_zeros_is_left_out_of_a_relative_loss() -> None:
    y = torch.randn(2, 2, 4, 4)
    y[0, 0], y[1] = -5.0, -5.0  # 0 in its own unit
    p = (y + 1).requires_grad_()
    loss = build(losses.RelativeL2Loss)
    loss.unit(*(torch.full((2, 1, 1), value, dtype=torch.float64) for value in (0.5, 0.1)))
    found = loss(p, y)
    torch.testing.assert_close(found[0], 4 / (y[0, 1] + 5).norm())
    assert found[1] == 0
    (gradient,) = torch.autograd.grad(found.sum(), p)
    assert gradient.isfinite().all()
    assert not gradient[1].any()
