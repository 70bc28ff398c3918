"""Heads: shapes, alignment with the token grid, and equality with the published dense heads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal.batch import Progress, Sample, Tokens
from xmodal.interfaces import BackboneFacts, Context, Facts, Settings, Target, TaskFacts
from xmodal_basics.mixers import NoMixing
from xmodal_basics.predictors import (
    Classification,
    Dense,
    Dense1d,
    Dense2d,
    MultiLabel,
    Pooled,
    Regression,
    resized,
)


def build(
    cls: type[Any],
    output: Target,
    grid: tuple[int, ...],
    patch: int | None = None,
    reduction: int = 1,
    width: int = 10,
    **settings: Any,
) -> Any:
    backbone = BackboneFacts("stub", "any", width, width, patch=patch, reduction=reduction)
    facts = Facts(TaskFacts("toy", (1, 8, 8), output, {}), backbone, grid=grid)
    context = Context(
        facts,
        torch.Generator().manual_seed(0),
        store=SimpleNamespace(),  # type: ignore[arg-type]
        output=output,
    )
    return cls(cls.Config(**settings), context)


def features(grid: tuple[int, ...], width: int = 10, batch: int = 2) -> Tokens:
    return Tokens(torch.randn(batch, torch.Size(grid).numel(), width), grid)


def dense(*shape: int, size: int = 1) -> Target:
    return Target("dense", size, shape)


@pytest.mark.parametrize("cls", [Classification, MultiLabel, Regression, Pooled])
def test_pooled_heads(cls: Any) -> None:
    head = build(cls, Target("classification", 5), (3, 4), dropout=0.5).eval()
    x = features((3, 4))
    expected = x.x_BND.mean(1) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(x), expected)
    shuffled = Tokens(x.x_BND[:, torch.randperm(12)], x.grid)
    torch.testing.assert_close(head(shuffled), head(x))


def test_what_heads_support() -> None:
    kinds = ("classification", "multi-label", "regression", "dense")
    table = {
        Classification: "1000",
        MultiLabel: "0100",
        Regression: "0010",
        Pooled: "1110",
        Dense: "0001",
    }
    for cls, row in table.items():
        assert "".join(str(int(cls.supports(Target(k, 2)))) for k in kinds) == row  # type: ignore[arg-type]
    assert Dense2d.supports(dense(8, 8))
    assert not Dense2d.supports(dense(8))
    assert Dense1d.supports(dense(8))
    assert not Dense1d.supports(dense(8, 8))


@pytest.mark.parametrize(
    ("grid", "patch", "reduction", "shape", "upscale"),
    [
        ((7, 7), 14, 1, (85, 85), 14),  # native, padded to 98
        ((14, 14), 16, 1, (85, 85), 16),  # resized to 224
        ((56, 56), 4, 8, (85, 85), 32),  # Swin, resized to 224
        ((22, 22), 4, 8, (85, 85), 32),  # Swin, native: features 3 x 3, image 96
        ((8, 8), 16, 1, (128, 128), 16),
        ((16, 16), 16, 1, (64, 64), 4),  # smaller patches than the backbone's: an exact division
        ((5, 9), 4, 1, (17, 33), 4),
        ((5, 5), None, 1, (33, 33), 7),
        ((56, 56), 4, 8, (512, 512), 32),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_dense_2d_shapes(
    grid: tuple[int, int],
    patch: int | None,
    reduction: int,
    shape: tuple[int, int],
    upscale: int,
    size: int,
) -> None:
    head = build(Dense, dense(*shape, size=size), grid, patch, reduction, refine=2)
    assert head.head.upscale == upscale
    coarse = tuple(-(-side // reduction) for side in grid)
    assert head(features(coarse)).shape == (2, size, *shape)


def test_native_output_is_cropped_not_stretched() -> None:
    head = build(Dense2d, dense(85, 85), (7, 7), 14)
    x = features((7, 7))
    image = nn.functional.pixel_shuffle(
        head.project(x.x_BND).transpose(1, 2).unflatten(2, (7, 7)), 14
    )
    assert image.shape == (2, 1, 98, 98)
    assert torch.equal(head(x), image[..., :85, :85])


@pytest.mark.parametrize(("shape", "size"), [((85, 85), 1), ((64, 64), 4), ((512, 512), 1)])
def test_equals_the_published_swin_head(shape: tuple[int, int], size: int) -> None:
    """1 x 1 convolution to 3 * 32^2, pixel shuffle, pooling of channels, then of pixels."""
    settings = {"maps": 3, "upscale": 32, "resize": "adaptive-pool"}
    head = build(Dense, dense(*shape, size=size), (56, 56), 4, 8, width=64, **settings)
    decoder = nn.Sequential(nn.Conv2d(64, 3072, 1), nn.PixelShuffle(32))
    with torch.no_grad():
        decoder[0].weight.copy_(head.head.project.weight[..., None, None])
        decoder[0].bias.copy_(head.head.project.bias)
    x = features((7, 7), 64)
    image = decoder(x.x_BND.transpose(1, 2).unflatten(2, (7, 7)))
    mixed = nn.AdaptiveAvgPool1d(size)(image.flatten(2).transpose(1, 2)).transpose(1, 2)
    expected = nn.AdaptiveAvgPool2d(shape)(mixed.unflatten(2, (224, 224)))
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)


def test_published_parameter_count() -> None:
    """Swin-B without its classifier has 86.74 M parameters, the whole Darcy model 89.89 M."""
    settings = {"maps": 3, "upscale": 32, "resize": "adaptive-pool"}
    head = build(Dense2d, dense(85, 85), (56, 56), 4, 8, width=1024, **settings)
    assert sum(p.numel() for p in head.parameters()) == 3_148_800


def test_refinement_starts_as_no_change_and_learns() -> None:
    plain = build(Dense2d, dense(16, 16), (4, 4), 4)
    refined = build(Dense2d, dense(16, 16), (4, 4), 4, refine=3)
    x = features((4, 4))
    assert torch.equal(plain(x), refined(x))
    refined(x).square().sum().backward()
    assert refined.refine[-1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("how", ["bilinear", "adaptive-pool"])
@pytest.mark.parametrize("sides", [(224, 85), (98, 128), (7, 20)])
def test_resizing_is_torchs_own(how: Any, sides: tuple[int, int]) -> None:
    x = torch.randn(2, 3, sides[0], sides[0], dtype=torch.float64)
    size = (sides[1], sides[1])
    expected = (
        nn.AdaptiveAvgPool2d(size)(x)
        if how == "adaptive-pool"
        else nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
    )
    got = resized(resized(x, 2, sides[1], how), 3, sides[1], how)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "pool"])
@pytest.mark.parametrize(("tokens", "length"), [(32, 1024), (50, 1000), (505, 1009), (3, 10)])
@pytest.mark.parametrize("size", [1, 2])
def test_dense_1d_shapes(head: str, tokens: int, length: int, size: int) -> None:
    predictor = build(Dense, dense(length, size=size), (tokens,), width=64, head=head)
    assert predictor(features((tokens,), 64)).shape == (2, size, length)


def test_published_dense_1d_head() -> None:
    head = build(Dense1d, dense(1024), (256,), width=768, head="pool")
    assert not list(head.parameters())
    x = features((256,), 768)
    expected = nn.AdaptiveAvgPool1d(4)(x.x_BND).reshape(2, 1, 1024)
    assert torch.equal(head(x), expected)


def test_linear_dense_1d_keeps_order() -> None:
    head = build(Dense1d, dense(8, size=2), (4,))
    x = features((4,))
    changed = Tokens(x.x_BND.clone(), x.grid)
    changed.x_BND[:, 1] += 1.0
    moved = (head(x) != head(changed)).any(0).any(0)
    assert moved.nonzero().flatten().tolist() == [2, 3]


def test_a_body_without_width_is_a_problem() -> None:
    facts = Facts(
        TaskFacts("toy", (4,), Target("regression", 1), {}), BackboneFacts("identity", "any", 0, 0)
    )
    assert list(Regression.problems(Regression.Config(), facts))
    assert list(Dense.problems(Dense.Config(), facts))


def test_no_mixing_is_one_plain_view() -> None:
    sample = Sample(features((3,)), torch.zeros(2), "target")
    context = SimpleNamespace()
    mixer = NoMixing(Settings(), context)  # type: ignore[arg-type]
    (view,) = mixer(sample, None, Progress(0, 0, 1, 0, 1))
    assert view.tokens is sample.tokens
    assert [(t.head, t.weight) for t in view.terms] == [("target", 1.0)]
    check: Tensor = view.terms[0].y
    assert check is sample.y
