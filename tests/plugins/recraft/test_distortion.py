"""Feature-label distortion by hand, against scipy and finite differences; chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from xmodal.testing.tiny import random
from xmodal_recraft.align_labels import (
    answers,
    class_chunks,
    conditional_entropy,
    entropy,
    marginal_entropy,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(*sizes: int, answers_: int = 4, scale: float = 3.0) -> list[Tensor]:
    logits = random(sum(sizes), answers_).double() * scale
    return list(logits.softmax(1)[:, None].split(list(sizes)))


# --- entropies ---


def test_two_classes_by_hand() -> None:
    """Means (1/2, 1/2) of four and (1, 0) of one sample: 4/5 ln 2 + 1/5 * 0."""
    first = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]], [[0.5, 0.5]]])
    second = torch.tensor([[[1.0, 0.0]]])
    value = conditional_entropy([first, second])
    assert float(value) == pytest.approx(0.8 * math.log(2), abs=1e-6)
    together = scipy.stats.entropy([3 / 5, 2 / 5])
    assert float(marginal_entropy([first, second])) == pytest.approx(together, abs=1e-6)


@pytest.mark.parametrize("sizes", [(1,), (5,), (3, 7), (1, 1, 9, 4)])
def test_scipy_agrees(sizes: tuple[int, ...]) -> None:
    given = parts(*sizes)
    weights = np.array(sizes) / sum(sizes)
    terms = [scipy.stats.entropy(part.mean(0)[0].numpy()) for part in given]
    assert float(conditional_entropy(given)) == pytest.approx(float(weights @ terms), abs=1e-12)
    mean = torch.cat(given).mean(0)[0].numpy()
    assert float(marginal_entropy(given)) == pytest.approx(scipy.stats.entropy(mean), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_knowing_the_class_never_adds_entropy(seed: int) -> None:
    sizes = [1 + seed % 3, 4, 2 + seed % 5]
    logits = random(sum(sizes), 6, seed=seed).double() * 4
    for kind in ("classification", "dense"):
        given = answers(logits, kind).split(sizes)
        assert float(conditional_entropy(given)) <= float(marginal_entropy(given)) + 1e-7


def test_one_class_and_equal_classes_leave_no_information() -> None:
    one = parts(6)
    assert torch.equal(conditional_entropy(one), marginal_entropy(one))
    twice = [one[0], one[0].clone()]
    assert torch.allclose(conditional_entropy(twice), marginal_entropy(twice))


def test_classes_that_tell_everything() -> None:
    given = [torch.eye(3)[c].expand(c + 2, 1, 3) for c in range(3)]
    assert float(conditional_entropy(given)) == pytest.approx(0, abs=1e-7)
    shares = np.array([2, 3, 4]) / 9
    assert float(marginal_entropy(given)) == pytest.approx(scipy.stats.entropy(shares), abs=1e-6)


@pytest.mark.parametrize("subtract", [False, True])
def test_gradient_against_finite_differences(subtract: bool) -> None:
    logits = random(7, 3).double()

    def value(logits: Tensor) -> Tensor:
        given = logits.softmax(1)[:, None].split([2, 4, 1])
        return conditional_entropy(given) - (marginal_entropy(given) if subtract else 0)

    assert torch.autograd.gradcheck(value, (logits.clone().requires_grad_(),))
    (gradient,) = torch.autograd.grad(value(x := logits.clone().requires_grad_()), x)
    step = 1e-6
    for row in range(7):
        for column in range(3):
            change = torch.zeros_like(logits)
            change[row, column] = step
            slope = (value(logits + change) - value(logits - change)) / (2 * step)
            assert float(gradient[row, column]) == pytest.approx(float(slope), abs=1e-8)


@pytest.mark.parametrize("kind", ["classification", "dense", "multi-label"])
def test_certain_predictions_keep_a_finite_gradient(kind: str) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [-300.0, 300.0, 1.0]]).requires_grad_()
    value = conditional_entropy(answers(logits, kind).split(1))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_yes_no_labels_are_one_question_each() -> None:
    logits = random(5, 2, 3)
    p_BQK = answers(logits, "dense")
    assert p_BQK.shape == (5, 6, 2)
    assert torch.allclose(p_BQK.sum(-1), torch.ones(5, 6))
    by_hand = [
        scipy.stats.entropy([1 - p, p]) for p in torch.sigmoid(logits.flatten(1)).mean(0).tolist()
    ]
    assert float(entropy(p_BQK.mean(0))) == pytest.approx(np.mean(by_hand), abs=1e-6)


# --- chunks ---


def test_chunks_hold_one_class_and_cover_it() -> None:
    classes = torch.tensor([0] * 37 + [1] * 16 + [2] * 3 + [3] * 25)
    chunks = class_chunks(classes, 16, generator())
    found = {c: [k for k in chunks if int(classes[k[0]]) == c] for c in range(4)}
    for c, mine in found.items():
        assert all((classes[chunk] == c).all() for chunk in mine)
    # 37 = 16 + 16 + 5 (dropped), 16, 3 (the only one), 25 = 16 + 9 (at least half).
    assert [sorted(len(k) for k in found[c]) for c in range(4)] == [[16, 16], [16], [3], [9, 16]]
    everything = torch.cat(chunks)
    assert len(everything.unique()) == len(everything) == 32 + 16 + 3 + 25


def test_the_number_of_chunks_is_fixed_and_their_samples_are_not() -> None:
    classes = torch.arange(90) % 3
    drawn = [class_chunks(classes, 8, generator(seed)) for seed in range(5)]
    assert {len(chunks) for chunks in drawn} == {12}
    assert not torch.equal(torch.cat(drawn[0]), torch.cat(drawn[1]))
    again = class_chunks(classes, 8, generator(0))
    assert torch.equal(torch.cat(drawn[0]), torch.cat(again))


def test_classes_are_spread_over_an_epoch() -> None:
    """In every tenth of the list each class is there in proportion, give or take one chunk."""
    classes = torch.tensor([0] * 800 + [1] * 200)
    chunks = class_chunks(classes, 10, generator())
    rare = [int(classes[chunk[0]]) for chunk in chunks]
    counts = [sum(rare[i : i + 10]) for i in range(0, 100, 10)]
    assert all(1 <= count <= 3 for count in counts)


def test_samples_without_a_class_are_in_no_chunk() -> None:
    classes = torch.tensor([-1, 0, 0, -1, 1, 1, 1, -1])
    chunks = class_chunks(classes, 2, generator())
    assert sorted(len(chunk) for chunk in chunks) == [1, 2, 2]
    assert sorted(torch.cat(chunks).tolist()) == [1, 2, 4, 5, 6]
    assert class_chunks(torch.full((4,), -1), 2, generator()) == []
