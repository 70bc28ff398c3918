"""The schedule by distance: curves worked by hand, what it measures and when, and its state.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from xmodal.batch import SOURCE, Points, Progress, Tokens
from xmodal.interfaces import Distance, Settings
from xmodal.settings import Use
from xmodal.testing.tiny import WIDTH, TinySelector, build, tiny_context, tiny_sample
from xmodal_beyond.by_distance import ByDistance, k_at, monotone
from xmodal_pare.patch_replace import PatchReplace
from xmodal_pare.schedulers import Linear

N = 24


class MeanGap(Distance):
    """The squared distance of the means."""

    fitted: Tensor

    def fit(self, source: Points) -> None:
        self.fitted = source.x_ND.mean(0)

    def __call__(self, target: Points) -> Tensor:
        return (target.x_ND.mean(0) - self.fitted).square().sum()


class Broken(MeanGap):
    """Never a number."""

    def __call__(self, target: Points) -> Tensor:
        return torch.tensor(float("nan"))


def schedule(
    notes: list[str] | None = None, distance: type[Distance] = MeanGap, **given: Any
) -> Any:
    chosen: Any = Use("mean-gap", distance, Settings())
    config = ByDistance.Config(distance=chosen, **{"start": N, "points": 4, "values": 5, **given})
    context = tiny_context()
    if notes is not None:
        object.__setattr__(context, "note", notes.append)
    return ByDistance(config, context)


def at(epoch: int = 0, epochs: int = 8, step: int = 0, steps: int = 4, stage: int = 0) -> Progress:
    return Progress(stage, epoch, epochs, step, steps)


def look(
    scheduler: Any, gap: Callable[[float], float], point: Progress, batch: int = 4
) -> list[int]:
    """Show a batch whose mixed tokens lie ``gap(k)`` from the source; give the k it asked for."""
    asked: list[int] = []

    def mix(k: int) -> Tokens:
        asked.append(k)
        x_BND = torch.zeros(batch, N, WIDTH)
        x_BND[..., 0] = gap(k)
        return Tokens(x_BND, (4, 6))

    source = Tokens(torch.zeros(batch, N, WIDTH), (4, 6))
    scheduler.observe(mix, source, source, point)
    return asked


# --- the curve -----------------------------------------------------------------------------------


def test_the_monotone_curve_by_hand():
    # 3 and 1 are out of order as k rises from 6 to 12; they become their mean.
    fitted = monotone([24, 18, 12, 6, 0], [0.0, 1.0, 3.0, 1.0, 5.0])
    np.testing.assert_allclose(fitted, [0, 1, 2, 2, 5])
    np.testing.assert_allclose(monotone([2, 1, 1, 0], [0.0, 1.0, 3.0, 4.0]), [0, 2, 2, 4])


def test_k_by_hand():
    counts, distances = np.array([24.0, 18, 12, 6, 0]), [0.0, 1.0, 2.0, 2.0, 4.0]
    expected = {0.0: 24, 0.125: 21, 0.25: 18, 0.5: 12, 0.75: 3, 1.0: 0}
    assert {t: k_at(t, counts, distances) for t in expected} == pytest.approx(expected)
    # No distance at all: a straight line.
    assert k_at(0.25, counts, [1.0] * 5) == 18
    # A flat start is not skipped before its time.
    assert k_at(0.0, counts, [0.0, 0.0, 0.0, 1.0, 2.0]) == 24
    assert k_at(0.25, counts, [0.0, 0.0, 0.0, 1.0, 2.0]) == 9


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_k_falls_and_every_epoch_moves_the_same_distance(values, epochs):
    counts = np.linspace(100, 0, len(values))
    distances = monotone([int(k) for k in counts], values).tolist()
    ks = [k_at(epoch / epochs, counts, distances) for epoch in range(epochs)]
    assert ks == sorted(ks, reverse=True)
    assert all(0 <= k <= 100 for k in ks)
    if distances[-1] - distances[0] > 1e-6:
        reached = np.interp(ks, counts[::-1], distances[::-1])
        wanted = distances[0] + np.arange(epochs) / epochs * (distances[-1] - distances[0])
        np.testing.assert_allclose(reached, wanted, atol=1e-6)


# --- observing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{}, {"stop": 6}, {"unit": "share", "start": 0.5}, {"per": "step"}]
)
def test_before_the_first_look_it_is_linear(given):
    mine, linear = schedule(**given), build(Linear, {"start": N, **given})
    for epoch in range(7):
        for step in range(3):
            point = at(epoch, 7, step, 3)
            # 0.5·24·(1 − 5/12) and the like may be rounded down by the linear one.
            assert abs(mine(point, N) - linear(point, N)) <= (given != {})
    if not given:
        assert [mine(at(e), N) for e in range(8)] == [24, 21, 18, 15, 12, 9, 6, 3]


def test_an_even_distance_gives_the_linear_schedule():
    mine = schedule()
    asked = look(mine, lambda k: 2 * (N - k) / N, at())
    assert asked == [24, 18, 12, 6, 0]
    assert [mine(at(e), N) for e in range(8)] == [24, 21, 18, 15, 12, 9, 6, 3]


@pytest.mark.parametrize(("tokens", "epochs"), [(25, 5), (6, 12), (25, 60), (49, 60)])
def test_an_even_distance_gives_the_linear_schedule_on_every_grid(tokens, epochs):
    """Distances are measured at whole numbers of tokens, which are not evenly spaced."""
    mine, linear = build(ByDistance, {"points": 4}), build(Linear, {})
    x_BND = torch.zeros(4, tokens, WIDTH)

    def mix(k: int) -> Tokens:
        mixed_BND = x_BND.clone()
        mixed_BND[..., 0] = tokens - k
        return Tokens(mixed_BND, (tokens,))

    source = Tokens(x_BND, (tokens,))
    mine.observe(mix, source, source, at(0, epochs))
    assert mine.distance_G[0] == 0
    found = [mine(at(e, epochs), tokens) for e in range(epochs)]
    assert found == [linear(at(e, epochs), tokens) for e in range(epochs)]


def test_a_curved_distance_by_hand():
    """δ = 1 − (k/N)²: by t = 7/16 the mixture is as far as 18 replaced tokens are."""
    mine = schedule()
    look(mine, lambda k: 1 - (k / N) ** 2, at())
    torch.testing.assert_close(mine.distance_G, torch.tensor([0, 7 / 16, 12 / 16, 15 / 16, 1]))
    assert [mine(at(e, 16), N) for e in (0, 7, 12, 15)] == [24, 18, 12, 6]
    squares = schedule(power=1)
    look(squares, lambda k: 1 - k / N, at())
    assert [squares(at(e, 16), N) for e in (0, 1, 4, 9)] == [24, 18, 12, 6]


def test_small_batches_are_collected_over_steps():
    mine = schedule(points=4)
    for step in range(3):
        assert look(mine, lambda k: N - k, at(0, step=step), batch=1)
        assert float(mine.distance_G[0]) == -1
    # The fourth sample completes it; of a larger last batch only what is missing counts.
    assert look(mine, lambda k: N - k, at(0, step=3), batch=3)
    assert mine.distance_G.tolist() == [0, 6, 12, 18, 24]


def test_it_measures_once_an_epoch_or_every_so_many_steps():
    once, often = schedule(), schedule(every=2)
    looked = [
        [bool(look(s, lambda k: N - k, at(e, step=i))) for e in range(2) for i in range(4)]
        for s in (once, often)
    ]
    assert looked[0] == [True, False, False, False] * 2
    assert looked[1] == [True, False, True, False] * 2
    # Another stage starts anew, in its own steps.
    assert look(once, lambda k: N - k, at(0, step=1, stage=1))


def test_a_measurement_can_go_on_in_the_next_epoch():
    mine = schedule(points=10)
    for epoch, filled in ((0, 4), (1, 8), (2, 0)):
        assert look(mine, lambda k: N - k, at(epoch, step=3))
        assert mine.place_3.tolist()[2] == filled
    assert mine.distance_G.tolist() == [0, 6, 12, 18, 24]
    assert not look(mine, lambda k: N - k, at(2, step=3))


def test_a_distance_that_does_not_fall_leaves_a_line_and_a_note():
    notes: list[str] = []
    mine = schedule(notes)
    look(mine, lambda k: k, at())
    assert [mine(at(e), N) for e in range(8)] == [24, 21, 18, 15, 12, 9, 6, 3]
    assert any("does not fall" in line for line in notes)


def test_a_distance_that_is_no_number_changes_nothing():
    notes: list[str] = []
    mine = schedule(notes, distance=Broken)
    look(mine, lambda k: N - k, at())
    assert mine.distance_G.tolist() == [-1] * 5
    assert any("not finite" in line for line in notes)


def test_few_tokens_and_clipped_starts():
    notes: list[str] = []
    mine = schedule(notes, start=3000, values=9)
    assert mine(at(0), 3) == 3
    assert any("3000" in line for line in notes)
    assert mine(at(0), 0) == 0
    asked = look(mine, lambda k: N - k, at())
    assert asked == [24, 21, 18, 15, 12, 9, 6, 3, 0]
    shares = schedule(unit="share", start=0.1, values=9)
    assert look(shares, lambda k: N - k, at()) == [2, 1, 0]
    assert [shares(at(e), N) for e in (0, 7)] == [2, 0]


# --- inside a mixer ------------------------------------------------------------------------------


def mixer(scheduler: Any) -> PatchReplace:
    parts = {"selector": build(TinySelector), "scheduler": scheduler}
    return PatchReplace(PatchReplace.Config(), tiny_context(components=parts))


def test_the_mixer_saves_its_state():
    one, other = mixer(schedule(points=2)), mixer(schedule(points=2))
    one(tiny_sample(), tiny_sample(SOURCE), at(0))
    state = one.state_dict()
    names = {"_scheduler.place_3", "_scheduler.distance_G", "_scheduler.mixed_GPD"}
    assert names <= set(state)
    assert float(state["_scheduler.distance_G"][-1]) > 0
    other.load_state_dict(state)
    assert [one._scheduler(at(e), N) for e in range(8)] == [
        other._scheduler(at(e), N) for e in range(8)
    ]


def test_evaluation_does_not_look():
    one = mixer(schedule(points=2)).eval()
    one(tiny_sample(), tiny_sample(SOURCE), at(0))
    assert one._scheduler.place_3.tolist() == [-1, 0, 0]


def test_all_replaced_is_at_distance_zero():
    """With every token replaced the mixture is the source, whatever the selector says."""
    one = mixer(schedule(points=3))
    one(tiny_sample(), tiny_sample(SOURCE), at(0))
    distances = one._scheduler.distance_G
    assert float(distances[0]) == pytest.approx(0, abs=1e-6)
    assert float(distances[-1]) > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"start": 0}, "below start"),
        ({"start": 5, "stop": 5}, "below start"),
        ({"start": 0.5}, "unit: share"),
        ({"unit": "share", "start": 3}, "start is 3"),
        ({"points": 1}, "points"),
        ({"values": 1}, "values"),
        ({"every": 0}, "every"),
        ({"power": 0}, "power"),
        ({"distance": "no-such-distance"}, "no-such-distance"),
    ],
)
def test_wrong_settings_say_what_is_wrong(wrong, words):
    with pytest.raises(ValidationError, match=words):
        ByDistance.Config(**wrong)
