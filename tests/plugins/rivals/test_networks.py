"""The networks of rivals against second implementations: Fourier layers, fields of view, shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xmodal.data.store import Store
from xmodal.interfaces import Facts, Target, TaskFacts
from xmodal.plugins import registry
from xmodal.testing import build, tiny_context, whole_samples
from xmodal.testing.tiny import settings, tiny_facts
from xmodal_rivals.gated_cnn import Gated, GatedCNN
from xmodal_rivals.perceiver import Perceiver, PerceiverIO, fourier_features
from xmodal_rivals.unet import Padded, UNet1d
from xmodal_rivals.wide_resnet import Residual, WideResNetSettings, plain, repeated


def task(shape: tuple[int, ...], target: Target) -> Facts:
    facts = whole_samples("grid" if len(shape) == 3 else "sequence", target)
    return Facts(TaskFacts("example", shape, target, {"train": 8}), facts.backbone, grid=facts.grid)


def rival(name: str, facts: Facts, **given: Any) -> Any:
    return build(registry().load("predictor", name), given, tiny_context(facts))


# --- FNO ---


@pytest.fixture(scope="module")
def spectral() -> Any:
    pytest.importorskip("neuralop")
    from neuralop.layers.spectral_convolution import SpectralConv

    from xmodal_rivals.fno import make_real

    def made(*modes: int) -> nn.Module:
        layer = nn.Sequential(SpectralConv(2, 3, modes, bias=False))
        make_real(layer)
        return layer

    return made


def by_hand(x: Tensor, weight: Tensor) -> np.ndarray[Any, Any]:
    """Li et al.'s Eq. 4 in NumPy: transform, multiply the kept modes, transform back.

    ``weight``: ``[2, 3, M]`` or ``[2, 3, M, M']`` with the modes of the first axis from the most
    negative on; the last axis holds non-negative modes.
    """
    axes = tuple(range(2, x.dim()))
    modes = np.fft.rfftn(x.numpy(), axes=axes)
    kept = np.zeros((len(x), 3, *modes.shape[2:]), dtype=complex)
    w = weight.numpy()
    for place in np.ndindex(w.shape[2:]):
        mode = place if len(place) == 1 else (place[0] - w.shape[2] // 2, place[1])
        at = (slice(None), slice(None), *mode)
        kept[at] = modes[at] @ w[(slice(None), slice(None), *place)]
    return np.fft.irfftn(kept, s=x.shape[2:], axes=axes)


@pytest.mark.parametrize("shape", [(16,), (15,), (8, 12), (8, 9)])
def test_the_fourier_layer_is_a_product_of_modes(spectral: Any, shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, x = spectral(*[4] * len(shape)), torch.randn(2, 2, *shape)
    with torch.no_grad():
        weight = torch.complex(layer[0].weight.real, layer[0].weight.imaginary)
        found = layer(x).numpy()
    # The library keeps n // 2 + 1 modes of the last axis.
    assert weight.shape[2:] == (4, 3)[-len(shape) :]
    np.testing.assert_allclose(found, by_hand(x, weight), atol=1e-5)


def test_the_library_is_wrong_on_odd_axes_and_ours_avoids_them(spectral: Any) -> None:
    """If this fails, neuraloperator is mended, and ``transformable`` may allow odd sides."""
    from xmodal_rivals.fno import transformable

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, x = spectral(4, 4), torch.randn(1, 2, 9, 8)
    with torch.no_grad():
        shifted = (layer(x.roll(1, 2)) - layer(x).roll(1, 2)).abs().max()
    assert shifted > 0.1  # a convolution commutes with shifts
    assert transformable([85, 85]) == [90, 90]
    assert transformable([128, 1024, 16]) == [128, 1024, 16]
    assert transformable([7, 11, 22]) == [8, 12, 24]


def test_fno_is_the_librarys_operator_on_the_same_weights() -> None:
    library = pytest.importorskip("neuralop.models")
    facts = task((2, 16, 24), Target("dense", 3, (16, 24)))
    ours = rival("fno", facts, width=6, modes=8, layers=2).eval()
    theirs = library.FNO((8, 8), 4, 3, 6, n_layers=2, positional_embedding=None).eval()
    state = ours.body.operator.state_dict()
    state.pop("_metadata")
    named = {}
    for key, value in state.items():
        if key.endswith("weight.imaginary"):
            continue
        if key.endswith("weight.real"):
            imaginary = state[key.replace(".real", ".imaginary")]
            key, value = key.replace(".real", ".tensor"), torch.complex(value, imaginary)
        named[key] = value
    theirs.load_state_dict(named)
    x = torch.randn(2, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    row_H, column_W = torch.linspace(0, 1, 16), torch.linspace(0, 1, 24)
    places = torch.stack(torch.meshgrid(row_H, column_W, indexing="ij")).expand(2, 2, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours.body(x), theirs(torch.cat([x, places], dim=1)))


def test_fno_computes_in_single_precision_under_autocast() -> None:
    pytest.importorskip("neuralop")
    facts = task((1, 16), Target("dense", 1, (16,)))
    network = rival("fno", facts, width=4, modes=4, layers=1).body
    x = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x)
    with torch.no_grad():
        assert torch.equal(half, network(x))


# --- fields of view ---


def field_of_view(network: nn.Module, length: int, place: int) -> list[int]:
    """The places of the input that the output at ``place`` depends on."""
    x = torch.randn(1, 2, length, generator=torch.Generator().manual_seed(1), requires_grad=True)
    network.eval()(x)[0, 0, place].backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0).nonzero().flatten().tolist()


def test_the_gated_cnn_sees_as_far_as_its_dilations_say() -> None:
    config = GatedCNN.Config(width=4, kernel=3, dilations=(1, 2, 4))
    network = Gated(2, 1, config, dense=True)
    # Stem 1, blocks 1 + 2 + 4 on each side: 17 places.
    assert network.receptive_field == 17
    assert field_of_view(network, 41, 20) == list(range(12, 29))


def test_the_unet_sees_across_its_levels_and_returns_to_every_size() -> None:
    network = Padded(UNet1d(2, 3, 4), (100,), 16)
    assert network.padded == (112,)
    assert network(torch.randn(2, 2, 100)).shape == (2, 3, 100)
    assert len(field_of_view(network, 100, 50)) > 60


@pytest.mark.parametrize("shape", [(1, 85, 85), (3, 17, 33)])
def test_the_librarys_unet_on_odd_sides(shape: tuple[int, ...]) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    facts = task(shape, Target("dense", 2, shape[1:]))
    network = rival("unet", facts, encoder="resnet18").body
    assert network(torch.randn(1, *shape)).shape == (1, 2, *shape[1:])  # trains on a single sample


# --- wide ResNet ---


def test_a_wide_resnet_has_the_published_number_of_parameters() -> None:
    """WRN-16-4 on CIFAR-10: 2.75 M parameters (Zagoruyko and Komodakis, Table 4)."""
    network = Residual(
        (3, 32, 32), Target("classification", 10), WideResNetSettings(depth=16, factor=4), plain
    )
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 2.75


def test_levels_are_repeated_in_place() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    expected = nn.functional.interpolate(x, scale_factor=2)[..., :3, :5]
    assert torch.equal(repeated(x, 2, (3, 5)), expected)


# --- Perceiver IO ---


def test_the_perceiver_has_the_shapes_of_its_configuration() -> None:
    config = PerceiverIO.Config(latents=5, width=16, layers=2, heads=2, bands=3)
    network = Perceiver((2, 6, 8), 3, config, dense=True)
    places = 2 * (1 + 2 * 3)
    assert network.places_MP.shape == (48, places)
    assert network.config.d_model == 2 + places
    assert network.encoder.embeddings.latents.shape == (5, 16)
    assert network.encoder.encoder.cross_attention.attention.self.key.in_features == 2 + places
    assert len(network.encoder.encoder.self_attends) == 2
    assert network.decoder.decoding_cross_attention.attention.self.query.in_features == places
    assert network(torch.randn(2, 2, 6, 8)).shape == (2, 3, 6, 8)
    small = Perceiver((2, 6), 3, config, dense=False)
    x = torch.randn(2, 2, 6)
    assert small(x).shape == (2, 3)
    # The library's own way, which makes a mask of ones.
    inputs = torch.cat([x.transpose(1, 2), small.places_MP.expand(2, 6, 7)], dim=2)
    latents = small.encoder(inputs=inputs).last_hidden_state
    found = small.decoder(small.query.expand(2, -1, -1), latents).logits
    torch.testing.assert_close(small(x), found.flatten(1))


def test_positions_are_those_of_transformers() -> None:
    from transformers.models.perceiver.modeling_perceiver import (
        build_linear_positions,
        generate_fourier_features,
    )

    sides = (12, 16)
    places = build_linear_positions(sides).flatten(0, 1)[None]
    theirs = generate_fourier_features(places, 4, max_resolution=sides)[0]
    ours = fourier_features(sides, 4)
    # The same columns: ours has sines and cosines axis by axis, theirs all sines first.
    order = [0, 1, *range(2, 6), *range(10, 14), *range(6, 10), *range(14, 18)]
    torch.testing.assert_close(ours, theirs[:, order], atol=1e-5, rtol=0)


# --- what they refuse ---


def said(name: str, facts: Facts, **given: Any) -> str:
    component = registry().load("predictor", name)
    return "; ".join(component.problems(settings(component, given), facts))


def test_rivals_say_what_they_cannot_do() -> None:
    row = whole_samples("row")
    assert "those of 'example-row' have the form row" in said("wide-resnet", row)
    assert "reads whole samples" in said("wide-resnet", tiny_facts())
    classes = whole_samples("grid")
    assert "'fno' predicts dense labels; 'example-grid' has classification" in said("fno", classes)
    assert "'gated-cnn' reads samples of the form sequence" in said("gated-cnn", classes)
    other = task((1, 16, 16), Target("dense", 1, (8, 8)))
    assert "on the grid of the samples [16, 16]; the labels of 'example' have [8, 8]" in said(
        "unet", other
    )
    assert "depth must be 10, 16, 22" in said("dash", classes, depth=12)
    assert "no encoder 'resnet' for images" in said("unet", classes, encoder="resnet")
    assert "not a multiple of 3 heads" in said("perceiver-io", classes, heads=3)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    component = registry().load("predictor", "fno")
    monkeypatch.setattr(component, "package", "a_package_that_nobody_has")
    (line,) = component.missing(settings(component, {}), Store())
    assert line.startswith("'fno' needs the package neuraloperator: ")
    assert "xmodal[rivals-fields]" in line
