"""``pretrained:`` reaches the backbone whichever layer names it, and wherever the layer stands."""

from __future__ import annotations

import pytest

from xmodal.errors import RecipeError
from xmodal.plugins import registry
from xmodal.recipe.layers import compose, validate


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


def test_a_body_without_weights_is_named() -> None:
    layered = compose(["methods/baseline", "tasks/darcy"], registry(), ["backbone=identity"])
    layered.data["pretrained"] = False
    with pytest.raises(RecipeError, match="backbone 'identity' has no pretrained weights"):
        validate(layered, registry())


def test_an_unknown_key_is_not_taken_for_it() -> None:
    layered = compose(["methods/nft", "tasks/darcy"], registry(), ["pretraind=false"])
    with pytest.raises(RecipeError, match="did you mean 'pretrained'"):
        validate(layered, registry())
