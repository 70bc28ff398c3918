"""A relaxed draw of k of N tokens with a gradient to the scores: pure functions on tensors.

The relaxed draw of Xie & Ermon (IJCAI 2019) computes k softmaxes one after the other. Its limit for
many tokens has a closed form, which ``relaxed_subset`` computes. ``relaxed_subset_exact`` keeps the
loop, as an option and as a test reference.

Shapes: B samples, N tokens, K chosen tokens. Keys are scores plus Gumbel noise; khot is their
relaxed membership, which sums to k over N.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from xmodal.ops import full_precision

# Scores plus Gumbel noise need 6 steps for float64 accuracy; the other steps are for keys that lie
# thousands of temperatures apart.
_NEWTON_STEPS = 10


def relaxed_subset(keys_BN: Tensor, k: int, temperature: float) -> Tensor:
    """Relaxed membership ``[B, N]`` of the k largest of finite ``keys_BN``; every row sums to k.

    The many-token limit of ``relaxed_subset_exact``: khot_i = τ·softplus(s_i/τ + L), with one
    scalar L per row chosen so that the row sums to k. It increases with the keys; entries can
    exceed 1, as in the loop. O(N) time and memory per row. Computed in float32 (float64 for float64
    keys).
    """
    _check(keys_BN, k, temperature)
    if k == 0:
        return torch.zeros_like(full_precision(keys_BN))
    khot_BN: Tensor = _ClosedForm.apply(full_precision(keys_BN), k, temperature)
    return khot_BN


def relaxed_subset_exact(keys_BN: Tensor, k: int, temperature: float) -> Tensor:
    """Relaxed membership ``[B, N]`` of the k largest keys by k softmaxes (Xie & Ermon, IJCAI 2019).

    Time and memory of the gradient grow as k·N per row: gigabytes for thousands of tokens.
    """
    _check(keys_BN, k, temperature)
    alpha_BN = full_precision(keys_BN)
    tiny = torch.finfo(alpha_BN.dtype).tiny
    khot_BN = torch.zeros_like(alpha_BN)
    for _ in range(k):
        p_BN = torch.softmax(alpha_BN / temperature, dim=1)
        khot_BN = khot_BN + p_BN
        # α^{j+1} = α^j + log(1 − p^j): lower the drawn tokens before the next draw.
        alpha_BN = alpha_BN + (1 - p_BN).clamp_min(tiny).log()
    return khot_BN


def _check(keys_BN: Tensor, k: int, temperature: float) -> None:
    if keys_BN.dim() != 2 or not 0 <= k <= keys_BN.shape[1]:
        raise ValueError(f"cannot draw {k} tokens from keys of shape {list(keys_BN.shape)}")
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")


def _inverse_softplus(total: float) -> float:
    """The x with softplus(x) = ``total`` > 0, without overflow."""
    return total + math.log(-math.expm1(-total))


def _solve_shift(z_BN: Tensor, total: float) -> Tensor:
    """L ``[B, 1]`` with Σ_i softplus(z_i + L) = ``total`` > 0, for rows whose largest z is 0.

    The number of steps is fixed, so that nothing waits for the device. Each step is Newton's on the
    logarithm of the sum (linear while softplus ≈ exp). If that leaves the bracket, it is Newton's
    on the sum (linear once softplus ≈ x; safe from above because the sum is convex). If that leaves
    the bracket too, it is a bisection.
    """
    # All z are at most 0, which gives the lower end. The largest term and Jensen's inequality each
    # give an upper bound of L.
    low_B1 = torch.full_like(z_BN[:, :1], _inverse_softplus(total / z_BN.shape[1]))
    high_B1 = (low_B1 - z_BN.mean(1, keepdim=True)).clamp_max(_inverse_softplus(total))
    shift_B1 = high_B1
    for _ in range(_NEWTON_STEPS):
        x_BN = z_BN + shift_B1
        sum_B1 = softplus(x_BN).sum(1, keepdim=True)
        slope_B1 = torch.sigmoid(x_BN).sum(1, keepdim=True)
        above_B1 = sum_B1 > total
        high_B1 = torch.where(above_B1, shift_B1, high_B1)
        low_B1 = torch.where(above_B1, low_B1, shift_B1)
        next_B1 = (low_B1 + high_B1) / 2
        on_sum_B1 = shift_B1 - (sum_B1 - total) / slope_B1
        on_log_B1 = shift_B1 - (sum_B1 / total).log() * sum_B1 / slope_B1
        for newton_B1 in (on_sum_B1, on_log_B1):
            inside_B1 = (newton_B1 >= low_B1) & (newton_B1 <= high_B1)
            next_B1 = torch.where(inside_B1, newton_B1, next_B1)
        shift_B1 = next_B1
    return shift_B1


class _ClosedForm(torch.autograd.Function):
    """khot of ``relaxed_subset`` for k > 0, with its exact gradient."""

    @staticmethod
    def forward(ctx: Any, keys_BN: Tensor, k: int, temperature: float) -> Tensor:
        # Subtracting the largest key changes only L, and keeps every exponential finite.
        z_BN = (keys_BN - keys_BN.amax(1, keepdim=True)) / temperature
        x_BN = z_BN + _solve_shift(z_BN, k / temperature)
        ctx.save_for_backward(torch.sigmoid(x_BN))
        return temperature * softplus(x_BN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor, None, None]:
        # dkhot_i = r_i (ds_i + τ dL), and Σ khot = k fixes τ dL = −Σ r_j ds_j / Σ r.
        (r_BN,) = ctx.saved_tensors
        mean_B1 = (r_BN * grad_BN).sum(1, keepdim=True) / r_BN.sum(1, keepdim=True)
        return r_BN * (grad_BN - mean_B1), None, None
