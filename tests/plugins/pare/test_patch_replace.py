"""Patch replacement against hand-worked cases and a plain per-sample loop of Algorithm 1.

Shapes: B samples, N target tokens, M source tokens, K replaced tokens, D width.
"""

from __future__ import annotations

import itertools
from dataclasses import replace as changed

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from xmodal.batch import Progress, Sample, Selection, Tokens
from xmodal.errors import UsageError
from xmodal.interfaces import (
    BackboneFacts,
    Context,
    Facts,
    Scheduler,
    Selector,
    Settings,
    SourceFacts,
    Target,
    TaskFacts,
)
from xmodal.ops import hard_subset
from xmodal_pare.gate import Gate
from xmodal_pare.patch_replace import PatchReplace, _fill, _in_order
from xmodal_pare.random_selector import RandomSelector

FACTS = Facts(
    TaskFacts("toy", (1, 4, 4), Target("classification", 2), {"train": 8}),
    BackboneFacts("tiny", "image", 4, 4, grid=(4, 4)),
    SourceFacts("toy-source", "image", Target("classification", 3)),
    grid=(4, 4),
)


class FixedK(Scheduler):
    """Always the same k, remembering the N it was asked about."""

    def __init__(self, k: int) -> None:
        self.k, self.asked = k, []

    def __call__(self, progress: Progress, num_tokens: int) -> int:
        self.asked.append(num_tokens)
        return min(self.k, num_tokens)


class FirstEntry(Selector):
    """Scores a token by its first entry; the mask's gradient reaches ``gain``."""

    def __init__(self) -> None:
        super().__init__(Settings(), context())
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tokens, k: int, progress: Progress) -> Selection:
        scores_BN = tokens.x_BND[..., 0].detach()
        hard_BN = torch.zeros_like(scores_BN).scatter_(1, scores_BN.topk(k, dim=1).indices, 1.0)
        return Selection(hard_BN * self.gain, scores_BN, k)


def context(notes: list[str] | None = None, **components) -> Context:
    note = (lambda line: None) if notes is None else notes.append
    generator = torch.Generator().manual_seed(0)
    return Context(FACTS, generator, store=None, components=components, note=note)


def mixer(k: int, selector: Selector | None = None, notes=None, **config) -> PatchReplace:
    parts = {"selector": selector or FirstEntry(), "scheduler": FixedK(k)}
    return PatchReplace(PatchReplace.Config(**config), context(notes, **parts))


def at(epoch: int = 0) -> Progress:
    return Progress(0, epoch, 20, 0, 5)


def sample(scores: list[list[float]], head: str, width: int = 3) -> Sample:
    """Tokens whose first entry is the given score; the others name the token."""
    score_BN = torch.tensor(scores)
    batch, count = score_BN.shape
    sign = 1.0 if head == "target" else -1.0
    name_BN = sign * (torch.arange(batch * count, dtype=torch.float32) + 1).view(batch, count)
    x_BND = torch.stack([score_BN] + [name_BN] * (width - 1), dim=2)
    return Sample(Tokens(x_BND, (count,)), torch.arange(batch), head)


# Two samples of four tokens. k = 2: rows keep their two largest, and take the source's two largest.
TARGET = sample([[0.9, 0.1, 0.8, 0.2], [0.1, 0.2, 0.3, 0.4]], "target")
SOURCE = sample([[0.3, 0.7, 0.1, 0.6], [0.9, 0.2, 0.8, 0.1]], "source")


def names(tokens: Tokens) -> list[list[float]]:
    """Which token stands where: 1..8 the target's, -1..-8 the source's."""
    return tokens.x_BND[..., 1].detach().tolist()


# --- worked by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # Row 1 keeps slots 0 and 2 and gets source tokens 1 and 3; row 2 keeps 2 and 3.
        ({"match": "position"}, [[1, -2, 3, -4], [-5, -7, 7, 8]]),
        # Row 1: the lowest slot (1) gets the best source token (1), slot 3 the next (3).
        ({"match": "score"}, [[1, -2, 3, -4], [-5, -7, 7, 8]]),
        ({"match": "same-position"}, [[1, -2, 3, -4], [-5, -6, 7, 8]]),
        # Now slots 0 and 2 of row 1 and slots 2 and 3 of row 2 give way.
        ({"replace": "highest", "match": "position"}, [[-2, 2, -4, 4], [5, 6, -5, -7]]),
        # Row 1 in ascending order: slot 2 (0.8) gets source 1 (0.7), slot 0 (0.9) source 3 (0.6).
        ({"replace": "highest", "match": "score"}, [[-4, 2, -2, 4], [5, 6, -5, -7]]),
    ],
)
def test_two_by_four_tokens_by_hand(rules, expected):
    views = mixer(2, **rules)(TARGET, SOURCE, at())
    assert names(views[1].tokens) == expected
    origin = [[-int(n) - 1 if n < 0 else -1 for n in row] for row in expected]
    origin[1] = [o - 4 if o >= 0 else -1 for o in origin[1]]
    assert views[1].origin_BN.tolist() == origin
    assert views[1].tokens.grid == TARGET.tokens.grid
    assert views[0].tokens is TARGET.tokens


def test_score_and_position_differ_where_orders_differ():
    # The lowest slot is 3, then 1; the best source token is 0, then 3.
    target = sample([[0.9, 0.2, 0.8, 0.1]], "target")
    source = sample([[0.7, 0.1, 0.2, 0.6]], "source")
    assert names(mixer(2, match="position")(target, source, at())[1].tokens) == [[1, -1, 3, -4]]
    assert names(mixer(2, match="score")(target, source, at())[1].tokens) == [[1, -4, 3, -1]]


def test_equations_1_and_2():
    views = mixer(1, beta_target=2.0, beta_mix=0.3)(TARGET, SOURCE, at())
    plain, mixed = views
    assert [(t.head, t.weight) for t in plain.terms] == [("target", 2.0)]
    # λ = k/N = 1/4
    assert [t.head for t in mixed.terms] == ["target", "source"]
    assert [t.weight for t in mixed.terms] == pytest.approx([0.3 * 0.75, 0.3 * 0.25])
    assert mixed.terms[0].y is TARGET.y
    assert mixed.terms[1].y is SOURCE.y
    assert mixed.log == {"k": 1.0, "lambda": 0.25}


def test_without_the_source_loss():
    _, mixed = mixer(1, source_term=False)(TARGET, SOURCE, at())
    assert [(t.head, t.weight) for t in mixed.terms] == [("target", 0.75)]


def test_late_rules_take_over():
    late = {"epoch": 10, "replace": "highest", "match": "score"}
    module = mixer(2, late=late)
    early, later = (module(TARGET, SOURCE, at(e))[1].tokens for e in (9, 10))
    assert names(early) == [[1, -2, 3, -4], [-5, -7, 7, 8]]
    assert names(later) == [[-4, 2, -2, 4], [5, 6, -5, -7]]


# --- edges of k ----------------------------------------------------------------------------------


def test_at_k_0_the_two_views_are_one():
    views = mixer(0, beta_target=1.0, beta_mix=0.3)(TARGET, SOURCE, at())
    assert len(views) == 1
    assert views[0].tokens is TARGET.tokens
    assert views[0].terms[0].weight == pytest.approx(1.3)
    assert views[0].log == {"k": 0.0, "lambda": 0.0}


def test_at_k_n_all_is_source():
    views = mixer(4, match="position")(TARGET, SOURCE, at())
    assert torch.equal(views[1].tokens.x_BND, SOURCE.tokens.x_BND)
    assert [(t.head, t.weight) for t in views[1].terms] == [("source", 1.0)]


def test_at_k_n_without_the_sources_loss_the_plain_view_is_left_and_says_so():
    views = mixer(4, source_term=False)(TARGET, SOURCE, at())
    assert len(views) == 1
    assert views[0].tokens is TARGET.tokens
    assert views[0].log == {"k": 4.0, "lambda": 1.0}


@pytest.mark.parametrize("match", ["position", "score"])
def test_a_source_with_fewer_tokens(match):
    notes: list[str] = []
    module = mixer(3, notes=notes, match=match)
    source = sample([[0.3, 0.7], [0.9, 0.2]], "source")
    for _ in range(2):
        views = module(TARGET, source, at())
    assert module._scheduler.asked == [2, 2]
    # λ stays a share of the target's tokens.
    assert views[1].log == {"k": 2.0, "lambda": 0.5}
    inserted = sorted(n for n in names(views[1].tokens)[0] if n < 0)
    assert inserted == [-2, -1]
    assert len(notes) == 1
    assert "2 source tokens for 4 target tokens" in notes[0]


def test_a_source_with_more_tokens():
    source = sample([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] * 2, "source")
    views = mixer(4)(TARGET, source, at())
    assert names(views[1].tokens)[0] == [-3, -4, -5, -6]


def test_zero_weights_drop_their_views():
    assert len(mixer(2, beta_mix=0)(TARGET, SOURCE, at())) == 1
    (only,) = mixer(2, beta_target=0)(TARGET, SOURCE, at())
    assert only.origin_BN is not None


# --- against Algorithm 1, sample by sample -------------------------------------------------------


def algorithm_1(x_ND: Tensor, s_MD: Tensor, keep_N: Tensor, take_M: Tensor) -> Tensor:
    """One sample of Algorithm 1: multiply by the masks, then fill the zeros in order."""
    x_mix = x_ND.clone() * keep_N[:, None]
    x_s = s_MD * take_M[:, None]
    slots = [i for i in range(len(keep_N)) if keep_N[i] == 0]
    picks = [j for j in range(len(take_M)) if take_M[j] == 1]
    rows = [x_mix[i] for i in range(len(keep_N))]
    for slot, pick in zip(slots, picks, strict=True):
        rows[slot] = x_s[pick]
    return torch.stack(rows)


def random_sample(head: str, batch: int, count: int, seed: int) -> Sample:
    x_BND = torch.randn(batch, count, 4, generator=torch.Generator().manual_seed(seed))
    return Sample(Tokens(x_BND, (count,)), torch.arange(batch), head)


def gate_mixer(k: int, **config) -> PatchReplace:
    torch.manual_seed(1)
    return mixer(k, Gate(Gate.Config(), context()), **config)


@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    share=st.floats(0.05, 1),
)
@settings(max_examples=40, deadline=None)
def test_mixed_tokens_and_gradients_are_those_of_algorithm_1(seed, n, m, share):
    k = max(1, round(share * min(n, m)))
    target, source = random_sample("target", 3, n, seed), random_sample("source", 3, m, seed + 1)
    x_BND = target.tokens.x_BND.requires_grad_(True)
    module = gate_mixer(k)
    gate = module.selector
    probe_BND = torch.randn(3, n, 4, generator=torch.Generator().manual_seed(seed + 2))
    here = module(target, source, at())[1].tokens.x_BND
    wanted = (x_BND, *gate.parameters())
    # At k = N no target token is left and the gate has no say over them; hence the zeros.
    zeros = {"allow_unused": True, "materialize_grads": True}
    gradients = torch.autograd.grad((here * probe_BND).sum(), wanted, **zeros)

    gate._generator.manual_seed(0)
    keep_BN = gate(target.tokens, n - k, at()).mask_BN
    take_BM = gate(source.tokens, k, at()).mask_BN
    rows = zip(x_BND, source.tokens.x_BND, keep_BN, take_BM, strict=True)
    there = torch.stack([algorithm_1(*row) for row in rows])
    assert torch.equal(here, there)
    expected = torch.autograd.grad((there * probe_BND).sum(), wanted, **zeros)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


class ByRank(FirstEntry):
    """The same, but of equal scores the first are chosen."""

    def forward(self, tokens: Tokens, k: int | Tensor, progress: Progress) -> Selection:
        scores_BN = tokens.x_BND[..., 0].detach()
        return Selection(hard_subset(scores_BN, k).to(self.gain) * self.gain, scores_BN, k)


class Looking(FixedK):
    """Keeps what it observes at its own k, given as a number."""

    def observe(self, mix, target, source, progress) -> None:
        self.seen = mix(min(self.k, source.x_BND.shape[1]))


def mixed_one_by_one(
    target: Tokens, source: Tokens, k: int, replace: str, match: str, gain: Tensor
) -> Tensor:
    """Algorithm 1 with every rule, token by token. Of equal scores the first come first."""
    mixed = []
    for x_ND, s_MD in zip(target.x_BND, source.x_BND, strict=True):
        falling = sorted(range(len(x_ND)), key=lambda i: -x_ND[i, 0].item())
        gone = falling[:k] if replace == "highest" else falling[len(falling) - k :]
        best = sorted(range(len(s_MD)), key=lambda i: -s_MD[i, 0].item())[:k]
        if match == "score":
            fills = dict(zip(sorted(gone, key=lambda i: x_ND[i, 0].item()), best, strict=True))
        elif match == "position":
            fills = dict(zip(sorted(gone), sorted(best), strict=True))
        else:
            fills = {i: i for i in gone}
        rows = []
        for i, token_D in enumerate(x_ND):
            new_D = s_MD[fills[i]].to(x_ND.dtype) if i in fills else token_D
            # The selector's factor is on what it chose; what it left out has none.
            chosen = match != "same-position" if i in fills else replace == "lowest"
            rows.append(new_D * gain.to(x_ND.dtype) if chosen else new_D)
        mixed.append(torch.stack(rows))
    return torch.stack(mixed)


RULES = [(r, m) for r in ("lowest", "highest") for m in ("position", "score", "same-position")]


@pytest.mark.parametrize(("replace", "match"), RULES)
@pytest.mark.parametrize("ties", [False, True])
def test_every_rule_and_every_k_is_algorithm_1_token_by_token(replace, match, ties):
    dtypes = itertools.product((torch.float64, torch.float32, torch.bfloat16), (8, 5, 11))
    for (dtype, m), k in itertools.product(dtypes, (1, 4, 7, 8)):
        if (m != 8 and match == "same-position") or k > m:
            continue
        generator = torch.Generator().manual_seed(k)
        x_BND, s_BMD = (torch.randn(3, n, 4, generator=generator).to(dtype) for n in (8, m))
        if ties:
            x_BND[..., 0], s_BMD[..., 0] = x_BND[..., 0].round(), s_BMD[..., 0].round()
        leaves = x_BND.requires_grad_(), s_BMD.requires_grad_()
        target, source = Tokens(x_BND, (8,)), Tokens(s_BMD, (m,))
        module = mixer(k, ByRank(), replace=replace, match=match)
        module._scheduler = Looking(k)
        view = module(
            Sample(target, torch.arange(3), "target"),
            Sample(source, torch.arange(3), "source"),
            at(),
        )[1]
        gain = module.selector.gain
        assert torch.equal(view.tokens.x_BND, module._scheduler.seen.x_BND)
        expected_BND = mixed_one_by_one(target, source, k, replace, match, gain)
        assert torch.equal(view.tokens.x_BND, expected_BND)
        probe_BND = torch.randn(3, 8, 4, generator=generator).to(dtype)
        zeros = {"allow_unused": True, "materialize_grads": True}
        found, there = (
            torch.autograd.grad((x * probe_BND).sum(), (*leaves, gain), **zeros)
            for x in (view.tokens.x_BND, expected_BND)
        )
        # The loop adds the gain's gradient token by token, which costs digits in bfloat16.
        close = (
            {"rtol": 0.05, "atol": 0.2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        )
        assert torch.equal(found[0], there[0])
        assert torch.equal(found[1], there[1])
        torch.testing.assert_close(found[2], there[2], **close)


def test_the_gradient_of_the_gradient_exists():
    """For methods that differentiate through an update."""
    x_BMd = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    gone_BN, taken_BM = hard_subset(torch.rand(2, 4), 3) > 0, hard_subset(torch.rand(2, 6), 3) > 0
    pairs = _in_order(gone_BN, taken_BM)

    def filled(x_BMd: Tensor) -> Tensor:
        return torch.where(gone_BN[..., None], _fill(x_BMd, *pairs, gone_BN, taken_BM).sin(), 0.0)

    assert torch.autograd.gradcheck(filled, (x_BMd,))
    assert torch.autograd.gradgradcheck(filled, (x_BMd,))


def test_the_gate_learns_from_both_sides():
    target, source = random_sample("target", 2, 10, 0), random_sample("source", 2, 10, 1)
    gradients = {}
    for side in ("both", "target", "source"):
        module = gate_mixer(4)
        views = module(target, source, at())
        slots = views[1].origin_BN >= 0
        part = {"both": slots | ~slots, "target": ~slots, "source": slots}[side]
        (views[1].tokens.x_BND.square().sum(2) * part).sum().backward()
        gradients[side] = module.selector.network[0].weight.grad
        assert gradients[side].abs().sum() > 0
    torch.testing.assert_close(gradients["both"], gradients["target"] + gradients["source"])


def test_replacing_the_highest_also_carries_a_gradient():
    module = gate_mixer(4, replace="highest")
    target, source = random_sample("target", 2, 10, 0), random_sample("source", 2, 10, 1)
    mixed = module(target, source, at())[1].tokens.x_BND
    mixed.square().sum().backward()
    assert module.selector.network[0].weight.grad.abs().sum() > 0


# --- conduct -------------------------------------------------------------------------------------


def test_inputs_stay_as_they_are():
    target, source = random_sample("target", 2, 10, 0), random_sample("source", 2, 10, 1)
    before = target.tokens.x_BND.clone(), source.tokens.x_BND.clone()
    gate_mixer(4)(target, source, at())
    assert torch.equal(target.tokens.x_BND, before[0])
    assert torch.equal(source.tokens.x_BND, before[1])


def test_replaced_tokens_get_no_gradient():
    target, source = random_sample("target", 2, 10, 0), random_sample("source", 2, 10, 1)
    x_BND = target.tokens.x_BND.requires_grad_(True)
    selector = RandomSelector(Settings(), context())
    view = mixer(4, selector)(target, source, at())[1]
    (found,) = torch.autograd.grad(view.tokens.x_BND.sum(), x_BND)
    assert torch.equal(found.sum(2) == 0, view.origin_BN >= 0)


def test_half_precision_tokens_stay_half():
    target, source = random_sample("target", 2, 10, 0), random_sample("source", 2, 10, 1)
    low = changed(target, tokens=Tokens(target.tokens.x_BND.bfloat16(), (10,)))
    view = gate_mixer(4)(low, source, at())[1]
    assert view.tokens.x_BND.dtype == torch.bfloat16


def test_same_position_refuses_different_grids():
    source = sample([[0.1] * 6] * 2, "source")
    with pytest.raises(UsageError, match="source has 6 tokens, the target 4"):
        mixer(2, match="same-position")(TARGET, source, at())


def test_a_missing_source_is_named():
    with pytest.raises(UsageError, match="source"):
        mixer(2)(TARGET, None, at())


def test_problems_name_grids_that_cannot_agree():
    config = PatchReplace.Config(late={"epoch": 3, "match": "same-position"})
    assert list(PatchReplace.problems(config, FACTS)) == []
    text = changed(FACTS, backbone=BackboneFacts("words", "text", 4, 4, grid=(32,)))
    (problem,) = PatchReplace.problems(config, text)
    assert "'words' has 32, task 'toy' has 4×4" in problem
    assert list(PatchReplace.problems(PatchReplace.Config(), text)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta_mix": -1},
        {"match": "rank"},
        {"late": {"match": "score"}},
        {"beta_target": 0, "beta_mix": 0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        PatchReplace.Config(**wrong)


def test_a_loss_that_vanishes_at_full_replacement_is_refused():
    with pytest.raises(ValidationError, match="the loss would be empty at k = N"):
        mixer(1, beta_target=0, source_term=False)
