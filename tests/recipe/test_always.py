"""What stands under ``always:`` reaches the component that is named last, whoever names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodal.errors import RecipeError
from xmodal.plugins import registry
from xmodal.recipe.compose import compose, validate


@pytest.mark.parametrize(
    ("recipes", "scale"),
    [
        (["methods/scratch", "tasks/darcy"], None),
        (["methods/scratch", "tasks/darcy"], "cpu"),
        (["tasks/darcy", "methods/scratch"], "cpu"),
        (["methods/scratch", "tasks/openml/car"], "cpu"),
    ],
)
def test_scratch_stays_scratch(recipes: list[str], scale: str | None) -> None:
    recipe = validate(compose(recipes, registry(), scale=scale), registry())
    assert recipe.backbone.config.pretrained is False
    others = [name.replace("scratch", "nft") for name in recipes]
    assert validate(compose(others, registry(), scale=scale), registry()).backbone.config.pretrained


@pytest.mark.parametrize("scale", [None, "cpu", "smoke"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_baseline_is_the_baseline_in_any_order(scale: str | None, order: int) -> None:
    recipes = ["methods/baseline", "tasks/darcy"][::order]
    recipe = validate(compose(recipes, registry(), scale=scale), registry())
    assert recipe.backbone.name == "identity"
    assert recipe.embedder.name == "flat"
    assert recipe.source is None


def test_a_random_embedder_stays_random_when_a_task_names_the_embedder() -> None:
    recipe = validate(compose(["methods/nft-random", "tasks/darcy"], registry()), registry())
    assert (recipe.embedder.name, recipe.embedder.config.init) == ("patch", "random")


def test_the_command_line_comes_last_and_origins_are_kept() -> None:
    layered = compose(["methods/scratch", "tasks/darcy"], registry())
    assert "scratch" in str(layered.origins["backbone", "pretrained"])
    assert not [path for path in layered.origins if path[0] == "always"]
    layered = compose(["methods/scratch", "tasks/darcy"], registry(), ["backbone.pretrained=true"])
    assert validate(layered, registry()).backbone.config.pretrained


def test_a_body_without_weights_is_named() -> None:
    layered = compose(["methods/scratch", "tasks/darcy"], registry(), ["backbone=identity"])
    assert validate(layered, registry()).backbone.name == "identity"
    file_order = ["tasks/darcy", "methods/scratch", "methods/baseline"]
    with pytest.raises(RecipeError, match="unknown setting for identity"):
        validate(compose(file_order[::-1], registry()), registry())


def test_it_must_be_a_block(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: [methods/nft, tasks/darcy]\nalways: false\n")
    with pytest.raises(RecipeError, match="expected a block of settings"):
        compose([str(path)], registry())


def test_a_misspelt_key_is_not_taken_for_it() -> None:
    layered = compose(["methods/nft", "tasks/darcy"], registry(), ["alway={}"])
    with pytest.raises(RecipeError, match="did you mean 'always'"):
        validate(layered, registry())
