"""A recipe's own layer for a scale is laid on as soon as both are there, in any order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xmodal.errors import RecipeError
from xmodal.plugins import registry
from xmodal.recipe.compose import Layered, compose, validate
from xmodal.recipe.lookup import all_recipes

METHOD = """\
always:
  predictor: {use: pooled, dropout: 0.5}
  stages: [{use: align, epochs: 9}, {use: finetune, epochs: 100, clip: 1}]
"""
SCALE = "always: {stages: {finetune: {epochs: 3}}}\npredictor: {dropout: 0.1}\n"


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "methods/m": METHOD,
        "methods/m/scales/small": SCALE,
        "scales/small": "training: {epochs: 1}\nworkers: 3\n",
        "scales/large": "workers: 5\n",
    }.items():
        path = tmp_path / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def stages(layered: Layered) -> list[object]:
    found: list[object] = layered.data["stages"]
    return found


@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (["methods/m"], "small"),
        (["methods/m", "scales/small"], None),
        (["scales/small", "methods/m"], None),
    ],
)
def test_in_any_order(recipes: None, names: list[str], scale: str | None) -> None:
    layered = compose(names, registry(), scale=scale)
    # Only what the layer names changes, and other stages stay.
    assert stages(layered) == [
        {"use": "align", "epochs": 9},
        {"use": "finetune", "epochs": 3, "clip": 1},
    ]
    # What a method insists on stays over what a layer only says.
    assert layered.data["predictor"] == {"use": "pooled", "dropout": 0.5}
    assert layered.data["workers"] == 3
    assert layered.names.count("methods/m/scales/small") == 1
    assert "methods/m/scales/small.yaml" in str(layered.origins["stages", 1, "epochs"])


def test_another_scale_and_no_scale_leave_it_out(recipes: None) -> None:
    for scale in ("large", None):
        layered = compose(["methods/m"], registry(), scale=scale)
        assert stages(layered)[1] == {"use": "finetune", "epochs": 100, "clip": 1}


def test_the_command_line_comes_after_it(recipes: None) -> None:
    override = f"stages.finetune={json.dumps({'epochs': 7})}"
    layered = compose(["methods/m"], registry(), [override], scale="small")
    assert stages(layered)[1] == {"use": "finetune", "epochs": 7, "clip": 1}


def test_a_stage_that_does_not_exist_is_named(recipes: None, tmp_path: Path) -> None:
    (tmp_path / "recipes/methods/m/scales/small.yaml").write_text(
        "always: {stages: {finetnue: {epochs: 3}}}\n"
    )
    with pytest.raises(RecipeError, match=r"did you mean 'finetune'\?"):
        compose(["methods/m"], registry(), scale="small")


def preparing() -> list[str]:
    """Every shipped method with stages that are not scored."""
    known = registry()
    names = [f.name for f in all_recipes(known) if f.name.startswith("methods/")]
    texts = {f.name: f.path.read_text() for f in all_recipes(known)}
    return [n for n in names if n.count("/") == 1 and "stages:" in texts[n]]


@pytest.mark.parametrize("task", ["tasks/wdbc", "tasks/darcy"])
@pytest.mark.parametrize("method", preparing())
def test_at_smoke_scale_no_method_prepares_for_long(method: str, task: str) -> None:
    recipe = validate(compose([method, task], registry(), scale="smoke"), registry())
    assert (recipe.scale, recipe.method) == ("smoke", method.removeprefix("methods/"))
    for stage in recipe.stages:
        if not stage.component.evaluates:
            assert stage.component.planned_epochs(stage.config) <= 2, stage.name
