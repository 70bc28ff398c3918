"""Mixers of the target alone: Mixup, masking, repetition, augmentation of tokens.

Shapes: B samples, N tokens, D width, K outputs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torch.nn import functional

from xmodal.batch import Sample, Tokens
from xmodal.interfaces import Context
from xmodal.plugins import registry
from xmodal.testing.tiny import (
    TinyScheduler,
    TinySelector,
    progress,
    random,
    tiny_context,
    tiny_facts,
    tiny_target,
)
from xmodal_mix.mixup import TargetMixup
from xmodal_mix.objective import Drawn
from xmodal_mix.repeat import Repeat
from xmodal_mix.target_mask import TargetMask
from xmodal_mix.token_augment import TokenAugment

N, D = 24, 16


def sample(batch: int = 4, y: Tensor | None = None, seed: int = 0) -> Sample:
    x_BND = random(batch, N, D, seed=seed).double()
    return Sample(Tokens(x_BND, (4, 6)), torch.arange(batch) if y is None else y, "target")


def made(component, kind="classification", notes=None, seed=0, parts=None, **config):
    facts = tiny_facts(target=tiny_target(kind))
    note = (lambda line: None) if notes is None else notes.append
    generator = torch.Generator().manual_seed(seed)
    surroundings = Context(facts, generator, tiny_context().store, parts or {}, note=note)
    return component(component.Config(**config), surroundings)


# --- target-mixup --------------------------------------------------------------------------------


def test_target_mixup_by_hand(monkeypatch):
    monkeypatch.setattr(Drawn, "draw", lambda *_: 0.25)
    target = sample(3)
    plain, mixed = made(TargetMixup, beta_target=2.0, beta_mix=0.5)(target, None, progress())
    x_BND = target.tokens.x_BND
    assert plain.tokens is target.tokens
    assert [t.weight for t in plain.terms] == [2.0]
    partner = x_BND[[2, 0, 1]]
    torch.testing.assert_close(mixed.tokens.x_BND, 0.75 * x_BND + 0.25 * partner)
    assert [(t.y.tolist(), t.weight) for t in mixed.terms] == [
        ([0, 1, 2], 0.5 * 0.75),
        ([2, 0, 1], 0.5 * 0.25),
    ]


def _term_loss(view, prediction: Tensor, each) -> Tensor:
    return sum(t.weight * each(prediction, t.y).mean() for t in view.terms)


def test_two_terms_are_timms_soft_labels():
    """Of a batch of two the neighbour is timm's partner, the reversed batch."""
    target = sample(2, torch.tensor([3, 1]))
    _, view = made(TargetMixup)(target, None, progress())
    lam = view.log["lambda"]
    logits = random(2, 5, seed=3).double().requires_grad_()
    ours = _term_loss(view, logits, lambda p, y: functional.cross_entropy(p, y, reduction="none"))
    soft = mixup_target(target.y, 5, 1 - lam).double()
    theirs = SoftTargetCrossEntropy()(logits, soft)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    (a,), (b,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["multi-label", "regression", "dense"])
def test_two_terms_pull_as_the_mixed_label_does(kind):
    """Exactly so for losses whose gradient is linear in the label."""
    shape = {"multi-label": (3, 4), "regression": (3, 2), "dense": (3, 2, 5, 6)}[kind]
    y = (random(*shape, seed=1) > 0).double() if kind == "multi-label" else random(*shape, seed=1)
    y = y.double()
    _, view = made(TargetMixup, kind)(sample(3, y), None, progress())
    lam = view.log["lambda"]
    loss = functional.mse_loss
    if kind == "multi-label":
        loss = functional.binary_cross_entropy_with_logits
    p = random(*shape, seed=2).double().requires_grad_()
    ours = _term_loss(view, p, lambda a, b: loss(a, b, reduction="none").flatten(1).mean(1))
    mixed = loss(p, (1 - lam) * y + lam * y.roll(1, 0))
    (a,), (b,) = torch.autograd.grad(ours, p), torch.autograd.grad(mixed, p)
    torch.testing.assert_close(a, b)


def test_the_gradient_reaches_both_samples(monkeypatch):
    monkeypatch.setattr(Drawn, "draw", lambda *_: 0.25)
    target = sample(3)
    x_BND = target.tokens.x_BND.requires_grad_()
    _, mixed = made(TargetMixup)(target, None, progress())
    (found,) = torch.autograd.grad(mixed.tokens.x_BND[1].sum(), x_BND)
    assert found[:, 0, 0].tolist() == [0.25, 0.75, 0.0]


def test_one_sample_has_no_pair():
    notes: list[str] = []
    (only,) = made(TargetMixup, notes=notes)(sample(1), None, progress())
    assert [t.weight for t in only.terms] == [2.0]
    assert only.log == {"lambda": 0.0}
    assert len(notes) == 1


# --- target-mask ---------------------------------------------------------------------------------


def masker(k: int, **config) -> TargetMask:
    parts = {
        "selector": TinySelector(TinySelector.Config(), tiny_context()),
        "scheduler": TinyScheduler(TinyScheduler.Config(k=k), tiny_context()),
    }
    return made(TargetMask, parts=parts, **config)


@pytest.mark.parametrize("fill", ["zero", "mean", "learned"])
def test_the_lowest_ranked_tokens_are_masked(fill):
    target, module = sample(), masker(9, fill=fill)
    plain, masked = module(target, None, progress())
    x_BND = target.tokens.x_BND
    lowest = x_BND.sum(2).topk(9, dim=1, largest=False).indices
    gone_BN = torch.zeros(4, N, dtype=torch.bool).scatter_(1, lowest, True)
    filler = {"zero": torch.zeros(()), "mean": x_BND.mean(1, keepdim=True)}.get(fill)
    filler = module.token_D.detach().double() if filler is None else filler
    expected = torch.where(gone_BN.unsqueeze(2), filler.double(), x_BND)
    torch.testing.assert_close(masked.tokens.x_BND, expected, rtol=0, atol=1e-6)
    assert masked.log == {"k": 9.0, "lambda": 9 / N}
    assert [t.weight for t in plain.terms] == [1.0]
    assert plain.tokens is target.tokens


@pytest.mark.parametrize(("weight", "expected"), [("kept", 0.3 * 15 / 24), ("whole", 0.3)])
def test_the_weight_of_the_masked_view(weight, expected):
    _, masked = masker(9, weight=weight, beta_mix=0.3)(sample(), None, progress())
    assert [(t.head, t.weight) for t in masked.terms] == [("target", pytest.approx(expected))]


def test_the_kept_weight_is_that_of_patch_replacement_without_a_source_loss():
    replace_ = registry().load("mixer", "patch-replace")
    parts = {
        "selector": TinySelector(TinySelector.Config(), tiny_context()),
        "scheduler": TinyScheduler(TinyScheduler.Config(k=9), tiny_context()),
    }
    source = Sample(sample(seed=1).tokens, torch.arange(4), "source")
    theirs = made(replace_, parts=parts, source_term=False)(sample(), source, progress())
    ours = masker(9)(sample(), None, progress())
    weights = [[(t.head, t.weight) for t in v.terms] for v in theirs]
    assert weights == [[(t.head, t.weight) for t in v.terms] for v in ours]
    # The kept tokens are the same too.
    own_BN = theirs[1].origin_BN < 0
    assert torch.equal(theirs[1].tokens.x_BND[own_BN], ours[1].tokens.x_BND[own_BN])


def test_masks_of_nothing_and_of_everything():
    (only,) = masker(0)(sample(), None, progress())
    assert [t.weight for t in only.terms] == [2.0]
    (only,) = masker(N)(sample(), None, progress())
    assert [t.weight for t in only.terms] == [1.0]
    assert only.log == {"k": float(N), "lambda": 1.0}
    _, masked = masker(N, weight="whole")(sample(), None, progress())
    assert masked.tokens.x_BND.abs().sum() == 0


def test_the_gate_learns_from_masking():
    gate = registry().load("selector", "gate")
    parts = {
        "selector": made(gate),
        "scheduler": TinyScheduler(TinyScheduler.Config(k=9), tiny_context()),
    }
    float32 = replace(sample(), tokens=Tokens(sample().tokens.x_BND.float(), (4, 6)))
    gradients = {}
    for fill in ("zero", "mean", "learned"):
        module = made(TargetMask, parts=parts, fill=fill)
        module.zero_grad()
        _, masked = module(float32, None, progress())
        (masked.tokens.x_BND * random(4, N, D, seed=8)).sum().backward()
        gradients[fill] = module.selector.network[0].weight.grad.clone()
        assert gradients[fill].abs().sum() > 0
    assert "token_D" in dict(module.named_parameters())
    assert module.token_D.grad.abs().sum() > 0


# --- repeat --------------------------------------------------------------------------------------


def test_repeating_gives_equal_tokens_and_weights():
    target = sample()
    views = made(Repeat, times=3, weight=0.5)(target, None, progress())
    assert len(views) == 3
    assert all(v.tokens is target.tokens for v in views)
    assert [[(t.y is target.y, t.weight) for t in v.terms] for v in views] == [[(True, 0.5)]] * 3


# --- token-augment -------------------------------------------------------------------------------

OFF = {"difference": 0, "interpolate": 0, "noise": 0, "drop": 0}


def augmented(target: Sample, kind="classification", seed=0, **config) -> Tensor:
    views = made(TokenAugment, kind, seed=seed, **{**OFF, **config})(target, None, progress())
    assert [[(t.y is target.y, t.weight) for t in v.terms] for v in views] == [[(True, 1.0)]] * 2
    assert views[0].tokens is target.tokens
    return views[1].tokens.x_BND


def test_noise_has_the_scale_of_each_channel():
    scale_D = torch.logspace(-2, 2, D).double()
    x_BND = random(40, N, D).double() * scale_D + 100
    target = Sample(Tokens(x_BND, (4, 6)), torch.zeros(40, dtype=torch.int64), "target")
    noise_BND = augmented(target, noise=0.3) - x_BND
    sigma_D = x_BND.std(dim=(0, 1), correction=0)
    torch.testing.assert_close(noise_BND.std(dim=(0, 1)), 0.3 * sigma_D, rtol=0.1, atol=0)
    assert (noise_BND.mean(dim=(0, 1)).abs() < 0.05 * sigma_D).all()
    # Independent between tokens and samples.
    assert noise_BND[0].sub(noise_BND[1]).abs().max() > 0
    assert noise_BND[:, 0].sub(noise_BND[:, 1]).abs().max() > 0


def test_the_scale_of_the_noise_is_a_constant():
    target = sample(3)
    x_BND = target.tokens.x_BND.requires_grad_()
    (found,) = torch.autograd.grad(augmented(target, noise=0.5).sum(), x_BND)
    assert torch.equal(found, torch.ones_like(found))


@pytest.mark.parametrize("fill", ["mean", "other"])
def test_dropped_tokens_become_the_filler(fill):
    target = sample(32)
    x_BND = target.tokens.x_BND
    out_BND = augmented(target, drop=0.25, fill=fill)
    lost_BN = (out_BND != x_BND).any(2)
    assert 0.2 < lost_BN.double().mean() < 0.3
    filler = x_BND.mean(1, keepdim=True).expand_as(x_BND) if fill == "mean" else x_BND.roll(1, 0)
    assert torch.equal(out_BND[lost_BN], filler[lost_BN])


@pytest.mark.parametrize("seed", range(5))
def test_differences_are_of_two_samples_of_the_class(seed):
    """MODALS: x + m (x_j − x_k), j ≠ k of the class of x."""
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    target = sample(6, y)
    x_BND = target.tokens.x_BND
    step_BND = (augmented(target, seed=seed, difference=0.5) - x_BND) / 0.5
    for i in range(6):
        mates = [j for j in range(6) if y[j] == y[i]]
        pairs = [x_BND[j] - x_BND[k] for j in mates for k in mates if j != k]
        if not pairs:
            assert step_BND[i].abs().max() == 0
        else:
            assert any(torch.allclose(step_BND[i], pair) for pair in pairs)


@pytest.mark.parametrize("seed", range(5))
def test_interpolation_is_towards_another_sample_of_the_class(seed):
    """MODALS: x + m (x_j − x), j of the class of x."""
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    target = sample(6, y)
    x_BND = target.tokens.x_BND
    out_BND = augmented(target, seed=seed, interpolate=0.25)
    for i in range(6):
        mates = [j for j in range(6) if y[j] == y[i] and j != i]
        wanted = [0.75 * x_BND[i] + 0.25 * x_BND[j] for j in mates] or [x_BND[i]]
        assert any(torch.allclose(out_BND[i], w) for w in wanted)


def test_partners_are_constants():
    target = sample(4, torch.tensor([0, 0, 0, 0]))
    x_BND = target.tokens.x_BND.requires_grad_()
    out_BND = augmented(target, difference=0.5, interpolate=0.25)
    (found,) = torch.autograd.grad(out_BND[0].sum(), x_BND)
    assert found[1:].abs().max() == 0
    torch.testing.assert_close(found[0], torch.full_like(found[0], 0.75))


def test_any_partner_for_labels_that_are_no_classes():
    target = sample(3, random(3, 2).double())
    out_BND = augmented(target, "regression", interpolate=0.25, partners="any")
    x_BND = target.tokens.x_BND
    for i in range(3):
        others = [0.75 * x_BND[i] + 0.25 * x_BND[j] for j in range(3) if j != i]
        assert any(torch.allclose(out_BND[i], other) for other in others)


def test_moves_are_left_out_loudly_without_classes():
    notes: list[str] = []
    target = sample(3, random(3, 2).double())
    module = made(TokenAugment, "regression", notes=notes, **{**OFF, "drop": 0.5, "difference": 9})
    _, view = module(target, None, progress())
    assert len(notes) == 1
    assert "not classes" in notes[0]
    mean = target.tokens.x_BND.mean(1, keepdim=True)
    moved = (view.tokens.x_BND != target.tokens.x_BND) & (view.tokens.x_BND != mean)
    assert not moved.any()


def test_a_recipe_that_would_change_nothing_is_refused():
    facts = tiny_facts(target=tiny_target("dense"))
    config = TokenAugment.Config(difference=0.1, noise=0, drop=0)
    (problem,) = TokenAugment.problems(config, facts)
    assert "would change nothing" in problem
    assert "example-grid" in problem
    assert not list(TokenAugment.problems(config, tiny_facts()))
    assert not list(TokenAugment.problems(TokenAugment.Config(), facts))


@pytest.mark.parametrize(
    ("batch", "config"),
    [
        (4, {"difference": 0.5}),  # four classes: no pair
        (4, {"interpolate": 0.5}),
        (1, {"difference": 0.5, "partners": "any"}),
        (2, {"drop": 1e-9}),  # no token dropped
    ],
)
def test_where_nothing_changes_there_is_one_view(batch, config):
    module = made(TokenAugment, **{**OFF, **config})
    (only,) = module(sample(batch), None, progress())
    assert [t.weight for t in only.terms] == [2.0]


def test_a_batch_of_one_takes_its_mean_for_want_of_another():
    target = sample(1)
    out_BND = augmented(target, drop=0.5, fill="other")
    lost_BN = (out_BND != target.tokens.x_BND).any(2)
    mean = target.tokens.x_BND.mean(1).expand(int(lost_BN.sum()), -1)
    torch.testing.assert_close(out_BND[lost_BN], mean)


def test_half_precision_stays_half():
    low = replace(sample(), tokens=Tokens(sample().tokens.x_BND.bfloat16(), (4, 6)))
    low = replace(low, y=torch.zeros(4, dtype=torch.int64))
    module = made(TokenAugment, interpolate=0.1)
    assert module(low, None, progress())[1].tokens.x_BND.dtype == torch.bfloat16
    for fill in ("mean", "learned"):
        assert masker(5, fill=fill)(low, None, progress())[1].tokens.x_BND.dtype == torch.bfloat16
    assert made(TargetMixup)(low, None, progress())[1].tokens.x_BND.dtype == torch.bfloat16


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "wrong"),
    [
        (TargetMixup, {"alpha": 0}),
        (TargetMixup, {"beta_target": 0, "beta_mix": 0}),
        (TargetMask, {"beta_target": 0}),
        (TargetMask, {"fill": "noise"}),
        (Repeat, {"times": 0}),
        (Repeat, {"weight": 0}),
        (TokenAugment, OFF),
        (TokenAugment, {"drop": 1.0}),
        (TokenAugment, {"noise": -0.1}),
        (TokenAugment, {"interpolate": 1.5}),
    ],
)
def test_wrong_settings_are_refused(component, wrong):
    with pytest.raises(ValidationError):
        component.Config(**wrong)
