"""Spaces, answers and rungs: the usual first, each once, the same for a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xmodal import plugins
from xmodal.data.store import Store
from xmodal.engine.plan import compose_plan
from xmodal.errors import RecipeError, UsageError
from xmodal.recipe.lookup import all_presets, all_searches
from xmodal.search.clock import seconds
from xmodal.search.space import (
    Space,
    as_overrides,
    cheap,
    fine_tuning,
    preset_of,
    rungs,
    space_of,
    training,
)

REGISTRY = plugins.registry()
FORMS = ("row", "sequence", "grid")
SHAPES = {"row": (5,), "sequence": (2, 46), "grid": (1, 30, 41)}


@pytest.mark.parametrize("form", FORMS)
def test_ways_to_fine_tune_begin_with_the_usual_and_never_repeat(form: str) -> None:
    space = space_of(form, REGISTRY)
    found = [one.name for one in fine_tuning(space, 0)]
    other = [one.name for one in fine_tuning(space, 1)]
    usual = [f"{key.rpartition('.')[2]}=" for key in space.choices if key != "embedder"]
    assert found[0].startswith(f"{space.methods[0]} ")
    assert all(word in found[0] for word in usual)
    assert found[0] == other[0]
    assert len(set(found)) == len(found) >= 24
    assert sorted(found) == sorted(other)
    assert found != other
    assert found == [one.name for one in fine_tuning(space, 0)]


def test_what_the_user_has_set_is_not_varied() -> None:
    space = space_of("row", REGISTRY)
    rate, layers = "training.optimizer.lr", "backbone.layers"
    assert set(space.without(["training.epochs=3"]).choices) == {rate, layers}
    assert set(space.without([f"{rate}=0.001"]).choices) == {layers}
    assert set(space.without(["backbone=vit-s14"]).choices) == {rate}
    assert set(space.without(["training.optimizer.lr.x=1"]).choices) == {layers}
    assert len(list(fine_tuning(space.without([f"{rate}=1", "backbone=vit-s14"]), 0))) == 4


@pytest.mark.parametrize("form", FORMS)
def test_every_way_of_the_shipped_spaces_is_a_recipe_that_fits(form: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.zeros((40, *SHAPES[form])), y=np.arange(40) % 2)
    space = space_of(form, REGISTRY)
    rung = rungs(space, 100)[0]
    for way in fine_tuning(space, 0):
        overrides = (*as_overrides({"task.path": str(path), **training(rung)}), *way.overrides)
        plan = compose_plan((*way.recipes, f"arrays/{form}"), REGISTRY, Store(), overrides)
        stage = plan.recipe.stages[-1].config
        assert (stage.epochs, stage.max_steps) == (rung.epochs, rung.steps)
        assert stage.optimizer.lr == way.settings["training.optimizer.lr"]
        assert plan.facts.num_tokens <= 196


def test_cheap_answers_are_the_trivial_ones_and_the_rivals_of_the_space() -> None:
    space = Space(rivals=("fast", "faster"), methods=("nft",))
    found = cheap(space, ["methods/majority"])
    assert [one.name for one in found] == ["majority", "fast", "faster"]
    assert [one.recipes for one in found][1:] == [("methods/fast",), ("methods/faster",)]
    assert all(one.cheap for one in found)


@pytest.mark.parametrize(
    ("samples", "totals"),
    [(20, [24, 69, 200]), (800, [85, 252, 750]), (4607, [444, 1335, 4000])],
)
def test_each_rung_takes_three_times_the_steps_of_the_one_below(
    samples: int, totals: list[int]
) -> None:
    space = Space(methods=("nft",))
    found = [rung.total for rung in rungs(space, samples)]
    for mine, expected in zip(found, totals, strict=True):
        assert mine == pytest.approx(expected, rel=0.15)
    whole = -(-samples // 32)
    assert all(rung.steps <= whole for rung in rungs(space, samples))


def test_a_last_fit_can_end_earlier_with_a_whole_schedule() -> None:
    rung = rungs(Space(methods=("nft",)), 800)[-1]
    settings = training(rung, 7)
    assert settings["training.epochs"] == 7
    assert settings["training.max_steps"] == rung.steps
    assert settings["training.schedule"]["warmup_epochs"] == 0.7


def test_a_space_of_ones_own_is_a_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("methods: [nft, orca]\nchoices: {seed: [3, 4]}\nwidth: 2\n")
    space = space_of(str(own), REGISTRY)
    assert space.width == 2
    found = [one.name for one in fine_tuning(space, 0)]
    assert found[0] == "nft seed=3"
    assert sorted(found) == ["nft seed=3", "nft seed=4", "orca seed=3", "orca seed=4"]
    own.write_text("methods: [nft]\nwidht: 2\n")
    with pytest.raises(RecipeError, match="widht"):
        space_of(str(own), REGISTRY)
    with pytest.raises(UsageError, match="did you mean 'sequence'"):
        space_of("sequense", REGISTRY)
    assert [one.name for one in all_searches(REGISTRY)] == [f"searches/{f}" for f in sorted(FORMS)]


def test_presets_say_how_thorough_a_search_is() -> None:
    space = space_of("row", REGISTRY)
    quick, good, best = (preset_of(name, REGISTRY) for name in ("quick", "good", "best"))
    assert good.over(space) == space
    steps = [rungs(preset.over(space), 4607)[-1].total for preset in (quick, good, best)]
    assert steps == sorted(steps)
    assert steps[0] * 3 == pytest.approx(steps[1], rel=0.1)
    assert steps[1] * 3 == pytest.approx(steps[2], rel=0.1)
    assert [p.over(space).width for p in (quick, good, best)] == [3, 9, 27]
    times = [seconds(p.time or "") for p in (quick, good, best)]
    assert times == [120, 600, 7200]
    assert quick.over(space).choices == space.choices
    assert [one.name for one in all_presets(REGISTRY)] == [
        "presets/best", "presets/good", "presets/quick",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        preset_of("quik", REGISTRY)
