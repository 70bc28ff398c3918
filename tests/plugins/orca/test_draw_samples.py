"""Draws of samples respect the cap, cover a set in the end and need no state."""

from __future__ import annotations

import torch

from xmodal.alignment import drawn as draw


def test_draws_respect_the_cap_and_come_from_the_class() -> None:
    index = torch.arange(100, 300)
    drawn = draw(index, 128, 0, "align", 0, 0, 3)
    assert len(drawn) == len(set(drawn.tolist())) == 128
    assert set(drawn.tolist()) <= set(index.tolist())
    assert torch.equal(draw(index, 200, 0, "any"), index)


def test_draws_depend_on_their_name_alone() -> None:
    index = torch.arange(200)
    torch.manual_seed(1)
    one = draw(index, 50, 7, "align", 0, 4, 2)
    torch.manual_seed(2)
    draw(index, 50, 7, "align", 0, 3, 2)
    assert torch.equal(one, draw(index, 50, 7, "align", 0, 4, 2))
    for other in ((8, "align", 0, 4, 2), (7, "align", 1, 4, 2), (7, "align", 0, 5, 2)):
        assert not torch.equal(one, draw(index, 50, *other))


def test_all_samples_of_a_large_class_come_up() -> None:
    index = torch.arange(300)
    seen = {i for epoch in range(20) for i in draw(index, 60, 0, "align", 0, epoch, 0).tolist()}
    assert len(seen) > 290
