"""The mixing baselines in the engine: every kind of label, resuming, and what recipes say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xmodal import api, runs
from xmodal.batch import Batch
from xmodal.data.store import Store
from xmodal.engine.model import TrainingModel
from xmodal.engine.observe import Silent
from xmodal.engine.plan import compose_plan
from xmodal.interfaces import Context, Target
from xmodal.plugins import registry
from xmodal.testing.running import RecordingObserver, StopAt, assert_same, weights
from xmodal.testing.tiny import (
    TinyBackbone,
    TinyScheduler,
    TinySelector,
    build,
    progress,
    random,
    tiny_context,
    tiny_facts,
    tiny_labels,
    tiny_samples,
    tiny_target,
)

pytestmark = pytest.mark.slow

MIXERS: dict[str, dict[str, Any]] = {
    "mixup": {},
    "cutmix": {},
    "target-mixup": {},
    "target-mask": {"fill": "learned"},
    "repeat": {},
    "token-augment": {"partners": "any", "interpolate": 0.1},
}
LOSSES = {
    "classification": "cross-entropy",
    "multi-label": "bce",
    "regression": "mse",
    "dense": "mse",
}
METHODS = ("mixup", "cutmix", "target-mixup", "target-mask", "nft-doubled", "token-augment")
RECIPES = (*METHODS, "random", "pare-constant-k", "pare-random-k", "pare-without-source-loss")


def part(kind: str, name: str, context: Context, **config: Any) -> Any:
    return build(registry().load(kind, name), config, context)


def tiny_model(mixer: str, target: Target, form: str) -> TrainingModel:
    facts = tiny_facts(form, target)  # type: ignore[arg-type]
    backbone = build(TinyBackbone, None, tiny_context(facts))
    parts = {
        "selector": build(TinySelector),
        "scheduler": build(TinyScheduler, {"k": 3}),
    }
    wanted = facts.source.target if facts.source else target
    return TrainingModel(
        part("embedder", "auto", tiny_context(facts, {"backbone": backbone})),
        backbone,
        part("mixer", mixer, tiny_context(facts, parts, seed=2), **MIXERS[mixer]),
        part("predictor", target.kind, tiny_context(facts, {"backbone": backbone}, target)),
        part("loss", LOSSES[target.kind], tiny_context(facts, output=target)),
        nn.Identity(),
        part("predictor", "classification", tiny_context(facts, {"backbone": backbone}, wanted)),
        part("loss", "cross-entropy", tiny_context(facts, output=wanted)),
    )


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("classification", "grid"),
        ("classification", "row"),
        ("multi-label", "sequence"),
        ("regression", "row"),
        ("dense", "grid"),
        ("dense", "sequence"),
    ],
)
def test_two_steps_on_every_kind_of_label(mixer: str, kind: str, form: str) -> None:
    target = tiny_target(kind, form)  # type: ignore[arg-type]
    model = tiny_model(mixer, target, form)
    task = tiny_facts(form, target).task  # type: ignore[arg-type]
    x, y = tiny_samples(task), tiny_labels(target)
    source = (random(len(x), 3, 16, 16), torch.arange(len(x)))
    needs = model.mixer.needs_source
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(2):
        loss, log = model(Batch(x, y, source if needs else None), progress(step=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(torch.as_tensor(v)) for v in log.values())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    for owner in ("embedder.", "backbone.", "predictor."):
        assert any(name.startswith(owner) for name in changed)
    assert needs == any(name.startswith("source_predictor.") for name in changed)


def test_repeated_views_meet_different_dropout() -> None:
    model = tiny_model("repeat", tiny_target(), "grid")
    model.backbone.encoder.append(nn.Dropout(0.5))
    x = tiny_samples(tiny_facts().task)
    views = model.views(Batch(x, torch.arange(len(x))), progress())
    one, other = model.encode(views)
    assert not torch.equal(one.x_BND, other.x_BND)
    model.eval()
    one, other = model.encode(views)
    assert torch.equal(one.x_BND, other.x_BND)


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("task", ["tasks/darcy", "tasks/openml/car"])
def test_recipes_can_be_planned(method: str, task: str) -> None:
    plan = compose_plan([f"methods/{method}", task], registry(), Store(), scale="smoke")
    assert plan.recipe.description


def _scheduler(method: str) -> Any:
    plan = compose_plan([f"methods/{method}", "tasks/darcy"], registry(), Store(), scale="smoke")
    use = plan.recipe.scheduler
    assert use is not None
    return build(use.component, use.config)


def test_the_schedules_without_gradualness_keep_the_mean_of_the_gradual_one() -> None:
    """3000 to 0 of 3136 tokens in 100 epochs: 1515 on average."""
    epochs = range(100)
    gradual, constant, drawn = (
        [float(scheduler(progress(epoch, 100), 3136)) for epoch in epochs]
        for scheduler in map(_scheduler, ("pare", "pare-constant-k", "pare-random-k"))
    )
    assert sum(gradual) / 100 == pytest.approx(1515, abs=1)
    assert constant == [1515.0] * 100
    assert min(drawn) < 400 < 2600 < max(drawn) <= 3000
    assert set(drawn) <= set(gradual)
    assert sum(drawn) / 100 == pytest.approx(1515, abs=260)  # three standard deviations


def test_recipes_say_what_their_names_say() -> None:
    made = {
        method: compose_plan([f"methods/{method}", "tasks/darcy"], registry(), Store()).recipe
        for method in ("random", "pare-without-source-loss", "nft-doubled", "target-mask", "pare")
    }
    assert made["random"].selector is not None
    assert made["random"].selector.name == "random"
    assert made["random"].mixer == made["pare"].mixer
    assert made["random"].scheduler == made["pare"].scheduler
    without = made["pare-without-source-loss"]
    changes = {"source_term": False}
    assert without.mixer.config == made["pare"].mixer.config.model_copy(update=changes)
    assert without.selector == made["pare"].selector
    assert made["nft-doubled"].mixer.config.times == 2
    assert made["target-mask"].scheduler == made["pare"].scheduler


# --- resuming ------------------------------------------------------------------------------------


def _run(method: str, root: Path, observer: Silent | None = None) -> runs.Run:
    tiny = ["task.train=10", "training.max_steps=null", "training.batch={size: 4, micro: 2}"]
    return api.run(
        f"methods/{method}",
        "tasks/darcy",
        scale="smoke",
        overrides=[*tiny, "saving.every_steps=1", "saving.keep=50"],
        root=root,
        report=False,
        observer=observer,
    ).run


Whole = Callable[[str], tuple[runs.Run, list[float]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of a method that nothing stopped, made once, and its losses."""

    @functools.cache
    def make(method: str) -> tuple[runs.Run, list[float]]:
        seen = RecordingObserver()
        return _run(method, tmp_path_factory.mktemp(method), seen), seen.losses

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_within_an_epoch_ends_as_if_it_was_not(
    method: str, whole: Whole, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        _run(method, tmp_path / "cut", StopAt(2))
    resumed = _run(method, tmp_path / "cut")
    assert_same(weights(whole(method)[0]), weights(resumed))


def test_methods_differ(whole: Whole) -> None:
    """No two of them train on the same losses, so none silently does what another does."""
    found = {method: tuple(whole(method)[1]) for method in (*METHODS, "nft")}
    assert len(set(found.values())) == len(found)
