"""The relaxed draw against the loop it replaces, against its own definition, and at its edges.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.ops import gumbel_noise, hard_subset, straight_through
from xmodal_pare.draw import relaxed_subset, relaxed_subset_exact

pytestmark = pytest.mark.slow


def noisy_keys(
    batch: int, tokens: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores_BN = torch.sigmoid(torch.randn(batch, tokens, generator=generator, dtype=dtype))
    return scores_BN + gumbel_noise(scores_BN, generator)


def gradient(draw, keys_BN: Tensor, k: int, weight_BN: Tensor, temperature: float = 0.9) -> Tensor:
    leaf = keys_BN.clone().requires_grad_(True)
    (found,) = torch.autograd.grad((draw(leaf, k, temperature) * weight_BN).sum(), leaf)
    return found


def bisected(keys_BN: Tensor, k: int, temperature: float) -> Tensor:
    """The same definition solved in another way: plain bisection in double precision."""
    z_BN = keys_BN.double() / temperature
    low_B1 = -z_BN.amax(1, keepdim=True) - 60
    high_B1 = -z_BN.amin(1, keepdim=True) + k / temperature + 60
    for _ in range(200):
        middle_B1 = (low_B1 + high_B1) / 2
        total_B1 = temperature * torch.logaddexp(z_BN + middle_B1, z_BN.new_zeros(())).sum(
            1, keepdim=True
        )
        low_B1 = torch.where(total_B1 < k, middle_B1, low_B1)
        high_B1 = torch.where(total_B1 < k, high_B1, middle_B1)
    return temperature * torch.logaddexp(z_BN + low_B1, z_BN.new_zeros(()))


# --- against the loop --------------------------------------------------------------------------


def test_loop_is_the_published_recursion_by_hand():
    # Two tokens, temperature 1, weights 3 and 1: p = (3/4, 1/4); then the keys fall by log(1 - p),
    # so the weights become 3/4 and 3/4, and p = (1/2, 1/2).
    keys_BN = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    torch.testing.assert_close(
        relaxed_subset_exact(keys_BN, 2, 1.0), torch.tensor([[1.25, 0.75]], dtype=torch.float64)
    )


@pytest.mark.parametrize("k", [26, 170, 256, 341])
def test_closed_form_is_the_loop_for_many_tokens(k):
    keys_BN = noisy_keys(4, 512)
    weight_BN = torch.randn(4, 512, generator=torch.Generator().manual_seed(1)).double()
    closed_BN, loop_BN = relaxed_subset(keys_BN, k, 0.9), relaxed_subset_exact(keys_BN, k, 0.9)
    assert torch.equal(hard_subset(keys_BN, k), hard_subset(loop_BN, k))
    assert torch.cosine_similarity(closed_BN, loop_BN).min() > 0.999
    here, there = (
        gradient(f, keys_BN, k, weight_BN) for f in (relaxed_subset, relaxed_subset_exact)
    )
    assert torch.cosine_similarity(here, there).min() > 0.98
    assert 0.97 < (here.norm() / there.norm()).item() < 1.05


def test_closed_form_is_the_limit_of_the_loop():
    # Without the heavy tail of the noise every p_i is about 1/N, and the error falls as 1/N.
    errors = []
    for tokens in (16, 128, 1024):
        keys_BN = 0.5 * torch.randn(
            4, tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        closed_BN, loop_BN = (
            f(keys_BN, tokens // 2, 0.9) for f in (relaxed_subset, relaxed_subset_exact)
        )
        errors.append(((closed_BN - loop_BN).norm() / loop_BN.norm()).item())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.mark.parametrize("k", [1000, 2136])
def test_closed_form_is_the_loop_at_full_size(k):
    keys_BN = noisy_keys(2, 3136, dtype=torch.float32)
    weight_BN = torch.randn(2, 3136, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        straight_through(relaxed_subset(keys_BN, k, 0.9), k, keys_BN),
        straight_through(relaxed_subset_exact(keys_BN, k, 0.9), k),
    )
    here, there = (
        gradient(f, keys_BN, k, weight_BN) for f in (relaxed_subset, relaxed_subset_exact)
    )
    assert torch.cosine_similarity(here, there).min() >= 0.99


# --- against its definition --------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**20),
    tokens=st.integers(1, 40),
    share=st.floats(0, 1),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    temperature=st.sampled_from([0.05, 0.9, 8.0]),
)
@settings(max_examples=150, deadline=None)
def test_rows_sum_to_k_and_keep_the_order(seed, tokens, share, scale, temperature):
    generator = torch.Generator().manual_seed(seed)
    keys_BN = scale * torch.randn(3, tokens, generator=generator, dtype=torch.float64)
    k = round(share * tokens)
    khot_BN = relaxed_subset(keys_BN, k, temperature)
    assert (khot_BN >= 0).all()
    torch.testing.assert_close(khot_BN.sum(1), torch.full((3,), float(k), dtype=torch.float64))
    order = keys_BN.argsort(dim=1)
    # Vectorised and left-over elements of a row may round apart, hence not quite 0.
    assert (khot_BN.gather(1, order).diff(dim=1) >= -1e-12 * max(k, 1)).all()
    if k:
        torch.testing.assert_close(khot_BN, bisected(keys_BN, k, temperature), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 700, 1399, 1400])
def test_solver_converges_on_hard_rows(dtype, k):
    n = 1400
    rows = [
        torch.full((n,), 3.0),
        torch.cat([torch.tensor([1e4]), torch.zeros(n - 1)]),
        torch.cat([torch.tensor([-1e4]), torch.zeros(n - 1)]),
        torch.linspace(0, 1e3, n),
        -torch.logspace(-3, 6, n),
        1e6 * torch.randn(n, generator=torch.Generator().manual_seed(0)),
    ]
    keys_BN = torch.stack(rows).to(dtype)
    for temperature in (0.05, 0.9, 10.0):
        total_B = relaxed_subset(keys_BN, k, temperature).double().sum(1)
        error = ((total_B - k).abs() / k).max().item()
        assert error < (2e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (6, 1), (6, 3), (6, 6)])
@pytest.mark.parametrize("temperature", [0.3, 0.9, 4.0])
def test_gradient_is_that_of_the_implicit_definition(tokens, k, temperature):
    keys_BN = noisy_keys(2, tokens).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda keys: relaxed_subset(keys, k, temperature), (keys_BN,))


def test_gradient_of_a_constant_is_zero():
    # The row sums are fixed at k, so pushing all entries alike changes nothing.
    keys_BN = noisy_keys(3, 50)
    assert gradient(relaxed_subset, keys_BN, 20, torch.ones(3, 50).double()).abs().max() < 1e-14


# --- edges -------------------------------------------------------------------------------------


def test_none_and_equal_and_single():
    keys_BN = torch.zeros(2, 8)
    assert torch.equal(relaxed_subset(keys_BN, 0, 0.9), torch.zeros(2, 8))
    torch.testing.assert_close(relaxed_subset(keys_BN, 3, 0.9), torch.full((2, 8), 3 / 8))
    torch.testing.assert_close(relaxed_subset(keys_BN, 8, 0.9), torch.ones(2, 8))
    torch.testing.assert_close(relaxed_subset(keys_BN[:, :1] + 5e4, 1, 0.9), torch.ones(2, 1))


@pytest.mark.parametrize("k", [-1, 9])
def test_impossible_k_is_refused(k):
    for draw in (relaxed_subset, relaxed_subset_exact):
        with pytest.raises(ValueError, match=f"cannot choose {k} tokens"):
            draw(torch.zeros(2, 8), k, 0.9)
    with pytest.raises(ValueError, match="temperature"):
        relaxed_subset(torch.zeros(2, 8), 2, 0.0)


def test_half_precision_is_computed_in_single():
    keys_BN = noisy_keys(2, 300, dtype=torch.float32).bfloat16()
    leaf_BN = keys_BN.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        khot_BN = relaxed_subset(leaf_BN, 100, 0.9)
    assert khot_BN.dtype == torch.float32
    torch.testing.assert_close(khot_BN, relaxed_subset(keys_BN.float(), 100, 0.9))
    khot_BN[:, :7].sum().backward()
    assert leaf_BN.grad is not None
    assert leaf_BN.grad.dtype == torch.bfloat16


# --- the hard mask -----------------------------------------------------------------------------


@given(seed=st.integers(0, 2**20), tokens=st.integers(1, 60), share=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_mask_is_exactly_zero_and_one_with_khots_gradient(seed, tokens, share):
    keys_BN = noisy_keys(2, tokens, seed, torch.float32)
    k = round(share * tokens)
    khot_BN = relaxed_subset(keys_BN, k, 0.9).requires_grad_(True)
    mask_BN = straight_through(khot_BN, k, keys_BN)
    assert ((mask_BN == 0) | (mask_BN == 1)).all()
    assert (mask_BN.sum(1) == k).all()
    chosen = mask_BN.detach() == 1
    for row in range(2):
        if 0 < k < tokens:
            assert keys_BN[row][chosen[row]].min() >= keys_BN[row][~chosen[row]].max()
    weight_BN = torch.randn(2, tokens)
    (found,) = torch.autograd.grad((mask_BN * weight_BN).sum(), khot_BN)
    assert torch.equal(found, weight_BN)


def test_ranking_decides_where_khot_ties():
    khot_BN, keys_BN = torch.ones(1, 3), torch.tensor([[1.0, 3.0, 2.0]])
    assert straight_through(khot_BN, 2, keys_BN).tolist() == [[0, 1, 1]]


# --- the noise ---------------------------------------------------------------------------------


def test_noise_is_a_function_of_the_generator_state():
    generator = torch.Generator().manual_seed(7)
    like_BN = torch.zeros(3, 20)
    state = generator.get_state()
    first = gumbel_noise(like_BN, generator)
    second = gumbel_noise(like_BN, generator)
    assert not torch.equal(first, second)
    generator.set_state(state)
    assert torch.equal(first, gumbel_noise(like_BN, generator))


def test_noise_is_standard_gumbel():
    noise = gumbel_noise(torch.zeros(200, 1000), torch.Generator().manual_seed(0))
    # Mean: Euler's constant. Variance: π²/6. P(g <= 0) = 1/e.
    assert abs(noise.mean().item() - 0.57722) < 0.015
    assert abs(noise.var().item() - 1.64493) < 0.03
    assert abs((noise <= 0).float().mean().item() - 0.36788) < 0.005


def test_noise_is_finite_where_uniform_draws_are_not(monkeypatch):
    ends = torch.tensor([[0.0, 1.0 - 2**-24, 0.5]])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends.clone())
    assert torch.isfinite(gumbel_noise(torch.zeros(1, 3), torch.Generator())).all()
