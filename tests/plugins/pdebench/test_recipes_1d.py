"""The recipes of the one-dimensional tasks: the paper's settings, and two steps at scale smoke."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xmodal import api
from xmodal.data import Store
from xmodal.interfaces import BackboneFacts
from xmodal.plugins import registry
from xmodal.recipe.compose import compose, validate

SETTINGS = {
    # The paper's Table 13: optimiser, learning rate, weight decay; tokens of ORCA's configuration.
    "advection": ("adam", 1e-4, 1e-5, 512),
    "burgers": ("adam", 1e-5, 1e-5, 512),
    "diffusion-reaction": ("sgd", 1e-3, 1e-5, 256),
    "diffusion-sorption": ("adamw", 1e-4, 0.0, 32),
    "navier-stokes": ("adamw", 1e-4, 1e-3, 128),
}


@pytest.mark.parametrize("task", SETTINGS)
def test_settings_are_those_of_table_13(task: str) -> None:
    name, lr, decay, tokens = SETTINGS[task]
    recipe: Any = validate(compose(["methods/pare", f"tasks/{task}"], registry()), registry())
    stage = recipe.stages[0].config
    assert (stage.epochs, stage.batch.size, stage.batch.micro) == (200, 4, None)
    assert (stage.schedule.warmup_epochs, stage.schedule.decay_epochs, stage.clip) == (5, 200, 1.0)
    optimizer = stage.optimizer
    assert (optimizer.use, optimizer.lr, optimizer.weight_decay) == (name, lr, decay)
    facts = recipe.task.component.describe(recipe.task.config, Store(Path("nowhere")))
    backbone = BackboneFacts("roberta", "text", 768, 768, max_tokens=512)
    assert recipe.embedder.component.grid(recipe.embedder.config, facts, backbone) == (tokens,)
    assert recipe.backbone.name == "roberta"
    assert recipe.source.name == "conll-2003"


@pytest.mark.slow
@pytest.mark.parametrize("task", SETTINGS)
def test_two_steps_without_any_data(task: str, tmp_path: Path) -> None:
    done: Any = api.run(
        "methods/pare", f"tasks/{task}", scale="smoke", root=tmp_path / "runs", report=False
    )
    assert 0 < done.result["test"]["metric"] < 100
