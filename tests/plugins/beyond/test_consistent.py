"""Consistency of views: terms worked by hand, the model's loss against the formula, gradients.

Shapes: B samples, N tokens, D width, K classes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import SOURCE, TARGET, Batch, Progress, Sample, Term, Tokens, View
from xmodal.engine.model import TrainingModel
from xmodal.interfaces import Mixer, Settings
from xmodal.settings import Use
from xmodal.testing.tiny import (
    CLASSES,
    WIDTH,
    TinyScheduler,
    TinySelector,
    build,
    tiny_context,
    tiny_sample,
    tiny_tokens,
)
from xmodal_basics.losses import CrossEntropy
from xmodal_beyond.consistent import Consistent
from xmodal_pare.patch_replace import PatchReplace

N = 24
ROWS = 5


class Nothing(Mixer):
    """A mixer of target and source whose views are given."""

    needs_source = True

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        assert source is not None
        assert len(source.tokens.x_BND) == len(target.tokens.x_BND)
        doubled = Tokens(2 * target.tokens.x_BND, target.tokens.grid)
        return (View(doubled, (Term(target.head, target.y, 1.0),)),)


def at(epoch: int = 0, epochs: int = 10) -> Progress:
    return Progress(0, epoch, epochs, 0, 2)


def mixer(k: int = 6, base: dict[str, Any] | Use[Any] | None = None, **given: Any) -> Consistent:
    parts = {"selector": build(TinySelector), "scheduler": build(TinyScheduler, {"k": k})}
    config = Consistent.Config(base=base or "patch-replace", **given)
    return Consistent(config, tiny_context(components=parts))


def target(unlabelled: int = ROWS) -> Sample:
    further = tiny_tokens(batch=unlabelled, seed=9) if unlabelled else None
    return replace(tiny_sample(), unlabelled=further)


def terms(view: View) -> list[tuple[str, bool, float, int | None]]:
    return [(t.head, t.y is not None, round(float(t.weight), 6), t.like) for t in view.terms]


# --- the views -----------------------------------------------------------------------------------


def test_views_by_hand():
    """k = 6 of 24: λ = 1/4. Views 0 and 1 are PaRe's; 2 and 3 the unlabelled samples'."""
    given = target()
    views = mixer(beta_consistency=2.0)(given, tiny_sample(SOURCE), at())
    assert [terms(view) for view in views] == [
        [(TARGET, True, 1.0, None)],
        [(TARGET, True, 0.75, None), (SOURCE, True, 0.25, None)],
        [(TARGET, False, 0.0, 3)],
        [(TARGET, False, 1.5, 2)],
    ]
    assert given.unlabelled is not None
    assert views[2].tokens.x_BND is given.unlabelled.x_BND
    assert len(views[3].tokens.x_BND) == ROWS
    assert views[3].origin_BN is None
    replaced_B = (views[3].tokens.x_BND != given.unlabelled.x_BND).any(dim=2).sum(dim=1)
    assert replaced_B.tolist() == [6] * ROWS
    assert views[2].log == {"consistency weight": 1.5}
    assert views[1].log["k"] == 6


def test_labelled_views_are_the_bases_own():
    given, source = target(), tiny_sample(SOURCE)
    views = mixer()(given, source, at())
    own = mixer().base(given, source, at())
    for view, plain in zip(views[:2], own, strict=True):
        assert torch.equal(view.tokens.x_BND, plain.tokens.x_BND)
        assert terms(view) == terms(plain)


def test_symmetric_terms():
    views = mixer(back=0.5)(target(), tiny_sample(SOURCE), at())
    assert terms(views[2]) == [(TARGET, False, 0.375, 3)]
    assert terms(views[3]) == [(TARGET, False, 0.75, 2)]


def test_without_unlabelled_samples_the_labelled_views_agree():
    views = mixer()(target(0), tiny_sample(SOURCE), at())
    assert [terms(view) for view in views] == [
        [(TARGET, True, 1.0, None)],
        [(TARGET, True, 0.75, None), (SOURCE, True, 0.25, None), (TARGET, False, 0.75, 0)],
    ]
    both = mixer(back=1)(target(0), tiny_sample(SOURCE), at())
    assert terms(both[0]) == [(TARGET, True, 1.0, None), (TARGET, False, 0.75, 1)]


@pytest.mark.parametrize("unlabelled", [0, ROWS])
@pytest.mark.parametrize("given", [{"k": 0}, {"k": N}, {"beta_consistency": 0}])
def test_where_there_is_nothing_to_agree_on_only_the_base_is_left(given, unlabelled):
    """Nothing replaced, nothing of the target left (λ = 1), or no weight."""
    module, sample = mixer(**given), target(unlabelled)
    views = module(sample, tiny_sample(SOURCE), at())
    own = module.base(sample, tiny_sample(SOURCE), at())
    assert [terms(view) for view in views] == [terms(view) for view in own]


def test_the_target_loss_alone_of_the_base_may_be_off():
    """β1 = 0: the base gives no plain view, so one is added to agree with."""
    base = {"use": "patch-replace", "beta_target": 0}
    views = mixer(base=base)(target(0), tiny_sample(SOURCE), at())
    assert [terms(view)[-1] for view in views] == [
        (TARGET, False, 0.75, 1),
        (TARGET, False, 0.0, 0),
    ]
    views = mixer(base=base)(target(), tiny_sample(SOURCE), at())
    assert [terms(view)[-1] for view in views[1:]] == [
        (TARGET, False, 0.75, 2),
        (TARGET, False, 0.0, 1),
    ]


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_any_other_mixer_of_target_and_source(rows):
    """Without a logged lambda the weight is whole; the partners are as many as the samples."""
    chosen: Any = Use("nothing", Nothing, Settings())
    views = mixer(base=chosen)(target(rows), tiny_sample(SOURCE), at())
    assert [terms(view) for view in views[1:]] == [
        [(TARGET, False, 1.0, 2)],
        [(TARGET, False, 0.0, 1)],
    ]
    assert [len(view.tokens.x_BND) for view in views] == [3, rows, rows]


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_other_mixers_of_source_and_target(name):
    """Their λ is the source's share too; it is drawn, so the weight is read off the log."""
    module = mixer(base={"use": name}, beta_consistency=2.0)
    views = module(target(), tiny_sample(SOURCE), at(3))
    assert len(views) == 4
    assert [t.like for v in views[2:] for t in v.terms] == [3, 2]
    weight = float(views[3].terms[0].weight)
    assert weight == pytest.approx(float(views[2].log["consistency weight"]))
    assert 0 < weight < 2


def test_ramp_up():
    module = mixer(ramp_up=0.5)
    weights = [
        float(module(target(), tiny_sample(SOURCE), at(epoch))[3].terms[0].weight)
        for epoch in range(10)
    ]
    expected = [0.75 * math.exp(-5 * (1 - min(1, epoch / 5)) ** 2) for epoch in range(10)]
    assert weights == pytest.approx(expected)
    assert weights[0] == pytest.approx(0.75 * 0.0067, rel=0.01)


def test_parts_of_the_base_are_parts_of_the_mixer():
    module = mixer()
    assert isinstance(module.base, PatchReplace)
    assert module.base.selector in list(module.modules())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"base": "none"}, "does not mix target with source"),
        ({"base": "consistent"}, "does not mix target with source"),
        ({"base": "no-such-mixer"}, "no-such-mixer"),
        ({"base": {"use": "patch-replace", "replace": "first"}}, "replace"),
        ({"beta_consistency": -1}, "beta_consistency"),
        ({"ramp_up": 2}, "ramp_up"),
        ({"back": -0.1}, "back"),
    ],
)
def test_wrong_settings_say_what_is_wrong(wrong, words):
    with pytest.raises(ValidationError, match=words):
        Consistent.Config(**wrong)


# --- the loss ------------------------------------------------------------------------------------


class Logits(nn.Module):
    """Mean token through one layer; as backbone, embedder and predictor see each other."""

    reads_samples = False

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: Tokens) -> Tensor:
        return self.layer(features.x_BND.tanh().mean(dim=1))


class FixedViews(nn.Module):
    """Gives back the views it holds."""

    def __init__(self, views: tuple[View, ...]) -> None:
        super().__init__()
        self.held = views

    def forward(self, *_: Any) -> tuple[View, ...]:
        return self.held


class Body(nn.Module):
    """Passes tokens on."""

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens

    def embedding_parameters(self) -> list[nn.Parameter]:
        return []


@pytest.mark.parametrize("back", [0.0, 1.0])
def test_the_models_loss_and_gradient_are_the_formula(back):
    """L_con = w [KL(sg p^t || p^mt) + b KL(sg p^mt || p^t)], with the stopped sides constant."""
    sample = tiny_sample()
    made = mixer(back=back, beta_consistency=2.0)(target(), tiny_sample(SOURCE), at())
    # Only the consistency views, renumbered.
    views = tuple(
        View(v.tokens, tuple(replace(t, like=t.like - 2) for t in v.terms if t.like is not None))
        for v in made[2:]
    )
    torch.manual_seed(0)
    head = Logits()
    parts: Any = [Body(), Body(), FixedViews(views), head, build(CrossEntropy), nn.Identity()]
    model = TrainingModel(*parts)
    loss, log = model(Batch(sample.tokens.x_BND, sample.y), at())
    loss.backward()
    found = head.layer.weight.grad.clone()
    assert ("view0/target agreement" in log) == (back > 0)

    head.zero_grad()
    plain, mixed = head(views[0].tokens), head(views[1].tokens)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (q.softmax(1) * (q.softmax(1).log() - p.softmax(1).log())).sum(1).mean()

    expected = 1.5 * kl(mixed, plain.detach()) + 1.5 * back * kl(plain, mixed.detach())
    torch.testing.assert_close(loss, expected)
    expected.backward()
    torch.testing.assert_close(found, head.layer.weight.grad)
    # Without the stop the gradient is another one.
    head.zero_grad()
    plain, mixed = head(views[0].tokens), head(views[1].tokens)
    (1.5 * kl(mixed, plain) + 1.5 * back * kl(plain, mixed)).backward()
    assert not torch.allclose(found, head.layer.weight.grad, rtol=1e-2)


def test_only_the_mixed_side_learns_without_back():
    """The stopped plain prediction sends no gradient to the plain tokens."""
    x_BND = tiny_tokens(batch=ROWS, seed=9).x_BND.requires_grad_()
    given = replace(tiny_sample(), unlabelled=Tokens(x_BND, (4, 6)))
    for back in (0.0, 1.0):
        plain, mixed = mixer(back=back)(given, tiny_sample(SOURCE), at())[2:]
        head = Logits()
        leaf = plain.tokens.x_BND.detach().requires_grad_()
        predictions = [
            head(Tokens(leaf, (4, 6))),
            head(Tokens(mixed.tokens.x_BND.detach(), (4, 6))),
        ]
        loss = torch.zeros(())
        for number, view in enumerate((plain, mixed)):
            for term in view.terms:
                other = predictions[1 - number].detach()
                divergence = functional.kl_div(
                    predictions[number].log_softmax(1), other.softmax(1), reduction="batchmean"
                )
                loss = loss + term.weight * divergence
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        moved = gradient is not None and float(gradient.norm()) > 0
        assert moved == (back > 0)
