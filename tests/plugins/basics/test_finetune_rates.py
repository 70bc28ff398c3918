"""Learning rates by depth, and steps instead of epochs, of the stage ``finetune``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from xmodal import plugins
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.plan import Plan, compose_plan
from xmodal.engine.session import RunSession
from xmodal.engine.step import StepRecord
from xmodal.optimize import layer_depths
from xmodal_basics.finetune import Finetune

BACKBONES = {
    "tiny": ("tasks/darcy", "backbone=tiny"),
    "vit": ("tasks/darcy", "backbone={use: vit-s14, layers: 3, pretrained: false}"),
    "swin": ("tasks/darcy", "backbone={use: swin, size: tiny, pretrained: false}"),
    "text": ("tasks/car", "backbone={use: minilm-l6, layers: 3, pretrained: false}", "source=null"),
    "lora": ("tasks/darcy", "backbone=tiny", "adapter=lora"),
}


def planned(method: str, *more: str) -> Plan:
    layers = [f"methods/{method}", *(m for m in more if "=" not in m)]
    overrides = [m for m in more if "=" in m]
    return compose_plan(layers, plugins.registry(), Store(), overrides, "smoke")


def session_of(method: str, *more: str) -> RunSession:
    builder = Builder(planned(method, *more), Store(), lambda line: None)
    return builder.session(builder.data())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n != "tiny" else []) for n in BACKBONES]
)
def test_every_parameter_has_the_rate_of_its_depth(name: str) -> None:
    """Counted by hand: 0.75 to the power of the layers between a parameter and the head."""
    session = session_of("layer-decay", *BACKBONES[name])
    layers = list(session.model.backbone.recomputable())
    assert len(layers) >= 2
    stage = session.stages[0]
    assert isinstance(stage, Finetune)
    named = session.model.select_trainable(("*",))
    base = stage.config.optimizer.lr
    rate = {
        id(p): group["lr"] / base
        for group in stage.optimizer(named).param_groups
        for p in group["params"]
    }
    assert len(rate) == len(named)
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            if parameter.requires_grad:
                assert rate[id(parameter)] == pytest.approx(0.75 ** (len(layers) - number))
    for parameter in session.model.embedder.parameters():
        assert rate[id(parameter)] == pytest.approx(0.75 ** (len(layers) + 1))
    assert {rate[id(p)] for p in session.model.predictor.parameters()} == {1.0}


def test_the_other_direction_and_patterns_besides() -> None:
    session = session_of("surgical-early", "tasks/darcy", "stages.0.lr_factors={'embedder.*': 0.1}")
    stage, (depths, last) = session.stages[0], layer_depths(session.model)
    assert isinstance(stage, Finetune)
    groups = stage.optimizer(session.model.select_trainable(("*",))).param_groups
    rate = {id(p): g["lr"] / stage.config.optimizer.lr for g in groups for p in g["params"]}
    for name, parameter in session.model.named_parameters():
        if id(parameter) in session.model.frozen:
            continue
        expected = {0: 1.0, last + 1: 1.0}.get(depths[name], 0.75 ** (depths[name] - 1))
        expected *= 0.1 if name.startswith("embedder.") else 1.0
        assert rate[id(parameter)] == pytest.approx(expected), name


def test_it_trains_with_a_group_for_every_depth() -> None:
    rows = list(Training(session_of("layer-decay", "tasks/darcy")).run())
    assert all(math.isfinite(r.loss) for r in rows if isinstance(r, StepRecord))


# --- steps ---


@pytest.mark.parametrize(
    ("settings", "samples", "epochs", "steps"),
    [
        ({"steps": 100}, 100, 10, 10),  # ten steps a pass
        ({"steps": 5}, 100, 1, 5),  # half of a pass
        ({"steps": 101}, 100, 11, 10),  # 110: an epoch has the same number everywhere
        ({"steps": 100, "stretch": 2.0}, 100, 20, 10),
        ({"steps": 100, "max_steps": 4}, 100, 25, 4),
        ({"steps": "auto"}, 100, 30, 10),  # no more than 30 passes
        ({"steps": "auto"}, 500, 20, 50),
        ({"steps": "auto"}, 5000, 3, 500),  # no fewer than 3
        ({"steps": None, "epochs": 7}, 100, 7, 10),
    ],
)
def test_steps_make_epochs(settings: dict[str, Any], samples: int, epochs: int, steps: int) -> None:
    config = Finetune.Config.model_validate({"batch": {"size": 10}, **settings})
    assert Finetune.epochs_for(config, samples) == epochs

    class Session:
        data = type("Data", (), {"train": range(samples)})

    stage = Finetune(config, None)  # type: ignore[arg-type]
    stage.meet(Session())  # type: ignore[arg-type]
    assert (stage.epochs, stage.steps_per_epoch(Session())) == (epochs, steps)  # type: ignore[arg-type]


def test_a_run_takes_the_steps_that_it_was_told() -> None:
    more = (
        "tasks/darcy",
        "task.train=10",
        "training.batch={size: 4, micro: null}",
        "training.max_steps=null",
        "training.steps=8",
    )
    session = session_of("nft", *more)
    records = list(Training(session).run())
    assert sum(isinstance(r, StepRecord) for r in records) == 9  # three passes of three steps
    assert sum(isinstance(r, EpochRecord) for r in records) == 3
    assert planned("nft", *more).epochs == 3
    half = session_of("nft", *more, "fraction=0.4")  # one step a pass
    assert half.stages[0].epochs == planned("nft", *more, "fraction=0.4").epochs == 8
    schedule = half.stages[0].schedule(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1)
    assert schedule is not None


def test_lp_ft_has_the_epochs_of_nft() -> None:
    for epochs in (3, 6, 10, 12, 30, 60):
        plain, both = (
            planned(m, "tasks/darcy", f"training.epochs={epochs}") for m in ("nft", "lp-ft")
        )
        assert plain.epochs == both.epochs == epochs
    first, second = both.recipe.stages
    assert first.config.train == ("predictor.*",)
    assert second.config.train == ("*",)
