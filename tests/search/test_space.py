"""Candidates and rungs: the usual first, each once, the same for a seed, within what bodies read."""

from __future__ import annotations

from itertools import islice

import pytest

from xmodal.facts import Target, TaskFacts
from xmodal.search.space import RIVALS, cheap, fine_tuning, rungs, training

CLASSES = Target("classification", 3)


def facts(*shape: int) -> TaskFacts:
    return TaskFacts("mine", shape, CLASSES, {"train": 700, "validation": 150, "test": 150})


@pytest.mark.parametrize("shape", [(20,), (2, 46), (3, 96, 128)])
def test_ways_to_fine_tune_begin_with_the_usual_one_and_never_repeat(shape: tuple[int, ...]) -> None:
    found = [one.name for one in fine_tuning(facts(*shape), 0)]
    other = [one.name for one in fine_tuning(facts(*shape), 1)]
    assert found[0].startswith("nft lr 0.0003, ")
    assert found[0] == other[0]
    assert len(set(found)) == len(found) > 20
    assert sorted(found) == sorted(other)
    assert found != other
    assert found == [one.name for one in fine_tuning(facts(*shape), 0)]


@pytest.mark.parametrize(("shape", "tokens"), [((2, 46), {46, 32, 16}), ((1, 900), {64, 32, 16})])
def test_series_are_cut_into_few_tokens(shape: tuple[int, ...], tokens: set[int]) -> None:
    found = set()
    for one in fine_tuning(facts(*shape), 0):
        kernel = one.settings["embedder"]["kernel"]
        found.add(-(-shape[1] // kernel))
    assert max(found) <= 64
    assert found <= {-(-shape[1] // -(-shape[1] // number)) for number in tokens}


@pytest.mark.parametrize(("shape", "patches"), [((3, 224, 224), {32, 16}), ((1, 96, 201), {29, 15})])
def test_images_are_cut_into_7_or_14_patches_a_side(
    shape: tuple[int, ...], patches: set[int]
) -> None:
    found = {one.settings["embedder"]["patch"] for one in islice(fine_tuning(facts(*shape), 0), 24)}
    assert found == patches


def test_cost_counts_views_layers_and_tokens() -> None:
    costs = {one.name: one.cost for one in fine_tuning(facts(20), 0)}
    assert costs["nft lr 0.001, 2 layers"] == 40
    assert costs["pare lr 0.001, 6 layers"] == 240


def test_cheap_answers_are_those_of_the_form() -> None:
    names = [one.name for one in cheap(facts(20), ["methods/baseline"])]
    assert names == ["baseline", *RIVALS["row"]]
    assert [one.name for one in cheap(facts(1, 8, 8), ["methods/baseline"])] == ["baseline"]


@pytest.mark.parametrize(
    ("samples", "totals"),
    [(20, [24, 69, 200]), (800, [85, 252, 750]), (4607, [444, 1335, 4000])],
)
def test_each_rung_takes_three_times_the_steps_of_the_one_below(
    samples: int, totals: list[int]
) -> None:
    found = [rung.total for rung in rungs(samples)]
    for mine, expected in zip(found, totals, strict=True):
        assert mine == pytest.approx(expected, rel=0.15)
    whole = -(-samples // 32)
    assert all(rung.steps <= whole for rung in rungs(samples))


def test_a_last_fit_can_end_earlier_with_a_whole_schedule() -> None:
    rung = rungs(800)[-1]
    settings = training(rung, 7)
    assert settings["stages"]["finetune"] == {"epochs": 7, "max_steps": rung.steps}
    assert settings["training.schedule"]["warmup_epochs"] == 0.7
