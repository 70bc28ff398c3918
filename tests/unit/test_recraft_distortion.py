"""Feature-label distortion by hand, against scipy and finite differences; classes and chunks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from xmodal.testing.tiny import random
from xmodal_recraft import target_classes as classes_module
from xmodal_recraft.distortion import answers, conditional_entropy, entropy, marginal_entropy
from xmodal_recraft.target_classes import class_chunks, cluster, target_classes


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


# --- classes of other labels ---


def test_classes_are_the_labels() -> None:
    data = TensorDataset(random(5, 2), torch.tensor([3, 1, 1, 0, 2]))
    assert target_classes(data, "classification", 10, 0).tolist() == [3, 1, 1, 0, 2]


def blobs(count: int = 60, shape: tuple[int, ...] = (2, 4)) -> tuple[TensorDataset, Tensor]:
    truth = torch.arange(count) % 3
    y = 10.0 * truth.view(-1, *[1] * len(shape)) + 0.1 * random(count, *shape)
    return TensorDataset(random(count, 1), y), truth


def same_partition(one: Tensor, other: Tensor) -> bool:
    return len({(int(a), int(b)) for a, b in zip(one, other, strict=True)}) == len(one.unique())


@pytest.mark.parametrize("most", [8192, 16])
def test_clusters_are_found_at_once_and_in_a_stream(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes_module, "MOST", most)
    data, truth = blobs()
    found = cluster(data, 3, 0)
    assert found.dtype == torch.int64
    assert len(found.unique()) == 3
    assert same_partition(found, truth)
    assert torch.equal(found, cluster(data, 3, 0))


class Counting(Dataset[Any]):
    """A data set that is read sample by sample and cannot be held: it counts what is asked."""

    def __init__(self, data: TensorDataset) -> None:
        self.data, self.read = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        return self.data[index]


def test_wide_labels_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory follows the width of a label: here 8 numbers, 20 labels at once."""
    monkeypatch.setattr(classes_module, "AT_ONCE", 20 * 4 * 8)
    sizes: list[int] = []
    rows = classes_module._rows
    monkeypatch.setattr(classes_module, "_rows", lambda y: sizes.append(len(y)) or rows(y))
    data, truth = blobs()
    counting = Counting(data)
    found = cluster(counting, 3, 0)
    assert same_partition(found, truth)
    assert max(sizes) == 20
    assert counting.read <= 1 + 20 + 2 * 60


def test_unknown_numbers_and_repeated_labels() -> None:
    y = torch.tensor([[0.0, float("nan")], [5.0, 1.0], [0.0, float("nan")], [5.0, 1.0]])
    found = cluster(TensorDataset(random(4, 1), y), 10, 0)
    assert found[0] == found[2] != found[1] == found[3]


def test_a_single_sample_is_one_cluster() -> None:
    assert cluster(TensorDataset(random(1, 1), random(1, 3)), 10, 0).tolist() == [0]
