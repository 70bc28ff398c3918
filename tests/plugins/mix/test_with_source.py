"""Mixup and CutMix with a source, against timm, the equations by hand, and a loop over tokens.

Shapes: B samples, N target tokens, M source tokens, D width.
"""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.data import mixup as timm_mixup
from torch import Tensor

from xmodal.batch import Sample, Tokens
from xmodal.errors import UsageError
from xmodal.interfaces import Context
from xmodal.testing.tiny import progress, random, tiny_context, tiny_facts
from xmodal_mix.cutmix import CutMix, block, paste, pasted
from xmodal_mix.mixup import Mixup, mix
from xmodal_mix.objective import Drawn
from xmodal_mix.places import common, counterparts

MIXERS = {"mixup": Mixup, "cutmix": CutMix}


def tokens(grid: tuple[int, ...], seed: int, batch: int = 2) -> Tokens:
    return Tokens(random(batch, prod(grid), 3, seed=seed).double(), grid)


def sample(grid: tuple[int, ...], head: str, batch: int = 2) -> Sample:
    first = 10 if head == "source" else 0
    return Sample(tokens(grid, first, batch), torch.arange(first, first + batch), head)


TARGET, SOURCE = sample((4, 6), "target"), sample((4, 6), "source")


def context(notes: list[str] | None = None, seed: int = 0) -> Context:
    note = (lambda line: None) if notes is None else notes.append
    return Context(
        tiny_facts(), torch.Generator().manual_seed(seed), tiny_context().store, note=note
    )


def mixer(name: str, lam: float | None = None, monkeypatch=None, notes=None, seed=0, **config):
    """A mixer; with ``lam`` its draw is that number."""
    if lam is not None:
        monkeypatch.setattr(Drawn, "draw", lambda *_: lam)
    return MIXERS[name](MIXERS[name].Config(**config), context(notes, seed))


def images(tokens_: Tokens) -> Tensor:
    """Tokens as images of one pixel a token, ``[B, D, H, W]``."""
    return tokens_.x_BND.transpose(1, 2).unflatten(2, tokens_.grid).clone()


# --- against timm --------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.25, 0.6180339887, 1 / 3, 0.999])
def test_mixup_of_tokens_is_timms_mixup_of_pixels(kept, monkeypatch):
    """timm mixes a batch with itself reversed; that reversed batch is the source here."""
    theirs = timm_mixup.Mixup(mixup_alpha=1.0, mode="batch", num_classes=2)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (kept, False))
    x_BND = TARGET.tokens.x_BND.clone().requires_grad_()
    leaf = Tokens(x_BND, (4, 6))
    mixed = mix(leaf, Tokens(x_BND.flip(0), (4, 6)), torch.tensor(1 - kept, dtype=torch.float64))
    # timm writes in place, so it gets a copy that still leads to its own leaf.
    y_BND = TARGET.tokens.x_BND.clone().requires_grad_()
    image, _ = theirs(images(Tokens(y_BND, (4, 6))), torch.tensor([0, 1]))
    torch.testing.assert_close(images(mixed), image, rtol=1e-14, atol=1e-14)
    probe = random(*image.shape, seed=5).double()
    (ours,) = torch.autograd.grad((images(mixed) * probe).sum(), x_BND)
    (expected,) = torch.autograd.grad((image * probe).sum(), y_BND)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("seed", range(12))
def test_cutmix_of_tokens_is_timms_cutmix_of_pixels(seed, monkeypatch):
    kept = float(np.random.default_rng(seed).uniform())
    theirs = timm_mixup.Mixup(cutmix_alpha=1.0, mixup_alpha=0.0, mode="batch", num_classes=2)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (kept, True))
    y_BND = TARGET.tokens.x_BND.clone().requires_grad_()
    image = images(Tokens(y_BND, (4, 6)))
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        centre = (np.random.randint(0, 4), np.random.randint(0, 6))
        np.random.seed(seed)
        kept_after = theirs._mix_batch(image)
        np.random.seed(seed)
        yl, yh, xl, xh = timm_mixup.rand_bbox((2, 3, 4, 6), kept)
    finally:
        np.random.set_state(state)
    box = block((4, 6), 1 - kept, centre)
    assert box == ((yl, yh), (xl, xh))
    x_BND = TARGET.tokens.x_BND.clone().requires_grad_()
    origin_N = pasted((4, 6), (4, 6), box)
    mixed, origin_BN = paste(Tokens(x_BND, (4, 6)), Tokens(x_BND.flip(0), (4, 6)), origin_N)
    assert torch.equal(images(mixed), image)
    assert (origin_BN[0] < 0).double().mean().item() == pytest.approx(kept_after)
    probe = random(*image.shape, seed=5).double()
    (ours,) = torch.autograd.grad((images(mixed) * probe).sum(), x_BND)
    (expected,) = torch.autograd.grad((image * probe).sum(), y_BND)
    assert torch.equal(ours, expected)


@given(
    seed=st.integers(0, 2**31),
    grid=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    # Closer to 1 than rounding, the root of a share is 1 in one library and not in the other.
    kept=st.floats(0, 1).map(lambda share: round(share, 9)),
)
@settings(max_examples=150, deadline=None)
def test_blocks_are_those_of_timm(seed, grid, kept):
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        centre = (np.random.randint(0, grid[0]), np.random.randint(0, grid[1]))
        np.random.seed(seed)
        yl, yh, xl, xh = timm_mixup.rand_bbox((1, 1, *grid), kept)
    finally:
        np.random.set_state(state)
    assert block(grid, 1 - kept, centre) == ((yl, yh), (xl, xh))


# --- worked by hand ------------------------------------------------------------------------------


def test_mixup_by_hand():
    x, s = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[5.0, 0.0], [-1.0, 8.0]]])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        pair = Tokens(x.to(dtype), (2,)), Tokens(s.to(dtype), (2,))
        mixed = mix(*pair, torch.tensor(0.25, dtype=torch.float64))
        assert mixed.x_BND.dtype == dtype
        assert mixed.x_BND.tolist() == [[[2.0, 1.5], [2.0, 5.0]]]


@pytest.mark.parametrize(
    ("grid", "lam", "centre", "expected"),
    [
        ((4, 4), 0.25, (2, 2), ((1, 3), (1, 3))),
        ((4, 4), 0.25, (0, 3), ((0, 1), (2, 4))),  # clipped at two borders
        ((5, 5), 0.36, (2, 2), ((1, 4), (1, 4))),  # odd sides
        ((10,), 0.3, (5,), ((4, 7),)),  # a span has λ of the length
        ((10,), 0.3, (0,), ((0, 2),)),
        ((10,), 0.05, (5,), ((5, 5),)),  # less than a token: empty
        ((4, 6), 1.0, (2, 3), ((0, 4), (0, 6))),
        ((4, 6), 0.0, (2, 3), ((2, 2), (3, 3))),
    ],
)
def test_blocks_by_hand(grid, lam, centre, expected):
    assert block(grid, lam, centre) == expected


@pytest.mark.parametrize("name", MIXERS)
def test_equations_1_and_2(name):
    made = [
        mixer(name, seed=seed, beta_target=2.0, beta_mix=0.3)(TARGET, SOURCE, progress())
        for seed in range(10)
    ]
    two_views = [views for views in made if len(views) == 2]
    assert len(two_views) > 5
    for plain, mixed in two_views:
        lam = mixed.log["lambda"]
        assert 0 < lam < 1
        assert [(t.head, t.weight) for t in plain.terms] == [("target", 2.0)]
        assert plain.tokens is TARGET.tokens
        assert [(t.head, t.weight) for t in mixed.terms] == [
            ("target", pytest.approx(0.3 * (1 - lam))),
            ("source", pytest.approx(0.3 * lam)),
        ]
        assert mixed.terms[0].y is TARGET.y
        assert mixed.terms[1].y is SOURCE.y


def test_the_weights_of_cutmix_count_what_was_replaced():
    for seed in range(20):
        *_, view = mixer("cutmix", seed=seed)(TARGET, SOURCE, progress())
        if view.origin_BN is None:
            assert view.log["k"] == 0
            continue
        assert ((view.origin_BN >= 0).sum(1) == view.log["k"]).all()
        assert view.log["lambda"] == pytest.approx(view.log["k"] / 24)
        own = view.origin_BN < 0
        expected = torch.where(own.unsqueeze(2), TARGET.tokens.x_BND, SOURCE.tokens.x_BND)
        assert torch.equal(view.tokens.x_BND, expected)


# --- edges of λ ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXERS)
def test_nothing_mixed_is_one_view_of_both_weights(name, monkeypatch):
    (only,) = mixer(name, 0.0, monkeypatch, beta_mix=0.3)(TARGET, SOURCE, progress())
    assert only.tokens is TARGET.tokens
    assert [t.weight for t in only.terms] == [pytest.approx(1.3)]
    assert only.log["lambda"] == 0


def test_all_mixed_is_the_source_with_its_loss_alone(monkeypatch):
    _, mixed = mixer("mixup", 1.0, monkeypatch)(TARGET, SOURCE, progress())
    assert torch.equal(mixed.tokens.x_BND, SOURCE.tokens.x_BND)
    assert [(t.head, t.weight) for t in mixed.terms] == [("source", 1.0)]


def test_a_block_of_everything_is_the_source_with_its_loss_alone(monkeypatch):
    module = mixer("cutmix", 1.0, monkeypatch)
    monkeypatch.setattr(module, "_box", lambda *_: ((0, 4), (0, 6)))
    _, mixed = module(TARGET, SOURCE, progress())
    assert torch.equal(mixed.tokens.x_BND, SOURCE.tokens.x_BND)
    assert [(t.head, t.weight) for t in mixed.terms] == [("source", 1.0)]


@pytest.mark.parametrize("name", MIXERS)
def test_zero_weights_drop_their_views(name, monkeypatch):
    assert len(mixer(name, 0.5, monkeypatch, beta_mix=0)(TARGET, SOURCE, progress())) == 1
    (only,) = mixer(name, 0.5, monkeypatch, beta_target=0)(TARGET, SOURCE, progress())
    assert len(only.terms) == 2
    assert "lambda" in only.log


# --- the draw of λ -------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_has_the_distribution_it_says(alpha):
    from scipy.stats import beta, kstest

    generator = torch.Generator().manual_seed(3)
    config = Drawn(alpha=alpha)
    drawn = [config.draw(progress(epoch=1), generator) for _ in range(2000)]
    assert kstest(drawn, beta(alpha, alpha).cdf).pvalue > 0.01
    # The test would notice another exponent.
    assert kstest(drawn, beta(1.4 * alpha, 1.4 * alpha).cdf).pvalue < 0.01


def test_fading_follows_the_epochs():
    for epoch, share in ((0, 1.0), (1, 0.75), (3, 0.25)):
        constant, fading = (
            Drawn(fade=fade).draw(progress(epoch=epoch), torch.Generator().manual_seed(1))
            for fade in ("none", "linear")
        )
        assert fading == pytest.approx(share * constant)


@pytest.mark.parametrize("name", MIXERS)
def test_only_the_components_generator_decides(name):
    def views(seed: int) -> Tensor:
        torch.manual_seed(seed)
        np.random.seed(seed)
        return mixer(name, seed=4)(TARGET, SOURCE, progress())[-1].tokens.x_BND

    assert torch.equal(views(0), views(1))
    assert not torch.equal(
        views(0), mixer(name, seed=5)(TARGET, SOURCE, progress())[-1].tokens.x_BND
    )


# --- grids that differ ---------------------------------------------------------------------------


def by_loop(target: tuple[int, ...], source: tuple[int, ...]) -> list[int]:
    """The rule of ``counterparts``, place by place."""
    found = []
    for flat, place in enumerate(np.ndindex(*target)):
        if len(target) != len(source):
            found.append(flat if flat < prod(source) else -1)
        elif all(at < side for at, side in zip(place, source, strict=True)):
            found.append(int(np.ravel_multi_index(place, source)))
        else:
            found.append(-1)
    return found


GRIDS = [((4, 6), (4, 6)), ((4, 6), (3, 5)), ((4, 6), (6, 6)), ((4, 6), (10,)), ((4, 6), (4,))]
GRIDS += [((10,), (4,)), ((10,), (16,)), ((10,), (3, 3)), ((10,), (4, 4)), ((2, 3, 4), (7,))]


@pytest.mark.parametrize(("target", "source"), GRIDS)
def test_counterparts_and_the_common_block(target, source):
    place = counterparts(target, source)
    assert place.flatten().tolist() == by_loop(target, source)
    region = common(target, source)
    inside = place[tuple(slice(side) for side in region)]
    assert inside.shape == region
    assert (inside >= 0).all()
    assert prod(region) > 0


@pytest.mark.parametrize(("target", "source"), GRIDS)
@pytest.mark.parametrize("name", MIXERS)
def test_tokens_without_a_counterpart_stay_and_count(name, target, source):
    notes: list[str] = []
    one, other = sample(target, "target"), sample(source, "source")
    place_N = torch.tensor(by_loop(target, source))
    module = mixer(name, notes=notes)
    for _ in range(12):
        *_, view = module(one, other, progress())
        changed_N = (view.tokens.x_BND != one.tokens.x_BND).any(2).all(0)
        assert not (changed_N & (place_N < 0)).any()
        lam = view.log["lambda"]
        if name == "cutmix":
            assert lam == pytest.approx(changed_N.double().mean().item())
            continue
        # Σ of the blend's weights over all tokens is λ.
        met_N = place_N >= 0
        blend = lam / met_N.double().mean().item()
        there_BND = other.tokens.x_BND[:, place_N[met_N]]
        expected_BND = (1 - blend) * one.tokens.x_BND[:, met_N] + blend * there_BND
        torch.testing.assert_close(view.tokens.x_BND[:, met_N], expected_BND)
    full = common(target, source) == target
    assert len(notes) == (0 if target == source or (name == "cutmix" and full) else 1)


# --- conduct -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXERS)
def test_half_precision_tokens_stay_half(name):
    low = Sample(Tokens(TARGET.tokens.x_BND.bfloat16(), (4, 6)), TARGET.y, "target")
    for source in (SOURCE, sample((3, 5), "source")):
        assert mixer(name)(low, source, progress())[-1].tokens.x_BND.dtype == torch.bfloat16


@pytest.mark.parametrize("name", MIXERS)
def test_one_sample_mixes_with_its_source(name):
    views = mixer(name)(sample((4, 6), "target", 1), sample((4, 6), "source", 1), progress())
    assert len(views) == 2


@pytest.mark.parametrize("name", MIXERS)
def test_a_missing_source_is_named(name):
    with pytest.raises(UsageError, match=f"mixer '{name}' needs source samples"):
        mixer(name)(TARGET, None, progress())


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0},
        {"alpha": -1},
        {"beta_mix": -1},
        {"fade": "cosine"},
        {"lam": 0.5},
        {"beta_target": 0, "beta_mix": 0},
    ],
)
@pytest.mark.parametrize("name", MIXERS)
def test_wrong_settings_are_refused(name, wrong):
    with pytest.raises(ValidationError):
        MIXERS[name].Config(**wrong)
