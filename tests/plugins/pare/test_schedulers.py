"""The schedules against the published values, their formulas, and the edges of their settings."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from xmodal.batch import Progress
from xmodal.interfaces import BackboneFacts, Context, Facts, Target, TaskFacts
from xmodal_beyond.by_distance import ByDistance
from xmodal_pare.schedulers import (
    Constant,
    Exponential,
    Linear,
    LinearMean,
    Piecewise,
    RandomK,
)

FACTS = Facts(
    TaskFacts("toy", (1, 4, 4), Target("classification", 2), {"train": 8}),
    BackboneFacts("tiny", "image", 8, 8),
)


def build(kind, notes: list[str] | None = None, seed: int = 0, **config):
    note = (lambda line: None) if notes is None else notes.append
    place = Context(FACTS, torch.Generator().manual_seed(seed), store=None, note=note)
    return kind(kind.Config(**config), place)


def at(epoch: int, epochs: int, step: int = 0, steps: int = 1) -> Progress:
    return Progress(0, epoch, epochs, step, steps)


# What the released code computes: begin, decrement, tokens, epochs, epochs with noise, then k in
# epochs 0 and 1, in the last with noise and the first without, half-way and in the last.
RELEASED = {
    "cifar100": (2000, 1500, 3136, 60, 10, [2000, 1975, 1775, 1750, 1250, 525]),
    "fsd": (2000, 1500, 3136, 100, 10, [2000, 1985, 1865, 1850, 1250, 515]),
    "darcy": (1000, 500, 3136, 100, 10, [1000, 995, 955, 950, 750, 505]),
    "cosmic": (500, 500, 3136, 60, 10, [500, 491, 425, 416, 250, 8]),
    "ecg": (32, 32, 50, 15, 5, [32, 29, 23, 21, 17, 2]),
    "satellite": (32, 32, 46, 60, 5, [32, 31, 29, 29, 16, 0]),
    "deepsea": (32, 32, 500, 25, 5, [32, 30, 26, 25, 16, 1]),
}


@pytest.mark.parametrize("task", RELEASED)
def test_linear_gives_the_released_values(task):
    begin, decrement, tokens, epochs, switch, expected = RELEASED[task]
    schedule = build(Linear, start=begin, stop=begin - decrement)
    shown = [0, 1, switch - 1, switch, epochs // 2, epochs - 1]
    assert [schedule(at(epoch, epochs), tokens) for epoch in shown] == expected


def test_linear_is_algorithm_1():
    schedule = build(Linear, start=3136, stop=0)
    for epochs in (1, 7, 60, 100):
        for epoch in range(epochs):
            expected = int(3136 - 3136 * (epoch / epochs))
            assert schedule(at(epoch, epochs), 3136) == expected
    assert build(Linear)(at(0, 60), 3136) == 3000


def test_linear_can_move_every_step():
    schedule = build(Linear, start=100, stop=0, per="step")
    assert [schedule(at(1, 4, step, 5), 200) for step in range(5)] == [75, 70, 65, 60, 55]
    assert schedule(at(1, 4, 0, 0), 200) == 75
    assert build(Linear, start=100, stop=0)(at(1, 4, 4, 5), 200) == 75


def test_a_start_above_n_becomes_n_and_is_noted_once():
    notes: list[str] = []
    schedule = build(Linear, notes, start=3000, stop=0)
    assert [schedule(at(epoch, 4), 196) for epoch in range(4)] == [196, 147, 98, 49]
    assert len(notes) == 1
    assert "3000" in notes[0]
    assert "196" in notes[0]


@pytest.mark.parametrize("epochs", [60, 100])
def test_counts_of_a_grid_are_themselves_on_that_grid(epochs):
    """Every epoch, truncated as the released code truncates."""
    schedule = build(Linear, start=2000, stop=500, of=3136)
    released = [int(2000 - 1500 * (epoch / epochs)) for epoch in range(epochs)]
    assert [schedule(at(epoch, epochs), 3136) for epoch in range(epochs)] == released


@pytest.mark.parametrize("tokens", [1, 2, 6, 25, 30, 36, 196, 784, 4096])
def test_counts_of_a_grid_change_in_proportion(tokens):
    notes: list[str] = []
    schedule = build(Linear, notes, start=2000, stop=500, of=3136)
    for epoch in range(60):
        exact = Fraction(2000 * 60 - 1500 * epoch, 60) * Fraction(tokens, 3136)
        assert schedule(at(epoch, 60), tokens) == math.floor(exact)
    assert notes == []


CLIPPED = [
    (Linear, {"start": 2000, "stop": 500}),
    (Linear, {"start": 1000, "stop": 26}),
    (Linear, {"start": 1000, "stop": 25}),
    (Exponential, {"start": 2000, "stop": 500}),
    (Piecewise, {"start": 2000, "stop": 500}),
    (Piecewise, {"steps": [[0, 2000], [0.5, 500]]}),
    (LinearMean, {"start": 2000, "stop": 500}),
    (RandomK, {"start": 2000, "stop": 500}),
    (Constant, {}),
    (ByDistance, {"start": 2000, "stop": 500}),
]


@pytest.mark.parametrize(("kind", "settings"), CLIPPED)
def test_counts_that_would_all_be_clipped_are_refused(kind, settings):
    facts = replace(FACTS, grid=(5, 5))
    (problem,) = kind.problems(kind.Config(**settings), facts)
    assert "there are 25 tokens" in problem
    assert "unit: share" in problem
    assert not list(kind.problems(kind.Config(**settings), replace(FACTS, grid=(56, 56))))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Linear, {"start": 2000, "stop": 500, "of": 3136}),
        (Linear, {"start": 0.64, "stop": 0.16, "unit": "share"}),
        (Linear, {}),
        (Linear, {"start": 1000, "stop": 24}),
        (Linear, {"start": 25, "stop": 25}),
        (Constant, {"value": 25}),
        (Constant, {"value": 1, "unit": "share"}),
    ],
)
def test_what_can_hold_the_target_is_not_refused(kind, settings):
    assert not list(kind.problems(kind.Config(**settings), replace(FACTS, grid=(5, 5))))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"unit": "share", "start": 0.5, "of": 100}, "leave it out"),
        ({"start": 4000, "of": 3136}, "more than the 3136 tokens"),
        ({"of": 0}, "greater than or equal to 1"),
    ],
)
def test_what_counts_are_of_is_checked(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        Linear.Config(**settings)


def test_shares_count_in_tokens():
    notes: list[str] = []
    schedule = build(Linear, notes, start=0.58, stop=0.29, unit="share")
    assert schedule(at(0, 10), 100) == 58
    assert build(Constant, value=0.29, unit="share")(at(0, 1), 100) == 29
    assert build(Constant, value=1, unit="share")(at(0, 1), 7) == 7
    assert notes == []


def test_piecewise_equal_pieces():
    schedule = build(Piecewise, start=3000, stop=0)
    values = [schedule(at(epoch, 8), 3136) for epoch in range(8)]
    assert values == [3000, 3000, 2250, 2250, 1500, 1500, 750, 750]
    ten = build(Piecewise, start=100, stop=0, pieces=10)
    assert [ten(at(epoch, 10), 100) for epoch in range(10)] == list(range(100, 0, -10))


def test_piecewise_milestones():
    schedule = build(Piecewise, steps=[[0.0, 3000], [0.5, 1000], [0.9, 0]])
    values = [schedule(at(epoch, 10), 2000) for epoch in range(10)]
    assert values == [2000] * 5 + [1000] * 4 + [0]
    shares = build(Piecewise, unit="share", steps=[[0, 0.5], [0.5, 0.25]])
    assert [shares(at(epoch, 2), 16) for epoch in range(2)] == [8, 4]


def test_exponential_formula():
    schedule = build(Exponential, start=1000, stop=100, rate=3)
    for epoch in range(10):
        assert schedule(at(epoch, 10), 3136) == int(100 + 900 * math.exp(-0.3 * epoch))


def test_constant():
    assert {build(Constant, value=40)(at(epoch, 9), 64) for epoch in range(9)} == {40}


@pytest.mark.parametrize("ends", [{}, {"start": 7, "stop": 3}, {"unit": "share", "start": 0.9}])
@pytest.mark.parametrize(("tokens", "epochs"), [(3136, 60), (25, 5), (6, 4), (6, 12)])
def test_the_mean_is_that_of_the_gradual_schedule(ends, tokens, epochs):
    linear, fixed = build(Linear, **ends), build(LinearMean, **ends)
    gradual = [linear(at(epoch, epochs), tokens) for epoch in range(epochs)]
    constant = {fixed(at(epoch, epochs), tokens) for epoch in range(epochs)}
    assert constant == {round(sum(gradual) / epochs)}


def test_random_k_has_the_values_of_the_gradual_schedule_and_repeats_from_its_state():
    gradual = [build(Linear, start=7, stop=3)(at(epoch, 4), 100) for epoch in range(4)]
    assert gradual == [7, 6, 5, 4]
    schedule = build(RandomK, start=7, stop=3)
    values = [schedule(at(0, 4), 100) for _ in range(400)]
    assert set(values) == set(gradual)
    # 400 draws of four values: each about 100 times (standard deviation 9).
    assert all(60 < values.count(value) < 140 for value in gradual)
    again = build(RandomK, start=7, stop=3)
    assert values == [again(at(0, 4), 100) for _ in range(400)]
    assert build(RandomK)(at(0, 1), 10) == 10


@given(
    kind=st.sampled_from([Linear, Exponential, Piecewise]),
    start=st.integers(0, 5000),
    stop=st.integers(0, 5000),
    tokens=st.integers(1, 4000),
    epochs=st.integers(1, 30),
    per=st.sampled_from(["epoch", "step"]),
)
@settings(max_examples=100, deadline=None)
def test_k_stays_within_the_tokens_and_is_monotone(kind, start, stop, tokens, epochs, per):
    schedule = build(kind, start=start, stop=stop, per=per)
    values = [schedule(at(e, epochs, s, 3), tokens) for e in range(epochs) for s in range(3)]
    assert all(isinstance(k, int) and 0 <= k <= tokens for k in values)
    assert values in (sorted(values), sorted(values, reverse=True))


@pytest.mark.parametrize(
    ("kind", "wrong", "words"),
    [
        (Linear, {"start": -1}, "start"),
        (Linear, {"start": 0.5}, "unit: share"),
        (Linear, {"unit": "share"}, "start is 3000"),
        (Linear, {"begin": 3}, "begin"),
        (Constant, {"unit": "share", "value": 1.5}, "value is 1.5"),
        (RandomK, {"low": 5}, "low"),
        (Piecewise, {"steps": []}, "must begin at 0"),
        (Piecewise, {"steps": [[0.1, 5]]}, "must begin at 0"),
        (Piecewise, {"steps": [[0, 5], [0.5, 4], [0.5, 3]]}, "increase"),
        (Piecewise, {"steps": [[0, 5], [1, 4]]}, "below 1"),
        (Piecewise, {"steps": [[0, -5]]}, "negative"),
        (Piecewise, {"steps": [[0, 0.5]]}, "unit: share"),
        (Piecewise, {"steps": [[0, 5]], "start": 7}, "not both"),
    ],
)
def test_wrong_settings_say_what_is_wrong(kind, wrong, words):
    with pytest.raises(ValidationError, match=words):
        kind.Config(**wrong)
