"""Ranks and hard masks against a plain sort in Python, with k as a number and as a tensor.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xmodal.batch import Selection
from xmodal.ops import gumbel, gumbel_noise, hard_subset, ranks, straight_through


def scores(kind: str, tokens: int = 23) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn_BN = torch.randn(3, tokens, generator=generator)
    return {
        "distinct": drawn_BN,
        "ties": (2 * drawn_BN).round(),
        "equal": torch.zeros(3, tokens),
        "zeros of both signs": torch.where(drawn_BN > 0, 0.0, -0.0),
        "huge": 1e38 * drawn_BN.clamp(-3, 3),
        "half": drawn_BN.half(),
        "bfloat16": drawn_BN.bfloat16(),
        "double": drawn_BN.double(),
        "transposed": torch.randn(tokens, 3, generator=generator).T,
    }[kind]


KINDS = (
    "distinct", "ties", "equal", "zeros of both signs", "huge", "half", "bfloat16", "double",
    "transposed",
)  # fmt: skip


def best_first(row_N: Tensor) -> list[int]:
    """Positions by falling score; Python's sort leaves equal ones in their order."""
    values = row_N.double().tolist()
    return sorted(range(len(values)), key=lambda i: -values[i])


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_places_in_a_stable_sort(kind):
    scores_BN = scores(kind)
    ranks_BN = ranks(scores_BN)
    assert ranks_BN.dtype == torch.int64
    for row_N, rank_N in zip(scores_BN, ranks_BN.tolist(), strict=True):
        order = best_first(row_N)
        assert [rank_N[i] for i in order] == list(range(len(order)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 1, 11, 22, 23])
def test_the_mask_takes_the_first_of_equal_scores(kind, k):
    scores_BN = scores(kind)
    mask_BN = hard_subset(scores_BN, k)
    assert mask_BN.dtype == (torch.float64 if kind == "double" else torch.float32)
    for row_N, mask_N in zip(scores_BN, mask_BN.tolist(), strict=True):
        chosen = set(best_first(row_N)[:k])
        assert mask_N == [float(i in chosen) for i in range(len(mask_N))]
    for dtype in (torch.int64, torch.int32):
        assert torch.equal(hard_subset(scores_BN, torch.tensor(k, dtype=dtype)), mask_BN)


@pytest.mark.parametrize("k", [0, 1, 22, 23])
def test_a_tensor_k_gives_the_same_selection(k):
    soft_BN = torch.rand(3, 23, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ranking_BN, weight_BN = scores("ties"), scores("distinct")
    by_number, by_tensor = (straight_through(soft_BN, n, ranking_BN) for n in (k, torch.tensor(k)))
    assert torch.equal(by_number, by_tensor)
    for mask_BN in (by_number, by_tensor):
        (found_BN,) = torch.autograd.grad((mask_BN * weight_BN).sum(), soft_BN)
        assert torch.equal(found_BN, weight_BN)
    chosen = Selection(by_tensor, ranking_BN, torch.tensor(k)).indices_BK
    assert chosen.tolist() == [sorted(best_first(row_N)[:k]) for row_N in ranking_BN]


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (24, "cannot choose 24"),
        (-1, "cannot choose -1"),
        (torch.tensor(2.5), "0-d tensor of integers"),
        (torch.tensor([2]), "0-d tensor of integers"),
        (torch.tensor(True), "0-d tensor of integers"),
        (torch.empty((), dtype=torch.int64, device="meta"), "k is on meta, but the scores are on"),
    ],
)
def test_an_impossible_k_is_refused(k, words):
    with pytest.raises(ValueError, match=words):
        hard_subset(scores("distinct"), k)


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_needs_no_tensor_to_be_like(dtype, exponential):
    drawn = gumbel((2, 5), dtype, torch.Generator().manual_seed(3), exponential)
    like = torch.zeros(2, 5, dtype=dtype)
    assert drawn.dtype == dtype
    same = gumbel_noise(like, torch.Generator().manual_seed(3), exponential)
    assert torch.equal(drawn, same)
