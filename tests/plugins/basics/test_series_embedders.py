"""Series as pictures and as responses of random kernels, against plain loops and the backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import xmodal
from xmodal import api
from xmodal.interfaces import Facts, Use
from xmodal.testing.tiny import TinyBackbone, build, random, tiny_backbone, tiny_context, tiny_facts
from xmodal_basics.embedders.fold2d import Fold2d, robust, segments
from xmodal_basics.embedders.random_kernels import RandomKernels, dilations, kernels


def facts_of(channels: int, length: int, **backbone: Any) -> Facts:
    found = tiny_facts("sequence")
    task = replace(found.task, shape=(channels, length))
    return replace(found, task=task, backbone=replace(tiny_backbone(), **backbone))


def made(kind: Any, channels: int, length: int, **settings: Any) -> Any:
    """An embedder on series of this shape, beside the small image backbone."""
    parts = {"backbone": build(TinyBackbone)}
    return build(kind, settings, tiny_context(facts_of(channels, length), parts))


# --- fold-2d ---


def test_a_short_series_by_hand() -> None:
    """Eleven steps, segments of 4, two apart: the last row reaches one step beyond the end."""
    embedder = made(Fold2d, 1, 11, segment=4, stride=0.5, size=8, robust=False)
    x = torch.arange(11.0)[None, None]
    assert embedder.fold(x)[0, 0].tolist() == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8, 9],
        [8, 9, 10, 10],
    ]


@pytest.mark.parametrize("length", [2, 5, 46, 900, 1001])
def test_segments_cover_the_series_and_no_more_than_one_step_beyond(length: int) -> None:
    config = Fold2d.Config()
    segment, step, rows = segments(config, length)
    assert abs(segment - length**0.5) <= 0.5
    assert step == max(1, round(segment / 10))
    end = (rows - 1) * step + segment
    assert length <= end < length + step


@pytest.mark.parametrize("channels", [1, 3])
def test_scaling_by_median_and_quartiles(channels: int) -> None:
    x = 5 + 3 * random(4, channels, 37)
    x[0, 0, 3] = 1000.0  # an outlier moves neither, and is cut off
    found = robust(x).numpy()
    low, middle, high = np.percentile(x.numpy(), [25, 50, 75], axis=2, keepdims=True)
    expected = np.clip((x.numpy() - middle) / ((high - low) / 1.349), -3, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found[0, 0, 3] == 3


def test_scaling_of_series_without_quartiles() -> None:
    constant, spike = torch.full((1, 1, 20), 7.3), torch.zeros(1, 1, 20)
    spike[..., 4] = 2.0
    assert not robust(constant).any()
    # Its quartiles are equal: by the standard deviation, 2 sqrt(.05 * .95).
    assert robust(spike)[0, 0, 4] == pytest.approx(min(3, 2 / (2 * (0.05 * 0.95) ** 0.5)))


def test_one_channel_is_read_as_the_backbone_reads_a_grey_picture() -> None:
    embedder = made(Fold2d, 1, 64, size=(16, 24))
    x = random(3, 1, 64)
    picture_B1MP = embedder.fold(x)
    assert picture_B1MP.shape == (3, 1, 57, 8)
    grey = torch.nn.functional.interpolate(
        picture_B1MP, (16, 24), mode="bilinear", antialias=True
    ).expand(-1, 3, -1, -1)
    backbone = build(TinyBackbone)
    tokens = embedder(x)
    assert tokens.grid == (4, 6)
    # The small backbone's LayerNorm is copied, and it has no positions.
    assert torch.allclose(tokens.x_BND, backbone.embed(grey).x_BND, atol=1e-5)


def test_channels_start_as_the_mean_of_their_pictures() -> None:
    three, one = made(Fold2d, 3, 64, size=16), made(Fold2d, 1, 64, size=16)
    x = random(2, 3, 64)
    with torch.no_grad():
        apart = torch.stack([one.project(x[:, c : c + 1]) for c in range(3)]).mean(0)
        assert torch.allclose(three.project(x), apart, atol=1e-5)


def test_a_smaller_picture_has_fewer_tokens() -> None:
    facts = facts_of(1, 30, grid=(16, 16))
    use = Use("fold-2d", Fold2d, Fold2d.Config())
    assert Fold2d.grid(use.config, facts.task, facts.backbone) == (16, 16)
    shorter = Fold2d.shortened(use, facts.task, facts.backbone, 70)
    assert Fold2d.grid(shorter.config, facts.task, facts.backbone) == (8, 8)


def test_what_it_cannot_read_is_refused() -> None:
    config, sequence = Fold2d.Config(), facts_of(1, 30)
    with pytest.raises(ValueError, match="reads pictures in patches"):
        Fold2d.grid(config, sequence.task, replace(sequence.backbone, patch=None))
    with pytest.raises(ValueError, match="not trained with images of one size"):
        Fold2d.grid(config, sequence.task, replace(sequence.backbone, grid=()))
    with pytest.raises(ValueError, match="longer than the series"):
        Fold2d.grid(Fold2d.Config(segment=31), sequence.task, sequence.backbone)
    with pytest.raises(ValueError, match="needs a sequence"):
        Fold2d.grid(config, tiny_facts("grid").task, sequence.backbone)


# --- random-kernels ---


def by_loops(embedder: Any, x: Tensor, count: int) -> np.ndarray:
    """Responses, their share above the threshold and largest value by segment; then moments."""
    values, length = x.double().numpy(), x.shape[2]
    responses = []
    for dilation in embedder.dilations:
        for kernel in getattr(embedder, f"kernels_{dilation}").double().numpy():
            response = np.zeros((len(values), length))
            for at in range(length):
                for channel in range(values.shape[1]):
                    for k in range(9):
                        place = at + (k - 4) * dilation
                        if 0 <= place < length:
                            response[:, at] += kernel[channel, k] * values[:, channel, place]
            responses.append(response)
    rows = []
    for n in range(count):
        own = slice(n * length // count, -(-(n + 1) * length // count))
        above = [
            (response[:, own] > float(limit)).mean(1)
            for response, limit in zip(responses, embedder.thresholds_J, strict=True)
        ]
        most = [response[:, own].max(1) for response in responses]
        piece = values[:, :, own]
        moments = [piece.mean(2), piece.std(2), piece.min(2), piece.max(2)]
        rows.append(np.concatenate([np.stack([*above, *most], 1), *moments], axis=1))
    return np.stack(rows, axis=1)


@pytest.mark.parametrize(("channels", "length", "tokens"), [(1, 40, 5), (3, 23, 4)])
def test_features_by_loops(channels: int, length: int, tokens: int) -> None:
    """A length that the segments divide, and one that they do not."""
    embedder = made(RandomKernels, channels, length, kernels=7, tokens=tokens)
    x = random(6, channels, length)
    embedder.calibrate(x, None)
    expected = by_loops(embedder, x, tokens)
    np.testing.assert_allclose(embedder.features(x).numpy(), expected, atol=2e-5)
    # Standardised over the batch that it was calibrated with.
    standard = (embedder.features(x) - embedder.mean_E) / embedder.scale_E
    assert standard.mean((0, 1)).abs().max() < 1e-4
    own = standard.std((0, 1), correction=0)
    assert bool(((own - 1).abs() < 1e-3).logical_or(own < 1e-3).all())


def test_thresholds_are_quantiles_spread_evenly() -> None:
    embedder = made(RandomKernels, 1, 64, kernels=21, tokens=4)
    x = random(32, 1, 64)
    embedder.calibrate(x, None)
    responses = embedder.responses(x)
    below = (responses <= embedder.thresholds_J[:, None]).float().mean((0, 2))
    expected = (np.arange(1, 22) * (5**0.5 - 1) / 2) % 1
    np.testing.assert_allclose(below.numpy(), expected, atol=0.01)
    assert np.diff(np.sort(np.r_[0, expected, 1])).max() < 0.1


def test_kernels_have_no_mean_and_read_sets_of_channels() -> None:
    found = kernels(400, 8, torch.Generator().manual_seed(0))
    assert found.shape == (400, 8, 9)
    assert found.sum(2).abs().max() < 1e-5
    sizes = found.abs().sum(2).bool().sum(1)
    assert sizes.min() == 1
    assert sizes.max() == 8
    # P(size = 1) = log 2 / log 9.
    share = float((sizes == 1).float().mean())
    assert share == pytest.approx(np.log(2) / np.log(9), abs=4 * (0.25 / 400) ** 0.5)


def test_dilations_fit_the_series() -> None:
    assert dilations(5) == [1]
    assert dilations(17) == [1, 2]
    assert dilations(100) == [1, 2, 4, 8]
    assert all(d * 8 < 100 for d in dilations(100))


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [
        ("embedder={use: fold-2d, size: 16}", "backbone=tiny"),
        ("embedder={use: random-kernels, kernels: 32, tokens: 8}",),
    ],
)
def test_a_run_learns_with_it_and_predicts_the_same(more: tuple[str, ...], tmp_path: Path) -> None:
    """Class is the frequency of a wave; a saved run predicts what it predicted."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    time = np.arange(61)
    phase = rng.uniform(0, 6.28, (120, 1))
    x = np.sin(phase + time * (0.2 + 0.35 * y[:, None])) + 0.2 * rng.normal(size=(120, 61))
    np.savez(tmp_path / "waves.npz", x=x[:, None].astype(np.float32), y=y)
    task = f"task={{use: arrays, form: sequence, path: {tmp_path / 'waves.npz'}}}"
    done = api.run(
        "methods/nft",
        overrides=[
            task,
            *more,
            "training={epochs: 20, max_steps: null, batch: {size: 16}, optimizer: {lr: 3e-3}}",
        ],
        scale="smoke",
        root=tmp_path,
        report=False,
    ).run
    assert done.read("result.json")["test"]["metric"] < 0.25
    trained = xmodal.load(done.path)
    samples = trained.samples()
    whole = trained.outputs(samples)
    alone = torch.cat([trained.outputs(samples[i : i + 1]) for i in range(len(samples))])
    assert torch.allclose(whole, alone, atol=1e-4)
    # Sixty-one steps in eight segments: they overlap by a step.
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert xmodal.export(done.path, "onnx", tmp_path / "onnx").difference < 1e-3
