"""Frozen features: layers of backbones, the body's own embedding, and the linear model on top."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.facts import BackboneFacts
from xmodal.interfaces import FitData, Target
from xmodal.testing import build, check, tiny_context, tiny_facts
from xmodal_backbones.common import BackboneSettings
from xmodal_backbones.swin import SwinBackbone
from xmodal_backbones.tiny import Tiny
from xmodal_backbones.vit import VisionBackbone
from xmodal_basics.embedders.picture import OwnEmbedder, Picture
from xmodal_basics.frozen_features import FrozenFeatures

GENERATOR = torch.Generator().manual_seed(0)


# --- every layer of a backbone --------------------------------------------------------------------


def test_tokens_of_every_layer_are_averaged() -> None:
    plain, every = (build(Tiny, {"every_layer": on}).eval() for on in (False, True))
    x_BND = torch.randn(3, 6, 32, generator=GENERATOR)
    features = every(Tokens(x_BND, (2, 3)))
    first = plain.layers[0](x_BND)
    expected = [part.mean(1) for part in (x_BND, first, plain.layers[1](first))]
    assert features.grid == (3,)
    torch.testing.assert_close(features.x_BND, torch.stack(expected, dim=1))
    # Nothing is left behind in the layers, and the next call is like the first.
    assert not any(layer._forward_hooks for layer in every.layers)
    assert torch.equal(every(Tokens(x_BND, (2, 3))).x_BND, features.x_BND)


class _Vit(VisionBackbone):
    describe = Tiny.describe


class _Swin(SwinBackbone):
    describe = Tiny.describe


def vit() -> VisionBackbone:
    from transformers import Dinov2Config, Dinov2Model

    settings = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    made = _Vit(BackboneSettings(every_layer=True), tiny_context())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made.adopt(Dinov2Model(settings))
    return made.eval()


def test_the_class_token_stands_beside_the_mean_as_in_the_library() -> None:
    body = vit()
    x_BND = torch.randn(2, 4, 8, generator=GENERATOR)
    found = body(Tokens(x_BND, (2, 2))).x_BND
    assert found.shape == (2, 3, 16)
    torch.testing.assert_close(found[:, 0], torch.cat([x_BND.mean(1), torch.zeros(2, 8)], dim=1))
    hidden = torch.cat([body.prefix_1PD.expand(2, -1, -1), x_BND], dim=1)
    for number, layer in enumerate(body.layers, start=1):
        out = layer(hidden)
        hidden = out[0] if isinstance(out, tuple) else out
        wanted = torch.cat([hidden[:, 1:].mean(1), hidden[:, 0]], dim=1)
        torch.testing.assert_close(found[:, number], wanted)


def test_stages_of_other_widths_end_in_zeros() -> None:
    from transformers import SwinConfig, SwinModel

    settings = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    body = _Swin(BackboneSettings(every_layer=True), tiny_context())
    body.adopt(SwinModel(settings))
    found = body.eval()(Tokens(torch.randn(2, 64, 8, generator=GENERATOR), (8, 8))).x_BND
    assert found.shape == (2, 3, 16)
    assert not found[:, :2, 8:].any()
    assert found[:, 2, 8:].all()


def test_half_precision_gives_full_rows() -> None:
    body = build(Tiny, {"every_layer": True}).eval()
    tokens = Tokens(torch.randn(2, 6, 32, generator=GENERATOR), (2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        half = body(tokens).x_BND
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, body(tokens).x_BND, atol=0.05, rtol=0.05)


# --- the body's own embedding ---------------------------------------------------------------------


def embedder(channels: int, height: int, width: int, cells: int = 16) -> tuple[Picture, Tiny]:
    body = build(Tiny)
    facts = tiny_facts("grid")
    task = replace(facts.task, shape=(channels, height, width))
    context = tiny_context(replace(facts, task=task, backbone=body.facts), {"backbone": body})
    return build(Picture, {"cells": cells}, context), body


def test_a_photograph_of_the_right_size_is_embedded_as_the_body_does() -> None:
    made, body = embedder(3, 16, 16)
    x = torch.randn(2, 3, 16, 16, generator=GENERATOR)
    made.calibrate(x, 3.0)
    torch.testing.assert_close(made(x).x_BND, body.embed(x).x_BND)


def test_one_channel_is_a_grey_picture_and_six_are_two_pictures_on_average() -> None:
    made, body = embedder(1, 16, 16)
    x = torch.randn(2, 1, 16, 16, generator=GENERATOR)
    torch.testing.assert_close(made(x).x_BND, body.embed(x.expand(-1, 3, -1, -1)).x_BND)
    made, body = embedder(6, 16, 16)
    x = torch.randn(2, 6, 16, 16, generator=GENERATOR)
    both = [body.embed(part).x_BND for part in x.split(3, dim=1)]
    torch.testing.assert_close(made(x).x_BND, (both[0] + both[1]) / 2)


@pytest.mark.parametrize(
    ("shape", "reduction", "grid"),
    [((3, 96, 96), 1, (8, 8)), ((1, 8, 52), 1, (3, 21)), ((3, 32, 32), 8, (64, 64)),
     ((1, 2, 900), 1, (1, 64))],
)  # fmt: skip
def test_grids_keep_the_ratio_of_the_sides(
    shape: tuple[int, ...], reduction: int, grid: tuple[int, ...]
) -> None:
    task = replace(tiny_facts("grid").task, shape=shape)
    body = BackboneFacts("b", "image", 8, 8, patch=4, grid=(8, 8), reduction=reduction)
    assert Picture.grid(Picture.Config(), task, body) == grid
    assert OwnEmbedder.grid(OwnEmbedder.Config(), task, body) == grid


def test_a_body_that_reads_no_pictures_is_refused() -> None:
    task, body = tiny_facts("grid").task, BackboneFacts("words", "text", 8, 8)
    with pytest.raises(ValueError, match=r"'words' does not .*embedder=auto"):
        Picture.grid(Picture.Config(), task, body)


# --- the linear model -----------------------------------------------------------------------------


def layers(labels: Tensor, count: int = 4) -> Tensor:
    """Features ``[n, L, F]`` of noise; layer 2 says what the class is."""
    x_NLF = torch.randn(len(labels), count, 12, generator=GENERATOR)
    x_NLF[:, 2] += 6 * torch.nn.functional.one_hot(labels, 12)
    return 5 + 10 * x_NLF


def fitted(output: Target, x: Tensor, y: Tensor, train: int = 100) -> FrozenFeatures:
    context = replace(tiny_context(tiny_facts("grid", output)), output=output)
    made: FrozenFeatures = FrozenFeatures(FrozenFeatures.Config(), context)
    rows = x.flatten(1)
    made.fit(FitData(rows[:train], y[:train], rows[train:], y[train:], tokens=x.shape[1]))
    return made


def test_the_layer_that_knows_is_read() -> None:
    y = torch.randint(3, (200,), generator=GENERATOR)
    x = layers(y)
    made = fitted(Target("classification", 3), x, y)
    assert made.chosen_L.tolist() == [0, 0, 1, 0]
    found = made(Tokens(x, (4,))).argmax(1)
    assert accuracy_score(y[100:], found[100:]) > 0.95
    # Any other layer has no say.
    x[:, [0, 1, 3]] = 0
    assert torch.equal(made(Tokens(x, (4,))).argmax(1), found)
    # One of the penalties of scikit-learn's own model on the standardised layer.
    z = x[:, 2].double().numpy()
    z = (z - z[:100].mean(0)) / z[:100].std(0)
    wanted = [
        LogisticRegression(C=c, max_iter=500).fit(z[:100], y[:100]).predict_proba(z)
        for c in FrozenFeatures.Config().inverse_penalties
    ]
    errors = [np.square(p[100:] - np.eye(3)[y[100:]]).sum(1).mean() for p in wanted]
    best = wanted[int(np.argmin(errors))]
    np.testing.assert_allclose(made(Tokens(x, (4,))).exp(), best, atol=2e-3)


def test_numbers_and_labels_with_gaps() -> None:
    y = torch.randint(3, (200,), generator=GENERATOR)
    x = layers(y)
    numbers = torch.stack([y.float(), 1e6 * y.float()], dim=1)
    made = fitted(Target("regression", 2), x, numbers)
    assert made.chosen_L.argmax() == 2
    error = (made(Tokens(x, (4,))) - numbers)[100:].square().mean(0).sqrt()
    assert error[0] < 0.5
    torch.testing.assert_close(error[1], 1e6 * error[0], rtol=1e-3, atol=0)
    labels = torch.nn.functional.one_hot(y, 3).float()
    labels[::3] = torch.nan
    made = fitted(Target("multi-label", 3), x, labels)
    assert made.chosen_L.argmax() == 2
    right = (made(Tokens(x, (4,))) > 0) == torch.nn.functional.one_hot(y, 3).bool()
    assert right[100:].float().mean() > 0.95


def test_without_validation_the_last_layer_is_read() -> None:
    y = torch.randint(3, (60,), generator=GENERATOR)
    made = fitted(Target("classification", 3), layers(y), y, train=60)
    assert made.chosen_L.tolist() == [0, 0, 0, 1]


def test_contract() -> None:
    check(FrozenFeatures)
    check(Picture)
    check(OwnEmbedder)
