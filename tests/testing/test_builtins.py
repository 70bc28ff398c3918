"""Every registered component keeps the contract of its kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from xmodal.batch import Tokens
from xmodal.data.store import Store
from xmodal.engine.capture import NoQuestions
from xmodal.interfaces import BackboneFacts, FittedPredictor, Target
from xmodal.plugins import HOOKS, Registry, registry
from xmodal.testing import check_host_inputs, contract
from xmodal.testing.tiny import (
    TinyBackbone,
    build,
    settings,
    tiny_context,
    tiny_facts,
    tiny_labels,
    tiny_prediction,
    tiny_samples,
    tiny_target,
    tiny_tokens,
)

pytestmark = pytest.mark.slow

WEIGHTS = "needs downloaded weights"
NEEDS = {
    ("backbone", "hf"): "reads the user's own model folder",
    ("backbone", "timm"): "reads the user's own model name",
    ("backbone", "vit-s14"): WEIGHTS,
    ("backbone", "minilm-l6"): WEIGHTS,
    ("backbone", "mpnet-base"): WEIGHTS,
    ("backbone", "swin"): "89 million random weights are too slow to make here",
    ("backbone", "roberta"): "125 million random weights are too slow to make here",
    ("predictor", "coarse-solve"): "needs a task with an equation, as its own tests have",
    ("predictor", "pinn"): "needs a task with an equation, as its own tests have",
    ("predictor", "deepcr"): "reads images of one channel; its own tests compare with its program",
    ("predictor", "autogluon"): "takes minutes; its own tests fit a table",
    ("predictor", "realmlp"): "takes minutes; its own tests fit a table",
    ("predictor", "tabm"): "takes minutes; its own tests fit a table",
    ("launcher", "slurm"): "needs a cluster, which tests/clusters starts",
    ("launcher", "ray"): "needs a cluster, which tests/clusters starts",
}
NEEDS_DATA = ("task", "source")
LARGE_PACKAGES = ("exporter", "tracker")
"""Kinds whose components import seconds of other people's code."""
WITHOUT_FILES = {
    ("task", "openml/balance-scale"),
    ("task", "openml/car"),
    ("task", "openml/tic-tac-toe"),
    ("task", "openml/wdbc"),
    ("source", "digits"),
}
NO_BACKBONE = BackboneFacts("example-nothing", "any", width=0, feature_width=0)
MAPS = replace(tiny_facts(), task=replace(tiny_facts().task, target=Target("dense", 1, (48, 48))))


def tiny_attention() -> Any:
    """A small backbone with attention, the same every time."""
    kind: Any = registry().load("backbone", "tiny")
    return build(kind, {"pretrained": False})


# Settings and surroundings beyond the defaults, so that the other branches keep the contract too.
CASES: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = {
    ("selector", "gate"): [
        ({}, {}),
        ({"network": "mlp"}, {}),
        ({"network": "mlp-dropout"}, {}),
        ({"gumbel_epochs": 1}, {}),
        ({"draw": "exact"}, {}),
    ],
    ("selector", "lml-gate"): [
        ({}, {}),
        ({"network": "mlp"}, {}),
        ({"noise_start": 0, "standardise": False}, {}),
        ({"temperature": 0.1, "noise_until": 0.5}, {}),
    ],
    ("mixer", "patch-replace"): [
        ({}, {}),
        ({"replace": "highest"}, {}),
        ({"match": "score"}, {}),
        ({"late": {"epoch": 1, "replace": "highest", "match": "score"}}, {}),
        ({"source_term": False}, {}),
        ({"beta_target": 0}, {}),
        ({"beta_mix": 0}, {}),
    ],
    ("mixer", "mixup"): [({}, {}), ({"beta_target": 0}, {}), ({"fade": "linear"}, {})],
    ("mixer", "cutmix"): [({}, {}), ({"beta_target": 0}, {}), ({"alpha": 0.2}, {})],
    ("mixer", "target-mixup"): [({}, {}), ({"beta_target": 0}, {})],
    ("mixer", "target-mask"): [({}, {}), ({"fill": "mean"}, {}), ({"weight": "whole"}, {})],
    ("mixer", "repeat"): [({}, {"repeats": True}), ({"times": 1}, {})],
    ("mixer", "token-augment"): [
        ({}, {}),
        ({"noise": 0, "fill": "other"}, {}),
        ({"noise": 0, "drop": 0, "interpolate": 0.5, "partners": "any"}, {}),
        ({"noise": 0, "drop": 0}, {}),
    ],
    ("mixer", "consistent"): [
        ({}, {}),
        ({"back": 1, "ramp_up": 0.5}, {}),
        ({"base": {"use": "patch-replace", "beta_target": 0}}, {}),
        ({"beta_consistency": 0}, {}),
    ],
    ("scheduler", "by-distance"): [
        ({}, {}),
        ({"per": "step", "stop": 2}, {}),
        ({"unit": "share", "start": 1, "distance": "bures"}, {}),
    ],
    ("scheduler", "linear"): [({}, {}), ({"per": "step"}, {}), ({"unit": "share", "start": 1}, {})],
    ("predictor", "fno"): [({"width": 8, "modes": 8, "layers": 2}, {})],
    ("predictor", "unet"): [({"encoder": "resnet18", "width": 4}, {})],
    ("predictor", "wide-resnet"): [({"depth": 10, "factor": 1}, {})],
    ("predictor", "dash"): [({"depth": 10, "factor": 1, "sizes": [3, 5], "dilations": [1]}, {})],
    ("predictor", "gated-cnn"): [({"width": 8, "dilations": [1, 2]}, {})],
    ("predictor", "perceiver-io"): [
        ({"latents": 4, "width": 16, "layers": 2, "heads": 2, "bands": 4}, {})
    ],
    ("adapter", "mimetic"): [
        ({}, {"make": tiny_attention}),
        ({"query_key": (0.3, 0.3), "value_output": (0.2, -0.2)}, {"make": tiny_attention}),
    ],
    ("embedder", "flat"): [({}, {"backbone": NO_BACKBONE})],
    ("embedder", "patch"): [({}, {}), ({"size": 8, "init": "random"}, {}), ({"patch": 8}, {})],
    ("loss", "cross-entropy"): [
        ({}, {}),
        ({"balanced": True}, {}),
        ({"label_smoothing": 0.1}, {"zero_at_perfect": False}),
    ],
    ("stage", "align"): [
        ({}, {}),
        ({"distance": "otdd", "decay": {"after": []}}, {}),
    ],
    ("stage", "align-features"): [({}, {}), ({"distance": "mmd", "samples": 2}, {})],
    ("stage", "source-head"): [({}, {}), ({"lipschitz_in": "tokens", "label_smoothing": None}, {})],
    ("stage", "align-labels"): [({}, {}), ({"chunks": 4, "subtract_marginal": True}, {})],
    ("stage", "meta-align"): [({}, {}), ({"gradient": "finite-difference"}, {})],
    ("distance", "otdd"): [
        ({}, {}),
        ({"labels": "gaussian", "label_gradient": True}, {}),
        ({"inner": "exact", "outer": "exact"}, {}),
        ({"debias": False}, {}),
        ({"subsample": 24, "reg": 1}, {}),
    ],
    ("distance", "sinkhorn"): [({}, {}), ({"debias": False}, {}), ({"subsample": 24}, {})],
    ("distance", "mmd"): [({}, {}), ({"bandwidth": "source"}, {})],
    ("metric", "mae-lr-d8"): [({}, {"facts": MAPS})],
    ("predictor", "minirocket"): [({"kernels": 84}, {})],
    ("predictor", "hydra"): [({"groups": 2}, {})],
    ("predictor", "quant"): [({"depth": 2}, {})],
    ("predictor", "kernels"): [({"shares": 84, "wins": 32}, {})],
    ("predictor", "forest"): [({"trees": 5}, {}), ({"trees": 5, "features": "raw"}, {})],
    ("predictor", "xgboost"): [({"rounds": 3}, {})],
    ("predictor", "lightgbm"): [({"rounds": 3}, {}), ({"rounds": 3, "trials": 1}, {})],
    ("predictor", "catboost"): [({"rounds": 2}, {})],
    ("tracker", "mlflow"): [({"tracking_uri": "mlruns"}, {})],
    ("adapter", "lora"): [
        ({}, {}),
        ({"rank": 2, "alpha": 4, "dropout": 0.1, "rslora": True}, {}),
        ({"dora": True}, {}),
        ({"targets": ["encoder.*"]}, {}),
    ],
}


def _components() -> list[Any]:
    found = registry()
    return [
        pytest.param(
            kind,
            name,
            given,
            surroundings,
            id=f"{kind}-{name}-{number}",
            marks=[pytest.mark.slow] if kind in LARGE_PACKAGES else [],
        )
        for kind in HOOKS
        for name in found.names(kind)
        if found.entry(kind, name).distribution == "xmodal"
        for number, (given, surroundings) in enumerate(CASES.get((kind, name), [({}, {})]))
    ]


@pytest.mark.parametrize(("kind", "name", "given", "surroundings"), _components())
def test_contract(
    kind: str,
    name: str,
    given: dict[str, Any],
    surroundings: dict[str, Any],
    tmp_path: Path,
) -> None:
    component: Any = registry().load(kind, name)
    if (kind, name) in NEEDS:
        pytest.skip(NEEDS[kind, name])
    if kind in NEEDS_DATA:
        if (kind, name) not in WITHOUT_FILES:
            pytest.skip("needs data files or minutes of generation; its own tests cover it")
        surroundings = {"store": Store(tmp_path)}
    if kind == "predictor":
        for line in component.missing(settings(component, given), Store()):
            pytest.skip(line)
    with torch.random.fork_rng(devices=[]):
        contract.CHECKS[kind](component, given, **surroundings)


def _choosing() -> list[Any]:
    return [p for p in _components() if p.values[0] in ("mixer", "selector")]


@pytest.mark.parametrize(("kind", "name", "given", "surroundings"), _choosing())
def test_mixers_and_selectors_can_be_captured(
    kind: str, name: str, given: dict[str, Any], surroundings: dict[str, Any]
) -> None:
    component: Any = registry().load(kind, name)
    if name == "token-augment" and given == {"noise": 0, "drop": 0}:
        # Whether any sample has a partner of its class decides how many views there are.
        with pytest.raises(AssertionError, match="asks the device"):
            check_host_inputs(component, given)
        return
    with torch.random.fork_rng(devices=[]):
        check_host_inputs(component, given)


@pytest.mark.parametrize("kind", ["regression", "classification", "multi-label", "dense"])
@pytest.mark.parametrize("form", ["grid", "sequence", "row"])
def test_embedders_heads_and_losses_ask_the_device_nothing(kind: str, form: Any) -> None:
    """Whatever fits this target, in training."""
    found = registry()
    if kind == "dense" and form == "row":
        return
    target = tiny_target(kind, form)
    facts = tiny_facts(form, target)
    context = tiny_context(facts, {"backbone": build(TinyBackbone)}, target)
    y, tried = tiny_labels(target), 0
    for part in ("embedder", "predictor", "loss"):
        for name in found.names(part):
            component: Any = found.load(part, name)
            if (part, name) in NEEDS or list(component.problems(settings(component, {}), facts)):
                continue
            if part == "embedder":
                try:
                    component.grid(settings(component, {}), facts.task, facts.backbone)
                except ValueError:
                    continue
                given: tuple[Any, ...] = (tiny_samples(facts.task),)
            elif not component.supports(target) or issubclass(component, FittedPredictor):
                continue
            elif part == "predictor":
                try:
                    build(component, {}, context)
                except ValueError:
                    continue  # dense-1d on a grid
                given = (tiny_tokens(facts.grid),)
            else:
                given = (tiny_prediction(target).requires_grad_(), y)
            for options in ({}, *(case for case, _ in CASES.get((part, name), [])[1:])):
                module = build(component, options, context).train()
                if part == "loss":
                    module.fit(y)
                    if y.is_floating_point() and module.standardises:
                        mean = torch.ones(y.shape[1], *[1] * (y.dim() - 2), dtype=torch.float64)
                        module.unit(mean, 2 * mean)
                with NoQuestions():
                    out = module(*given)
                    out = out.x_BND if isinstance(out, Tokens) else out
                    out.square().sum().backward()
                tried += 1
    assert tried >= 5


def test_names_in_the_lists_above_exist() -> None:
    """A renamed component must not silently lose its special cases."""
    known = set(registry().entries)
    assert set(NEEDS) | WITHOUT_FILES | set(CASES) <= known


def test_every_kind_has_a_check_and_a_component() -> None:
    found = registry()
    assert set(contract.CHECKS) == set(HOOKS)
    assert {kind for kind in HOOKS if found.names(kind)} == set(HOOKS)


def test_no_builtin_is_broken_or_claimed_twice() -> None:
    found = registry()
    assert not [b for b in found.broken if b.distribution == "xmodal"]
    assert not found.collisions


@pytest.mark.parametrize("kind", sorted(HOOKS))
def test_every_setting_says_what_it_does(kind: str) -> None:
    """``plugins info`` and editors show these lines."""
    found, silent = registry(), []
    for name in found.names(kind):
        config = found.load(kind, name).Config
        silent += [f"{name}.{k}" for k, f in config.model_fields.items() if not f.description]
    assert not silent


@pytest.mark.parametrize("kind", sorted(HOOKS))
def test_every_component_says_what_it_is(kind: str) -> None:
    found = registry()
    silent = [n for n in found.names(kind) if not (found.load(kind, n).__doc__ or "").strip()]
    assert not silent


def test_settings_of_every_component_survive_a_dump() -> None:
    """Also of those that cannot be built here."""
    found: Registry = registry()
    for kind, name in found.entries:
        component = found.load(kind, name)
        try:
            config = settings(component, None)
        except ValidationError:
            continue  # it needs a setting, such as the path of the user's files
        assert component.Config.model_validate(config.model_dump(mode="json")) == config
