"""LoRA against its definition, with every kind of backbone, and through whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import xmodal
from xmodal import api
from xmodal.batch import Tokens
from xmodal.engine import checkpoint
from xmodal.engine.plan import compose_plan
from xmodal.errors import UsageError
from xmodal.interfaces import BackboneFacts, Facts
from xmodal.plugins import registry
from xmodal.testing.running import StopAt, assert_same
from xmodal.testing.tiny import TinyBackbone, random, tiny_context, tiny_facts
from xmodal_peft.lora import Lora, linear_layers

from ...conftest import TINY

pytestmark = pytest.mark.slow

SMALL = [o for o in TINY if not o.startswith("selector")]
BODIES: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "tiny": ({}, (4, 6), 8),
    "vit-s14": ({"pretrained": False, "layers": 2}, (4, 6), 12),
    "minilm-l6": ({"pretrained": False}, (24,), 36),
    "swin": ({"pretrained": False, "size": "tiny"}, (14, 14), 75),
    "roberta": ({"pretrained": False}, (24,), 72),
}
"""Settings, a token grid, and the number of linear layers."""


def adapted(backbone: Any, notes: list[str] | None = None, **settings: Any) -> Any:
    """The backbone with updates of those settings; the random start is always the same."""
    note = (lambda line: None) if notes is None else notes.append
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Lora(Lora.Config(**settings), replace(tiny_context(), note=note)).apply(backbone)
    return backbone


def tiny() -> Any:
    kind: Any = registry().load("backbone", "tiny")
    return kind(kind.Config(), tiny_context()).eval()


def updates(backbone: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in backbone.named_parameters() if "lora_" in name}


def shake(backbone: nn.Module) -> None:
    """Make every update a real one: B starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in updates(backbone).values():
        with torch.no_grad():
            parameter.normal_(0, 0.1, generator=generator)


# --- the definition ---


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"rank": 4}, 1.0),
        ({"rank": 4, "alpha": 6}, 1.5),
        ({"rank": 4, "alpha": 6, "rslora": True}, 3.0),
        ({"rank": 4, "rslora": True}, 2.0),
    ],
)
def test_output_and_gradients_are_those_of_the_definition(
    settings: dict[str, Any], scale: float
) -> None:
    """h = W x + b + scale B A x, by plain matrices in float64."""
    backbone = adapted(tiny(), **settings).double()
    shake(backbone)
    layer = backbone.layers[0].qkv
    x_BD = random(5, 32, seed=2).double()
    out = layer(x_BD)
    out.square().sum().backward()

    names = ("base_layer.weight", "base_layer.bias", "lora_A.default.weight")
    own = dict(layer.named_parameters())
    weight, bias, a_RD, b_OR = (
        own[name].detach().clone().requires_grad_() for name in (*names, "lora_B.default.weight")
    )
    assert a_RD.shape == (4, 32)
    assert b_OR.shape == (96, 4)
    expected = x_BD @ (weight + scale * b_OR @ a_RD).T + bias
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    for name, by_hand in (("lora_A.default.weight", a_RD), ("lora_B.default.weight", b_OR)):
        torch.testing.assert_close(own[name].grad, by_hand.grad, rtol=1e-10, atol=1e-10)


def test_dora_is_its_definition() -> None:
    """m (W + BA) / ||W + BA||, row by row (Liu et al. 2024, Eq. 5)."""
    backbone = adapted(tiny(), rank=4, dora=True).double()
    layer = backbone.layers[0].out
    x_BD = random(5, 32, seed=2).double()
    own = {name: p.detach() for name, p in layer.named_parameters()}
    start = x_BD @ own["base_layer.weight"].T + own["base_layer.bias"]
    torch.testing.assert_close(layer(x_BD), start, rtol=1e-6, atol=1e-6)
    shake(backbone)
    moved = own["base_layer.weight"] + own["lora_B.default.weight"] @ own["lora_A.default.weight"]
    length_O1 = own["lora_magnitude_vector.default.weight"][:, None]
    expected = length_O1 * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(layer(x_BD), x_BD @ expected.T + own["base_layer.bias"])
    assert not torch.allclose(layer(x_BD), start)


def test_dropout_is_of_the_updates_input_and_only_in_training() -> None:
    backbone = adapted(tiny(), rank=4, dropout=0.5)
    shake(backbone)
    layer, x_BD = backbone.layers[0].qkv, random(64, 32, seed=2)
    assert torch.equal(layer(x_BD), layer(x_BD))
    base_BO = layer.base_layer(x_BD)
    torch.manual_seed(0)
    update_BO = layer.train()(x_BD) - base_BO
    torch.manual_seed(0)
    kept_BD = nn.functional.dropout(x_BD, 0.5)
    b_OR, a_RD = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    torch.testing.assert_close(update_BO, kept_BD @ (b_OR @ a_RD).T, rtol=1e-4, atol=1e-5)


# --- backbones ---


def body_of(name: str) -> Any:
    settings, *_ = BODIES[name]
    kind: Any = registry().load("backbone", name)
    return kind(kind.Config(**settings), tiny_context()).eval()


def tokens_for(backbone: Any, grid: tuple[int, ...]) -> Tokens:
    count = grid[0] * (grid[1] if len(grid) > 1 else 1)
    return Tokens(random(2, count, backbone.facts.width), grid)


@pytest.mark.long
@pytest.mark.parametrize("name", BODIES)
def test_every_body(name: str) -> None:
    """The same start, r(in + out) parameters a layer, and a gradient in every one of them."""
    _, grid, count = BODIES[name]
    backbone = body_of(name)
    layers, fused = linear_layers(backbone)
    assert not fused
    assert len(layers) == count
    wanted = sum(3 * (layer.in_features + layer.out_features) for layer in layers.values())
    tokens = tokens_for(backbone, grid)
    with torch.no_grad():
        before: Tensor = backbone(tokens).x_BND
    notes: list[str] = []
    adapted(backbone, notes, rank=3)
    added = updates(backbone)
    assert sum(p.numel() for p in added.values()) == wanted
    assert len(added) == 2 * count
    assert notes == [f"lora: rank 3 in {count} linear layers, {wanted:,} new parameters"]
    with torch.no_grad():
        assert torch.equal(backbone(tokens).x_BND, before)
    shake(backbone)
    backbone(tokens).x_BND.square().sum().backward()
    idle = [n for n, p in added.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle
    assert not any("lora" in n for n, _ in backbone.embedding.named_parameters())


def test_what_was_frozen_stays_frozen_and_what_trained_still_can() -> None:
    backbone = tiny()
    backbone.norm.requires_grad_(False)
    adapted(backbone)
    assert not any(p.requires_grad for p in backbone.norm.parameters())
    others = [p for n, p in backbone.named_parameters() if not n.startswith("norm.")]
    assert all(p.requires_grad for p in others)


def test_layers_of_the_source_embedding_are_left_alone() -> None:
    class Embeds(TinyBackbone):
        def __init__(self) -> None:
            super().__init__(TinyBackbone.Config(), tiny_context())
            self.mixing = nn.Linear(16, 16)

        def embedding_parameters(self) -> list[nn.Parameter]:
            return [*super().embedding_parameters(), *self.mixing.parameters()]

    backbone = adapted(Embeds())
    assert type(backbone.mixing) is nn.Linear
    assert {n.split(".lora")[0] for n in updates(backbone)} == {"encoder.1"}


class Fused(TinyBackbone):
    """A backbone with torch's own attention, which never calls its output layer."""

    def __init__(self) -> None:
        super().__init__(TinyBackbone.Config(), tiny_context())
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


def test_updates_that_would_be_ignored_are_not_made() -> None:
    notes: list[str] = []
    backbone = adapted(Fused(), notes)
    assert {name.split(".lora")[0] for name in updates(backbone)} == {"encoder.1"}
    assert "fused layers are not adapted: attention.out_proj, block.self_attn" in notes[1]
    with pytest.raises(UsageError, match=r"'attention\.\*' matches only layers inside fused"):
        adapted(Fused(), targets=["attention.*"])


def test_patterns_choose_layers() -> None:
    backbone = adapted(tiny(), targets=["*.qkv", "layers.1.out"])
    names = {name.split(".lora")[0] for name in updates(backbone)}
    assert names == {"layers.0.qkv", "layers.1.qkv", "layers.1.out"}
    assert len(updates(backbone)) == 6


def test_a_pattern_for_nothing_says_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"'\*attn\*' matches no linear layer.*layers\.0\.qkv"):
        adapted(tiny(), targets=["*.qkv", "*attn*"])


def test_a_body_without_layers_is_refused_before_anything_loads() -> None:
    nothing = BackboneFacts("example-nothing", "any", width=0, feature_width=0)
    facts = Facts(tiny_facts().task, nothing)
    assert list(Lora.problems(Lora.Config(), facts)) == [
        "backbone 'example-nothing' has no linear layers for adapter 'lora'"
    ]
    assert not list(Lora.problems(Lora.Config(), tiny_facts()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1}, "dropout"),
        ({"targets": []}, "targets is empty"),
        ({"target": "all-linear"}, "did you mean 'targets'"),
    ],
)
def test_wrong_settings_say_what_is_wrong(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Lora.Config(**wrong)


# --- runs ---


def run(root: Path, *overrides: str, observer: Any = None) -> Any:
    settings = [*SMALL, "saving.every_steps=1", "saving.keep=50", "saving.finished=50", *overrides]
    return api.run(
        "methods/lora",
        "tasks/darcy",
        scale="smoke",
        overrides=settings,
        root=root,
        report=False,
        observer=observer,
    ).run


def test_only_updates_embedder_and_predictor_train(tmp_path: Path) -> None:
    finished = run(tmp_path, "adapter.dropout=0.1")
    first, *_, last = checkpoint.complete(finished.checkpoints, "step-")[::-1]
    a, b = (checkpoint.load(folder)["model"] for folder in (first, last))
    moved = {name for name in a if not torch.equal(a[name], b[name])}
    assert any("lora_A" in name for name in moved)
    assert any("lora_B" in name for name in moved)
    assert all("lora_" in name or name.startswith(("embedder.", "predictor.")) for name in moved)
    # Two blocks of qkv, out and two MLP layers, width 32, rank 8.
    updated = 2 * 8 * ((32 + 96) + (32 + 32) + 2 * (32 + 128))
    parts = [n for n in a if n.startswith(("embedder.", "predictor."))]
    expected = updated + sum(a[n].numel() for n in parts)
    assert finished.read("result.json")["parameters"]["trainable"] == expected


@pytest.mark.long
def test_a_run_resumes_bit_equal_and_its_model_loads(tmp_path: Path) -> None:
    drop = "adapter.dropout=0.1"
    whole = run(tmp_path / "whole", drop)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", drop, observer=StopAt(6))
    resumed = run(tmp_path / "cut", drop)
    end = checkpoint.load(whole.path / "final")["model"]
    assert_same(end, checkpoint.load(resumed.path / "final")["model"])
    loaded = dict(xmodal.load(whole.path).model.state_dict())
    best = checkpoint.load(checkpoint.complete(whole.checkpoints, "best-")[0])["model"]
    assert_same(loaded, {name: best[name] for name in loaded})


def test_another_seed_starts_from_another_a(tmp_path: Path) -> None:
    starts = []
    for seed in (0, 0, 1):
        made = compose_plan(
            ["methods/lora", "tasks/darcy"], registry(), _store(), [*SMALL, f"seed={seed}"], "smoke"
        )
        builder = _builder(made)
        starts.append(updates(builder.session(builder.data()).model))
    name = next(n for n in starts[0] if "lora_A" in n)
    assert torch.equal(starts[0][name], starts[1][name])
    assert not torch.equal(starts[0][name], starts[2][name])


def test_it_adapts_the_body_of_another_method_too(tmp_path: Path) -> None:
    outcome = api.run(
        "methods/pare",
        "tasks/darcy",
        scale="smoke",
        overrides=[
            "adapter=lora",
            'stages.0.train=["embedder.*", "*predictor.*", "mixer.*", "*lora_*"]',
        ],
        root=tmp_path,
        report=False,
    )
    assert outcome.result["test"]["metric"] > 0
    assert any(line.startswith("lora: rank 8") for line in outcome.result["notes"])


def test_a_dry_run_shows_it() -> None:
    from xmodal.engine.dry_run import describe

    made = compose_plan(["methods/lora", "tasks/darcy"], registry(), _store(), SMALL, "smoke")
    notes: list[str] = []
    sections = describe(made, _store(), notes.append)
    assert "lora: rank 8 in 8 linear layers, 8,192 new parameters" in notes
    assert "backbone 8,192" in sections["parameters"]["trains in stage 0"]


def _store() -> Any:
    from xmodal.data.store import Store

    return Store()


def _builder(made: Any) -> Any:
    from xmodal.engine.build import Builder

    return Builder(made, _store(), lambda line: None)
