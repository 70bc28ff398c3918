"""Exact symmetries: groups, copies for models that are fitted once, moves in every pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, TensorDataset

from xmodal.data import loader
from xmodal.data.augment import (
    COPIES,
    Augmented,
    Copies,
    Symmetric,
    Symmetry,
    for_fit,
    in_pass,
    shifted,
    turned,
)


def both(x: Tensor, y: Tensor, element: int) -> tuple[Tensor, Tensor]:
    return shifted(x, element), shifted(y, element)


def square(x: Tensor, y: Tensor, element: int) -> tuple[Tensor, Tensor]:
    return turned(x, element), turned(y, element)


RING = Symmetry("shifts", 20, both)
SQUARE = Symmetry("the square", 8, square)
X = torch.arange(6.0 * 20).view(6, 1, 20)
PLAIN = TensorDataset(X, 1000 + X)


def test_the_eight_moves_of_a_square_are_a_group() -> None:
    field = torch.rand(2, 5, 5)
    moved = [turned(field, element) for element in range(8)]
    assert torch.equal(moved[0], field)
    for place, one in enumerate(moved):
        assert not any(torch.equal(one, other) for other in moved[:place])
        # Two moves in a row are one of the eight, and for each there is one that undoes it.
        products = [turned(one, element) for element in range(8)]
        assert all(any(torch.equal(p, m) for m in moved) for p in products)
        assert sum(torch.equal(p, field) for p in products) == 1
    corner = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert turned(corner, 1).tolist() == [[2, 4], [1, 3]]
    assert turned(corner, 4).tolist() == [[2, 1], [4, 3]]


def test_shifts_go_around_the_ring() -> None:
    line = torch.arange(5.0)
    assert shifted(line, 2).tolist() == [3, 4, 0, 1, 2]
    assert torch.equal(shifted(shifted(line, 2), 3), line)


def test_a_small_group_is_taken_as_a_whole() -> None:
    fields = torch.rand(3, 1, 4, 4)
    data = Symmetric(TensorDataset(fields, -fields), SQUARE, seed=0)
    copies = for_fit(data)
    assert isinstance(copies, Copies)
    assert loader.count(copies) == 24
    for copy in range(8):
        for place in range(3):
            x, y = copies[3 * copy + place]
            assert torch.equal(x, turned(fields[place], copy))
            assert torch.equal(y, -x)


def test_of_a_larger_group_each_sample_has_moves_of_its_own() -> None:
    copies = Copies(Symmetric(PLAIN, RING, seed=1))
    assert len(copies) == COPIES * 6
    elements = [[copies.element(copy, place) for copy in range(COPIES)] for place in range(6)]
    for own in elements:
        assert own[0] == 0
        assert len(set(own)) == COPIES
        assert set(own) <= set(range(20))
    assert len({tuple(own) for own in elements}) == 6
    again = Copies(Symmetric(PLAIN, RING, seed=1))
    other = Copies(Symmetric(PLAIN, RING, seed=2))
    assert all(torch.equal(copies[n][0], again[n][0]) for n in range(48))
    assert any(not torch.equal(copies[n][0], other[n][0]) for n in range(48))
    x, y = copies[6 * 3 + 2]
    assert torch.equal(x, shifted(X[2], elements[2][3]))
    assert torch.equal(y - 1000, x)


def test_a_pass_moves_every_sample_with_its_label() -> None:
    data = Symmetric(PLAIN, RING, seed=0)
    one, same, other = (in_pass(data, seed) for seed in (5, 5, 6))
    moves = []
    for n in range(6):
        x, y = one[n]
        assert torch.equal(y - 1000, x)
        assert torch.equal(x.sort(-1).values, X[n])
        assert torch.equal(x, same[n][0])
        moves.append(int(x.argmin()))
    assert moves != [int(other[n][0].argmin()) for n in range(6)]
    assert len(set(moves)) > 1
    # Everything but training reads samples as they are.
    assert torch.equal(data[3][0], X[3])
    assert torch.equal(loader.labels(data), 1000 + X)
    assert for_fit(PLAIN) is PLAIN


def test_every_element_is_drawn_about_as_often() -> None:
    field = torch.arange(16.0).view(1, 1, 4, 4).expand(800, -1, -1, -1)
    now = in_pass(Symmetric(TensorDataset(field, field), SQUARE, 0), 3)
    moved = [turned(field[0], element) for element in range(8)]
    drawn = [next(e for e in range(8) if torch.equal(now[n][0], moved[e])) for n in range(800)]
    counts = torch.bincount(torch.tensor(drawn), minlength=8)
    assert counts.min() > 60
    assert counts.max() < 140


def test_samples_that_change_by_themselves_do_so_too() -> None:
    def louder(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return x * (1 + torch.rand((), generator=generator)), y

    data = Symmetric(ConcatDataset([Augmented(PLAIN, louder)]), RING, seed=0)
    x, y = in_pass(data, 7)[4]
    factor = x.sum() / X[4].sum()
    assert 1 < factor < 2
    torch.testing.assert_close(x / factor, y - 1000)


@pytest.mark.parametrize("size", [1, 8])
def test_element_0_is_the_sample_itself(size: int) -> None:
    def wrong(x: Tensor, y: Tensor, element: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("asked")

    x, y = Symmetry("none", size, wrong)(X[0], X[1], 0)
    assert x.data_ptr() == X[0].data_ptr()
    assert torch.equal(y, X[1])
