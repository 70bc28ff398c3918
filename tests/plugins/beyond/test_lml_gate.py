"""The gate on the capped simplex: against a float64 root finder, finite differences, its edges.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import brentq, minimize
from scipy.special import expit
from torch import Tensor, nn

from tests.plugins.pare.test_draw_on_device import HostIsAway
from xmodal.batch import Progress, Tokens
from xmodal.ops import gumbel_noise
from xmodal.testing.tiny import WIDTH, tiny_context, tiny_tokens
from xmodal_beyond.capped_simplex import capped_simplex, top_k
from xmodal_beyond.lml_gate import LMLGate, spread


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(scores: Tensor, k: int, temperature: float) -> np.ndarray:
    """One row by Brent's method in float64."""
    s = scores.double().numpy() / temperature
    shift = brentq(lambda nu: expit(s + nu).sum() - k, -s.max() - 60, -s.min() + 60, xtol=1e-13)
    return expit(s + shift)


def at(epoch: int = 0, epochs: int = 10, step: int = 0, steps: int = 5) -> Progress:
    return Progress(0, epoch, epochs, step, steps)


def gate(seed: int = 0, **given_settings) -> LMLGate:
    torch.manual_seed(3)
    return LMLGate(LMLGate.Config(**given_settings), tiny_context(seed=seed))


# --- the projection ------------------------------------------------------------------------------


def test_three_scores_by_hand():
    # Equal scores share k evenly; for (a, -a) with k = 1, symmetry gives ν = 0.
    torch.testing.assert_close(capped_simplex(torch.zeros(1, 4), 1, 1.0), torch.full((1, 4), 0.25))
    a = torch.tensor([[1.2, -1.2]])
    torch.testing.assert_close(capped_simplex(a, 1, 0.5), torch.sigmoid(a / 0.5))


@pytest.mark.parametrize(("total", "k"), [(2, 1), (16, 15), (64, 4), (196, 100), (3136, 3130)])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_against_brents_method(total, k, spread, temperature):
    scores_BN = spread * random(4, total, seed=k)
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-9)):
        y_BN = capped_simplex(scores_BN.to(dtype), k, temperature)
        assert y_BN.dtype == dtype
        for row in range(4):
            expected = reference(scores_BN[row], k, temperature)
            np.testing.assert_allclose(y_BN[row].double(), expected, atol=tolerance)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3, 1e6])
def test_hostile_spreads_still_sum_to_k(spread):
    """Clusters and heavy tails whose scores lie up to millions of temperatures apart."""
    normal = random(8, 512, seed=1)
    heavy = normal / random(8, 512, seed=2).abs().clamp_min(1e-3)
    clusters = (random(8, 512, seed=3) > 1).float() + 1e-3 * normal
    for scores_BN, k in itertools.product((normal, heavy, clusters), (1, 60, 256, 511)):
        y_BN = capped_simplex(spread * scores_BN.double(), k, 1.0)
        torch.testing.assert_close(
            y_BN.sum(1), torch.full((8,), float(k)).double(), rtol=1e-6, atol=0
        )
        assert bool(torch.isfinite(y_BN).all())


def test_it_maximises_score_plus_entropy():
    """The definition of Amos et al., by a general-purpose optimiser."""
    s, k, tau = random(6, seed=5).double().numpy(), 2, 0.7

    def negative(y):
        y = np.clip(y, 1e-12, 1 - 1e-12)
        return -(s @ y) + tau * (y * np.log(y) + (1 - y) * np.log(1 - y)).sum()

    found = minimize(
        negative,
        np.full(6, k / 6),
        bounds=[(1e-9, 1 - 1e-9)] * 6,
        constraints={"type": "eq", "fun": lambda y: y.sum() - k},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    y = capped_simplex(torch.from_numpy(s)[None], k, tau)[0].numpy()
    assert found.success
    np.testing.assert_allclose(y, found.x, atol=1e-4)
    assert negative(y) <= found.fun + 1e-10


def test_for_many_tokens_it_is_how_often_a_token_is_drawn():
    """Marginals of k of N tokens drawn with odds e^s, exactly, by elementary symmetric sums."""
    scores_N, k = random(60, seed=6, dtype=torch.float64), 20

    def sums(odds: Tensor) -> Tensor:
        e = torch.zeros(k + 1, dtype=torch.float64)
        e[0] = 1
        for value in odds:
            e[1:] = e[1:] + value * e[:-1].clone()
        return e

    odds_N = scores_N.exp()
    others_N = torch.stack(
        [sums(torch.cat([odds_N[:i], odds_N[i + 1 :]]))[k - 1] for i in range(60)]
    )
    marginal_N = odds_N * others_N / sums(odds_N)[k]
    assert float(marginal_N.sum()) == pytest.approx(k)
    y_N = capped_simplex(scores_N[None], k, 1.0)[0]
    assert float((y_N - marginal_N).abs().max()) < 0.01


@given(
    seed=st.integers(0, 10_000),
    total=st.integers(2, 40),
    part=st.floats(0, 1),
    spread=st.floats(0.01, 8),
    temperature=st.floats(0.2, 5),
)
@settings(max_examples=150, deadline=None)
def test_inside_summing_and_ordered(seed, total, part, spread, temperature):
    k = min(total - 1, max(1, round(part * total)))
    scores_BN = spread * random(2, total, seed=seed, dtype=torch.float64)
    y_BN = capped_simplex(scores_BN, k, temperature)
    torch.testing.assert_close(y_BN.sum(1), torch.full((2,), float(k)).double())
    assert bool((y_BN >= 0).all())
    assert bool((y_BN <= 1).all())
    order_BN = scores_BN.argsort(dim=1)
    assert bool((y_BN.gather(1, order_BN).diff(dim=1) >= 0).all())
    hard_BN = top_k(scores_BN, k, temperature)
    assert torch.equal(hard_BN, torch.zeros_like(hard_BN).scatter(1, scores_BN.topk(k).indices, 1))


def test_strictly_inside_where_float32_can_say_so():
    y_BN = capped_simplex(2 * random(4, 64), 20, 1.0)
    assert float(y_BN.min()) > 0
    assert float(y_BN.max()) < 1


@pytest.mark.parametrize("function", [capped_simplex, top_k])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_none_and_all_are_exact(function, dtype):
    scores_BN = random(2, 7, dtype=dtype).requires_grad_()
    for k in (0, 7):
        out_BN = function(scores_BN, k, 1.0)
        assert torch.equal(out_BN, torch.full_like(out_BN, float(k > 0)))
        assert out_BN.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert function(random(3, 1), 1, 1.0).tolist() == [[1.0]] * 3


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_gradient_against_finite_differences(k, temperature):
    scores_BN = random(2, 7, seed=k, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: capped_simplex(s, k, temperature), (scores_BN,))


def test_gradient_is_the_closed_form_and_the_masks():
    """diag(r) − r rᵀ / Σ r with r = y (1 − y) / τ, and the hard mask carries the same one."""
    scores_BN, tau, k = random(1, 9, seed=2, dtype=torch.float64), 0.6, 4
    y_N = capped_simplex(scores_BN, k, tau)[0]
    r_N = y_N * (1 - y_N) / tau
    expected_NN = torch.diag(r_N) - torch.outer(r_N, r_N) / r_N.sum()
    jacobian_NN = torch.autograd.functional.jacobian(
        lambda s: capped_simplex(s, k, tau)[0], scores_BN
    )
    torch.testing.assert_close(jacobian_NN[:, 0], expected_NN)
    weight_N = random(9, seed=4, dtype=torch.float64)
    leaf = scores_BN.clone().requires_grad_()
    (top_k(leaf, k, tau)[0] * weight_N).sum().backward()
    torch.testing.assert_close(leaf.grad[0], expected_NN @ weight_N)


def test_ties_give_exactly_k_and_a_finite_gradient():
    scores_BN = torch.zeros(2, 6, requires_grad=True)
    mask_BN = top_k(scores_BN, 3, 1.0)
    assert mask_BN.sum(1).tolist() == [3.0, 3.0]
    (mask_BN * torch.arange(6.0)).sum().backward()
    assert bool(torch.isfinite(scores_BN.grad).all())


def test_scores_far_apart_have_no_gradient_but_no_nan():
    scores_BN = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    (top_k(scores_BN, 1, 1.0) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert bool(torch.isfinite(scores_BN.grad).all())


@pytest.mark.parametrize("k", [0, 1, 8, 15, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k_may_be_a_tensor_that_the_host_does_not_read(k, dtype):
    scores_BN, weight_BN = (random(3, 16, seed=seed, dtype=dtype) for seed in (7, 8))
    scores_BN[1] = (2 * scores_BN[1]).round()
    for function in (capped_simplex, top_k):
        found = []
        for number in (k, torch.tensor(k), torch.tensor(k, dtype=torch.int32)):
            leaf_BN = scores_BN.clone().requires_grad_()
            with HostIsAway():
                y_BN = function(leaf_BN, number, 0.7)
                (gradient_BN,) = torch.autograd.grad((y_BN * weight_BN).sum(), leaf_BN)
            found.append((y_BN.detach(), gradient_BN))
        for y_BN, gradient_BN in found:
            assert torch.equal(y_BN, found[0][0])
            assert torch.equal(gradient_BN, found[0][1])
    if k in (0, 16):
        assert (y_BN == k / 16).all()
        assert not gradient_BN.any()
    else:
        assert (y_BN.sum(1) == k).all()
        assert float(gradient_BN.abs().max()) > 0


@pytest.mark.parametrize(
    ("k", "temperature", "words"),
    [(8, 1.0, "cannot choose 8"), (-1, 1.0, "choose -1"), (2, 0.0, "temperature")],
)
def test_wrong_calls_say_what_is_wrong(k, temperature, words):
    for function in (capped_simplex, top_k):
        with pytest.raises(ValueError, match=words):
            function(random(2, 7), k, temperature)


# --- the gate ------------------------------------------------------------------------------------


def test_scores_are_logits_of_the_network():
    module, tokens = gate(standardise=False), tiny_tokens()
    layer = module.first
    expected = tokens.x_BND @ layer.weight[0] + layer.bias
    torch.testing.assert_close(module.score(tokens.x_BND), expected)
    mlp = gate(network="mlp", hidden=5, standardise=False)
    kinds = [type(part) for part in (mlp.first, *mlp.rest)]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear]
    expected = mlp.rest(mlp.first(tokens.x_BND)).squeeze(-1)
    torch.testing.assert_close(mlp.score(tokens.x_BND), expected)


def test_spread_by_hand():
    x_BND = torch.tensor([[[1.0, 5.0], [3.0, 5.0]], [[2.0, 2.0], [2.0, 2.0]]])
    # Row 1: the mean token is (2, 5), the mean square of (-1, 0), (1, 0) is 1/2. Row 2: no spread.
    assert spread(x_BND).flatten().tolist() == pytest.approx([0.5**0.5, 1e-6])


@pytest.mark.parametrize("network", ["fc", "mlp"])
def test_standardised_scores_are_the_networks_on_standardised_tokens(network):
    module, x_BND = gate(network=network), 3 + 0.1 * tiny_tokens().x_BND
    centred_BND = x_BND - x_BND.mean(dim=1, keepdim=True)
    scaled_BND = centred_BND / centred_BND.square().mean(dim=(1, 2), keepdim=True).sqrt()
    expected = module.rest(module.first(scaled_BND))
    torch.testing.assert_close(module.score(x_BND), expected.squeeze(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, 30.0), (50.0, -7.0)])
def test_the_size_of_tokens_does_not_matter(scale, shift):
    """Nor what all tokens of a sample have in common; without standardising both do."""
    x_BND = tiny_tokens().x_BND
    moved = scale * x_BND + shift
    module, plain = gate(), gate(standardise=False)
    torch.testing.assert_close(module.score(x_BND), module.score(moved), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain.score(x_BND), plain.score(moved), atol=1e-2)
    assert 0.3 < float(module.score(x_BND).detach().std(dim=1).mean()) < 1.2
    if shift == 0:
        order = module.score(moved).argsort(dim=1)
        assert torch.equal(order, plain.score(moved).argsort(dim=1))


def test_noise_falls_and_then_stays():
    module = gate(noise_start=0.8, noise_stop=0.2, noise_until=0.5)
    scales = [module.noise(at(epoch)) for epoch in range(10)]
    assert scales[:6] == pytest.approx([0.8, 0.68, 0.56, 0.44, 0.32, 0.2])
    assert scales[5:] == pytest.approx([0.2] * 5)
    assert module.noise(at(1, step=1)) == pytest.approx(0.8 - 0.6 * 0.12 / 0.5)


def test_keys_are_scores_plus_scaled_noise():
    module, tokens = gate(seed=5, noise_start=0.5), tiny_tokens()
    selection = module(tokens, 4, at())
    scores_BN = module.score(tokens.x_BND)
    noise_BN = gumbel_noise(scores_BN, torch.Generator().manual_seed(5), exponential=True)
    torch.testing.assert_close(selection.scores_BN, scores_BN + 0.5 * noise_BN)
    chosen = selection.scores_BN.topk(4).indices.sort(dim=1).values
    assert torch.equal(selection.indices_BK, chosen)


def test_noise_is_standard_gumbel():
    noise_BN = gumbel_noise(
        torch.zeros(200, 500), torch.Generator().manual_seed(0), exponential=True
    )
    # Mean: Euler's constant; variance: π²/6. 1e5 draws: four standard errors.
    assert float(noise_BN.mean()) == pytest.approx(0.5772, abs=4 * 1.283 / 1e5**0.5)
    assert float(noise_BN.var()) == pytest.approx(1.6449, abs=0.04)


def test_without_noise_training_takes_the_plain_top_k_and_still_learns():
    module, tokens = gate(noise_start=0, noise_stop=0), tiny_tokens()
    state = module._generator.get_state()
    trained = module(tokens, 5, at(9))
    assert torch.equal(module._generator.get_state(), state)
    plain = module.eval()(tokens, 5, at(9))
    assert torch.equal(trained.mask_BN.detach(), plain.mask_BN)
    assert not plain.mask_BN.requires_grad
    (trained.mask_BN * random(*trained.mask_BN.shape)).sum().backward()
    assert float(module.first.weight.grad.norm()) > 0


def test_every_epoch_has_a_gradient_for_scores_and_tokens():
    module = gate()
    for epoch in (0, 9):
        module.zero_grad()
        x_BND = tiny_tokens().x_BND.requires_grad_()
        mask_BN = module(Tokens(x_BND, (4, 6)), 8, at(epoch)).mask_BN
        (mask_BN * random(*mask_BN.shape)).sum().backward()
        assert float(module.first.weight.grad.norm()) > 0
        assert float(x_BND.grad.norm()) > 0


def test_a_learned_preference_survives_its_own_noise():
    """Scores of sd 2: the draw keeps most of the gate's own choice; chance is k/N = 0.5."""
    module = gate(noise_start=0.5, noise_stop=0.5)
    with torch.no_grad():
        module.first.weight *= 2 / module.score(tiny_tokens(batch=64).x_BND).std()
    tokens = Tokens(random(64, 200, WIDTH), (200,))
    drawn = module(tokens, 100, at()).mask_BN.detach()
    own = module.eval()(tokens, 100, at()).mask_BN
    overlap = float((drawn * own).sum() / own.sum())
    assert overlap > 0.8


def test_half_precision_tokens():
    module = gate()
    selection = module(Tokens(tiny_tokens().x_BND.bfloat16(), (4, 6)), 5, at())
    assert selection.mask_BN.dtype == torch.float32
    assert selection.mask_BN.sum(1).tolist() == [5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0}, {"noise_start": -1}, {"noise_until": 0}, {"network": "mlp-dropout"}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LMLGate.Config(**wrong)
