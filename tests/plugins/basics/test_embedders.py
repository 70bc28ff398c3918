"""Embedders: token counts, pretrained starts, calibration, missing values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xmodal.interfaces import BackboneFacts, Context, Facts, Target, TaskFacts
from xmodal_basics.embedders.base import scale_to_norm
from xmodal_basics.embedders.columns import Columns
from xmodal_basics.embedders.conv1d import Conv1d, pieces
from xmodal_basics.embedders.flat import Flat
from xmodal_basics.embedders.native import NativeEmbedder
from xmodal_basics.embedders.patch import Patch
from xmodal_basics.embedders.picture import Picture
from xmodal_basics.embedders.random_kernels import RandomKernels

WIDTH, SIDE = 12, 4
NONE: Any = SimpleNamespace()


class Body:
    """A random stand-in for a pretrained backbone: patch projection, LayerNorm, positions."""

    def __init__(self, norm: bool = True, positions: bool = True) -> None:
        torch.manual_seed(0)
        self.projection = nn.Conv2d(3, WIDTH, SIDE, stride=SIDE)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-3) if norm else None
        if self.norm is not None:
            nn.init.uniform_(self.norm.weight)
            nn.init.uniform_(self.norm.bias)
        self.has_positions = positions

    def patch_projection(self) -> nn.Conv2d | None:
        return self.projection

    def embedding_norm(self) -> nn.LayerNorm | None:
        return self.norm

    def positions(self, grid: tuple[int, ...]) -> Tensor | None:
        count = torch.Size(grid).numel()
        generator = torch.Generator().manual_seed(count)
        return torch.randn(count, WIDTH, generator=generator) if self.has_positions else None

    def embed(self, x: Tensor) -> Tensor:
        tokens = self.projection(x).flatten(2).transpose(1, 2)
        if self.norm is not None:
            tokens = self.norm(tokens)
        positions = self.positions((x.shape[2] // SIDE, x.shape[3] // SIDE))
        return tokens if positions is None else tokens + positions


BACKBONE_FACTS = BackboneFacts("stub", "image", WIDTH, WIDTH, patch=SIDE, grid=(8, 8))


def task(*shape: int, levels: tuple[int, ...] = ()) -> TaskFacts:
    return TaskFacts("toy", shape, Target("classification", 2), {"train": 8}, levels)


def build(
    cls: type[Any],
    facts: TaskFacts,
    backbone: Body | None = None,
    backbone_facts: BackboneFacts = BACKBONE_FACTS,
    notes: list[str] | None = None,
    **settings: Any,
) -> Any:
    lines = [] if notes is None else notes
    context = Context(
        Facts(facts, backbone_facts),
        torch.Generator().manual_seed(1),
        store=SimpleNamespace(),  # type: ignore[arg-type]
        components={"backbone": backbone or Body()},
        note=lines.append,
    )
    return cls(cls.Config(**settings), context)


def mean_norm(tokens: Tensor) -> float:
    return tokens.norm(dim=-1).mean().item()


# --- patch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "positions"), [(True, True), (True, False), (False, True)])
def test_source_init_equals_the_pretrained_embedding_on_rgb(norm: bool, positions: bool) -> None:
    backbone = Body(norm, positions)
    embedder = build(Patch, task(3, 32, 24), backbone)
    x = torch.randn(2, 3, 32, 24)
    tokens = embedder(x)
    assert tokens.grid == (8, 6) == Patch.grid(Patch.Config(), task(3, 32, 24), BACKBONE_FACTS)
    torch.testing.assert_close(tokens.x_BND, backbone.embed(x), rtol=0, atol=0)
    assert all(p.requires_grad for p in embedder.parameters())


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 57])
def test_source_kernel_is_tiled_along_channels(channels: int) -> None:
    backbone = Body()
    plain = build(Patch, task(channels, 8, 8), backbone).projection
    for channel in range(channels):
        assert torch.equal(plain.weight[:, channel], backbone.projection.weight[:, channel % 3])
    assert torch.equal(plain.bias, backbone.projection.bias)
    scaled = build(Patch, task(channels, 8, 8), backbone, channel_rescale=True).projection
    torch.testing.assert_close(scaled.weight, plain.weight * 3 / channels)


def test_native_size_pads_right_and_bottom() -> None:
    embedder = build(Patch, task(1, 9, 6), Body(norm=False), positions=False)
    x = torch.randn(2, 1, 9, 6)
    padded = torch.zeros(2, 1, 12, 8)
    padded[:, :, :9, :6] = x
    tokens = embedder(x)
    assert tokens.grid == (3, 2)
    expected = embedder.projection(padded).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.x_BND, expected)


@pytest.mark.parametrize(
    ("size", "grid"), [("native", (3, 2)), ("backbone", (8, 8)), (16, (4, 4)), ((8, 20), (2, 5))]
)
def test_sizes(size: Any, grid: tuple[int, int]) -> None:
    embedder = build(Patch, task(2, 9, 6), size=size)
    tokens = embedder(torch.randn(2, 2, 9, 6))
    assert tokens.grid == grid
    assert tokens.x_BND.shape == (2, grid[0] * grid[1], WIDTH)


def test_other_patch_side_resamples_the_kernel() -> None:
    """FlexiViT's property: a patch resized with its kernel keeps its response."""
    backbone = Body(norm=False, positions=False)
    embedder = build(Patch, task(3, 8, 8), backbone, patch=8)
    small = torch.randn(2, 3, 4, 4)
    large = nn.functional.interpolate(small, (8, 8), mode="bicubic", antialias=True)
    expected = backbone.projection(small).flatten(1)
    torch.testing.assert_close(embedder(large).x_BND[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_random_init_ignores_the_kernel_but_keeps_positions() -> None:
    backbone = Body()
    embedder = build(Patch, task(3, 8, 8), backbone, init="random")
    assert embedder.projection.weight.std() < 0.03
    assert not embedder.projection.bias.any()
    assert torch.equal(embedder.norm.weight, torch.ones(WIDTH))
    assert torch.equal(embedder.positions, backbone.positions((2, 2)))


def test_body_without_patch_projection_is_noted() -> None:
    backbone, notes = Body(), []
    backbone.patch_projection = lambda: None  # type: ignore[method-assign]
    build(Patch, task(3, 8, 8), backbone, notes=notes)
    assert "no patch projection" in notes[0]


# --- conv-1d -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "target", "kernel", "tokens"),
    [
        (1000, 64, 20, 50),  # ECG
        (46, 512, 1, 46),  # Satellite
        (1000, 512, 2, 500),  # DeepSEA
        (256, 512, 1, 256),  # Advection
        (256, 128, 2, 128),  # Burgers as declared: kernel 2, so 512 tokens of its 1024 points
        (1024, 256, 4, 256),
        (1024, 32, 32, 32),
        (3072, 128, 24, 128),
        (3840, 32, 120, 32),
        (3840, 8, 480, 8),
    ],
)
def test_published_token_counts(length: int, target: int, kernel: int, tokens: int) -> None:
    assert pieces(Conv1d.Config(target_length=target), length, None) == (kernel, tokens)


def test_explicit_kernel_and_padding() -> None:
    assert pieces(Conv1d.Config(kernel=2), 1024, None) == (2, 512)
    assert pieces(Conv1d.Config(kernel=3), 10, None) == (3, 4)
    assert pieces(Conv1d.Config(pad=True, target_length=64), 1000, None) == (16, 63)
    assert pieces(Conv1d.Config(), 1009, None) == (2, 505)
    assert pieces(Conv1d.Config(pad=False), 1009, None) == (1009, 1)
    assert pieces(Conv1d.Config(), 1000, 100) == (10, 100)
    assert pieces(Conv1d.Config(), 3, None) == (1, 3)


def test_prime_length_is_padded_and_said() -> None:
    notes: list[str] = []
    embedder = build(Conv1d, task(2, 37), target_length=8, notes=notes)
    tokens = embedder(torch.randn(3, 2, 37))
    assert tokens.grid == (8,)
    assert tokens.x_BND.shape == (3, 8, WIDTH)
    assert "padded to 40" in notes[0]


def test_conv1d_copies_norm_and_positions() -> None:
    backbone = Body()
    embedder = build(Conv1d, task(2, 40), backbone, target_length=10)
    x = torch.randn(3, 2, 40)
    expected = backbone.norm(embedder.projection(x).transpose(1, 2)) + backbone.positions((10,))
    torch.testing.assert_close(embedder(x).x_BND, expected)
    bound = 2**0.5 * (6 / ((2 + WIDTH) * 4)) ** 0.5
    assert embedder.projection.weight.abs().max() <= bound
    assert embedder.projection.weight.abs().max() > 0.9 * bound


def test_a_sequence_is_one_row_to_a_body_of_images() -> None:
    backbone = Body()
    known = backbone.positions
    backbone.positions = lambda grid: known(grid) if len(grid) == 2 else None  # type: ignore[method-assign]
    embedder = build(Conv1d, task(2, 40), backbone, target_length=10)
    assert torch.equal(embedder.positions, known((1, 10)))
    assert build(Conv1d, task(2, 40), backbone, positions=False).positions is None


# --- columns -------------------------------------------------------------------------------------

LEVELS = (0, 3, 0, 2)


def rows() -> Tensor:
    return torch.tensor([[0.5, 2.0, -1.0, 0.0], [1.5, 0.0, 3.0, 1.0]])


def test_columns_by_hand() -> None:
    embedder = build(Columns, task(4, levels=LEVELS), Body(norm=False, positions=False))
    tokens = embedder(rows())
    assert tokens.grid == (4,)
    first = embedder.weight_FD[0] * 0.5 + embedder.bias_FD[0]
    torch.testing.assert_close(tokens.x_BND[0, 0], first)
    torch.testing.assert_close(tokens.x_BND[0, 1], embedder.category_MD[2])
    torch.testing.assert_close(tokens.x_BND[1, 3], embedder.category_MD[3 + 1])


@pytest.mark.parametrize(
    ("column", "value"), [(0, float("nan")), (1, float("nan")), (1, -1.0), (3, 2.0)]
)
def test_missing_and_unknown_values(column: int, value: float) -> None:
    embedder = build(Columns, task(4, levels=LEVELS), Body(norm=False, positions=False))
    x = rows()
    x[0, column] = value
    x_BND = embedder(x).x_BND
    torch.testing.assert_close(x_BND[0, column], embedder.missing_FD[column])
    assert x_BND.isfinite().all()
    x_BND.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in embedder.parameters())


def test_permuting_samples_permutes_tokens() -> None:
    for cls, shape in ((Patch, (2, 9, 6)), (Conv1d, (2, 40)), (Columns, (5,))):
        embedder = build(cls, task(*shape))
        x, order = torch.randn(4, *shape), torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(embedder(x[order]).x_BND, embedder(x).x_BND[order])


# --- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["auto", "source"])
@pytest.mark.parametrize("init", ["source", "random"])
@pytest.mark.parametrize("kind", ["patch", "conv-1d", "columns"])
def test_calibration_hits_the_norm(kind: str, init: str, scale: str) -> None:
    cls, shape = {
        "patch": (Patch, (5, 9, 6)),
        "conv-1d": (Conv1d, (2, 40)),
        "columns": (Columns, (4,)),
    }[kind]
    levels = LEVELS if kind == "columns" else ()
    x = torch.randint(2, (8, *shape)).float() if levels else 3 * torch.randn(8, *shape)
    embedder = build(cls, task(*shape, levels=levels), Body(norm=False), init=init, scale=scale)
    embedder.calibrate(x, 20.0)
    assert mean_norm(embedder(x).x_BND) == pytest.approx(20.0, rel=1e-4)


@pytest.mark.parametrize("init", ["source", "random"])
@pytest.mark.parametrize("positions", [False, True])
def test_a_layernorm_is_scaled_too_unless_told_otherwise(init: str, positions: bool) -> None:
    """By default, on every form: with positions a copied norm alone would leave longer tokens."""
    for cls, shape in ((Patch, (3, 8, 8)), (Conv1d, (2, 40)), (Columns, (5,))):
        x = 3 * torch.randn(8, *shape)
        embedder = build(cls, task(*shape), Body(positions=positions), init=init)
        embedder.calibrate(x, 20.0)
        assert embedder.norm is not None
        assert mean_norm(embedder(x).x_BND) == pytest.approx(20.0, rel=1e-4)


def test_calibration_leaves_a_copied_norm_alone_if_asked() -> None:
    x = torch.randn(4, 3, 8, 8)
    for scale in ("auto", "none"):
        embedder = build(Patch, task(3, 8, 8), scale=scale)
        before = embedder(x).x_BND
        embedder.calibrate(x, 20.0)
        assert torch.equal(embedder(x).x_BND, before)
    embedder = build(Patch, task(3, 8, 8), scale="source")
    kernel = embedder.projection.weight.clone()
    embedder.calibrate(x, 20.0)
    assert mean_norm(embedder(x).x_BND) == pytest.approx(20.0, rel=1e-4)
    assert torch.equal(embedder.projection.weight, kernel)


def test_calibration_without_a_known_norm_changes_nothing() -> None:
    embedder = build(Patch, task(3, 8, 8), Body(norm=False))
    x = torch.randn(4, 3, 8, 8)
    before = embedder(x).x_BND
    embedder.calibrate(x, None)
    assert torch.equal(embedder(x).x_BND, before)


def test_unreachable_norm_gives_the_closest_and_keeps_the_input_visible() -> None:
    positions = 10 * torch.eye(WIDTH)[:3]
    content = torch.zeros(1, 3, WIDTH)
    content[..., -1] = 1.0  # orthogonal to the positions: the norm is at least 10
    assert scale_to_norm(content, positions, 4.0) == pytest.approx(0.4, rel=1e-3)
    # Opposite to the positions, |10 - s| is 4 at s = 6 and 14; the larger root is taken.
    assert scale_to_norm(-positions[None] / 10, positions, 4.0) == pytest.approx(14.0)


# --- flat, and refusals --------------------------------------------------------------------------


def test_flat_is_one_token() -> None:
    tokens = build(Flat, task(2, 3, 4))(torch.arange(48.0).view(2, 2, 3, 4))
    assert tokens.grid == (1,)
    assert torch.equal(tokens.x_BND[:, 0], torch.arange(48.0).view(2, 24))


@pytest.mark.parametrize(
    ("cls", "shape", "message"),
    [
        (Patch, (1, 100), r"needs a grid \(C, H, W\); task 'toy' gives a sequence"),
        (Conv1d, (3, 8, 8), "gives a grid"),
        (Columns, (1, 100), "gives a sequence"),
        (Flat, (3, 8, 8), "backbone 'stub' reads tokens of width 12"),
    ],
)
def test_wrong_forms_are_refused(cls: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.grid(cls.Config(), task(*shape), BACKBONE_FACTS)


def test_backbones_without_patch_or_width_are_refused() -> None:
    text = BackboneFacts("words", "text", WIDTH, WIDTH)
    with pytest.raises(ValueError, match="has none"):
        Patch.grid(Patch.Config(), task(1, 8, 8), text)
    with pytest.raises(ValueError, match="one size"):
        Patch.grid(Patch.Config(size="backbone", patch=4), task(1, 8, 8), text)
    with pytest.raises(ValueError, match="use embedder 'flat'"):
        Columns.grid(Columns.Config(), task(4), BackboneFacts("identity", "any", 0, 0))


@pytest.mark.parametrize(
    ("shape", "part"), [((3, 8, 8), Picture), ((2, 46), RandomKernels), ((7,), Columns)]
)
def test_native_is_what_does_best_for_each_form(shape: tuple[int, ...], part: Any) -> None:
    task = TaskFacts("toy", shape, Target("classification", 2), {"train": 8})
    body = BackboneFacts("body", "image", WIDTH, WIDTH, patch=SIDE, grid=(8, 8))
    facts = Facts(task, body)
    context = Context(
        facts, torch.Generator().manual_seed(0), NONE, {"backbone": Body()}, task.target
    )
    found = NativeEmbedder(NativeEmbedder.Config(), context)
    assert type(found.part) is part
    assert NativeEmbedder.grid(NativeEmbedder.Config(), task, body) == found.part.token_grid
    assert found(torch.randn(2, *shape)).grid == found.part.token_grid
