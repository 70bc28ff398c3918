"""The draw with k as a number on the device: as with an int, and without asking the host.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.plugins.pare.test_draw import bisected
from xmodal.steps import answered_by
from xmodal_pare.draw import _loop, relaxed_subset, relaxed_subset_exact

ASKS_THE_HOST = ("_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero")


class Recording:
    """Stands for the engine that records a step."""

    def take(self, make: Any, device: torch.device) -> Any:
        raise AssertionError("the draw takes nothing from the host")


class HostIsAway(TorchDispatchMode):
    """Refuses operations that need a number from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ASKS_THE_HOST, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def rows(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noisy keys, ties, equal keys, two clusters, and keys thousands of temperatures apart."""
    drawn_BN = torch.randn(5, tokens, generator=torch.Generator().manual_seed(tokens))
    uniform_N = torch.rand(tokens, generator=torch.Generator().manual_seed(1)).clamp(1e-3, 0.999)
    noisy_N = drawn_BN[0].sigmoid() - uniform_N.log().neg().log()
    clusters_N = 50 * (drawn_BN[3] > 0) + drawn_BN[3]
    rows = (noisy_N, (2 * drawn_BN[1]).round(), drawn_BN[2] * 0 + 3, clusters_N, 5e3 * drawn_BN[4])
    return torch.stack(rows).to(dtype)


def drawn(method: Any, keys_BN: Tensor, k: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """The membership, and the gradient of a weighted sum of it."""
    weight_BN = torch.randn(keys_BN.shape, generator=torch.Generator().manual_seed(2))
    leaf_BN = keys_BN.clone().requires_grad_()
    with HostIsAway():
        khot_BN = method(leaf_BN, k, temperature)
        (found_BN,) = torch.autograd.grad((khot_BN * weight_BN).sum(), leaf_BN)
    return khot_BN.detach(), found_BN


@pytest.mark.parametrize("k", [0, 1, 6, 22, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_form_is_the_same_with_a_tensor(k, dtype):
    keys_BN = rows(23, dtype)
    for number in (torch.tensor(k), torch.tensor(k, dtype=torch.int32)):
        khot_BN, found_BN = drawn(relaxed_subset, keys_BN, number, 0.9)
        by_int_BN, gradient_BN = drawn(relaxed_subset, keys_BN, k, 0.9)
        assert torch.equal(khot_BN, by_int_BN)
        assert torch.equal(found_BN, gradient_BN)
    if k:
        tolerance = 2e-5 if dtype == torch.float32 else 1e-9
        expected_BN = bisected(keys_BN, k, 0.9).to(dtype)
        torch.testing.assert_close(khot_BN, expected_BN, atol=tolerance, rtol=tolerance)
    else:
        assert not khot_BN.any()
        assert not found_BN.any()


@pytest.mark.parametrize("k", [1, 3, 4, 5])
def test_gradient_with_a_tensor_is_that_of_the_definition(k):
    keys_BN = rows(5, torch.float64)[:3].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: relaxed_subset(s, torch.tensor(k), 0.9), (keys_BN,))


@pytest.mark.parametrize("k", [0, 1, 6, 22, 23])
def test_a_loop_over_all_steps_counts_only_k(k):
    """While a step is recorded there are N steps, of which the first k count."""
    keys_BN = rows(23)
    with answered_by(Recording()):
        all_BN, found_BN = drawn(relaxed_subset_exact, keys_BN, torch.tensor(k), 0.9)
    k_BN, gradient_BN = drawn(lambda s, *more: _loop(s, *more) + 0 * s, keys_BN, k, 0.9)
    assert torch.equal(all_BN, k_BN)
    torch.testing.assert_close(found_BN, gradient_BN, rtol=1e-5, atol=1e-6)


def test_the_loop_on_the_cpu_ends_at_k():
    """Reading a number on the CPU waits for nothing, unless a step is recorded."""
    keys_BN = rows(23)
    for k in (0, 1, 22, 23):
        found_BN = relaxed_subset_exact(keys_BN, torch.tensor(k), 0.9)
        assert torch.equal(found_BN, relaxed_subset_exact(keys_BN, k, 0.9))


def test_a_long_loop_stops_at_k():
    keys_BN = rows(300)
    expected_BN = _loop(keys_BN, 2, 0.9)
    assert torch.equal(relaxed_subset_exact(keys_BN, torch.tensor(2), 0.9), expected_BN)


def test_nothing_to_draw_from():
    for draw in (relaxed_subset, relaxed_subset_exact):
        for shape in ((0, 4), (3, 0)):
            assert draw(torch.zeros(shape), torch.tensor(0), 0.9).shape == shape


@pytest.mark.parametrize("temperature", [0.05, 0.9, 10.0])
@pytest.mark.parametrize("k", [1, 5000, 16383, 16384])
def test_long_rows_keep_their_digits(k, temperature):
    keys_BN = rows(16384)
    total_B = relaxed_subset(keys_BN, torch.tensor(k), temperature).double().sum(1)
    assert ((total_B - k).abs() / k).max() < 2e-6
