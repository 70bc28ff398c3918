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

from xmodal.fused import fused_kernels
from xmodal.ops import check_count, full_precision
from xmodal.steps import recording

# Scores plus Gumbel noise need 6 steps for float64 accuracy, keys that lie thousands of
# temperatures apart up to 11.
_NEWTON_STEPS = 12
_KERNELS = "xmodal_pare.draw_kernels"
_LONGEST_FUSED_ROW = 16384
# Longer loops are not worth their N softmaxes of N numbers for each row, if k is less.
_LONGEST_FIXED_LOOP = 256


def relaxed_subset(keys_BN: Tensor, k: int | Tensor, temperature: float) -> Tensor:
    """Relaxed membership ``[B, N]`` of the k largest of finite ``keys_BN``; every row sums to k.

    The many-token limit of ``relaxed_subset_exact``: khot_i = τ·softplus(s_i/τ + L), with one
    scalar L per row chosen so that the row sums to k. It increases with the keys; entries can
    exceed 1, as in the loop. O(N) time and memory per row. Computed in float32 (float64 for float64
    keys), on a GPU in one kernel. ``k``: see ``xmodal.ops.check_count``.
    """
    keys_BN = _checked(keys_BN, k, temperature)
    khot_BN: Tensor = _ClosedForm.apply(keys_BN, _on_device(k, keys_BN), temperature)
    return khot_BN


def relaxed_subset_exact(keys_BN: Tensor, k: int | Tensor, temperature: float) -> Tensor:
    """Relaxed membership ``[B, N]`` of the k largest keys by k softmaxes (Xie & Ermon, IJCAI 2019).

    Time and memory of the gradient grow as k·N per row: gigabytes for thousands of tokens. If k is
    a tensor on a GPU, all N softmaxes are computed, in one kernel; for more than 256 tokens, k is
    read instead, so that a step cannot be captured.
    """
    keys_BN = _checked(keys_BN, k, temperature)
    tokens = keys_BN.shape[1]
    if tokens <= _LONGEST_FIXED_LOOP:
        if _kernels(keys_BN):
            khot_BN: Tensor = _FusedLoop.apply(keys_BN, _on_device(k, keys_BN), temperature)
            return khot_BN
        if isinstance(k, Tensor) and (k.device.type != "cpu" or recording()):
            return _loop(keys_BN, tokens, temperature, k)
    return _loop(keys_BN, int(k), temperature)


def _checked(keys_BN: Tensor, k: int | Tensor, temperature: float) -> Tensor:
    check_count(keys_BN, k)
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
    return full_precision(keys_BN)


def _on_device(k: int | Tensor, keys_BN: Tensor) -> Tensor:
    """k as a 0-d tensor beside the keys, without waiting for the device."""
    if isinstance(k, Tensor):
        return k
    return torch.full((), k, dtype=torch.int64, device=keys_BN.device)


def _kernels(keys_BN: Tensor) -> Any:
    """The fused kernels for these keys, or None."""
    fits = keys_BN.dtype == torch.float32 and keys_BN.numel() > 0
    return fused_kernels(_KERNELS, keys_BN) if fits else None


# --- the loop ---


def _loop(keys_BN: Tensor, steps: int, temperature: float, k: Tensor | None = None) -> Tensor:
    """``steps`` softmaxes, of which those from number k on count for nothing."""
    alpha_BN, khot_BN = keys_BN, torch.zeros_like(keys_BN)
    tiny = torch.finfo(keys_BN.dtype).tiny
    for step in range(steps):
        p_BN = torch.softmax(alpha_BN / temperature, dim=1)
        khot_BN = khot_BN + (p_BN if k is None else torch.where(k > step, p_BN, 0.0))
        # α^{j+1} = α^j + log(1 − p^j): lower the drawn tokens before the next draw.
        alpha_BN = alpha_BN + (1 - p_BN).clamp_min(tiny).log()
    return khot_BN


class _FusedLoop(torch.autograd.Function):
    """``_loop`` in one kernel, and its gradient in another."""

    @staticmethod
    def forward(ctx: Any, keys_BN: Tensor, k: Tensor, temperature: float) -> Tensor:
        khot_BN, p_BJN = _kernels(keys_BN).loop(keys_BN, k, temperature)
        ctx.save_for_backward(p_BJN, k)
        ctx.temperature = temperature
        return khot_BN  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor, None, None]:
        p_BJN, k = ctx.saved_tensors
        kernels = _kernels(grad_BN)
        return kernels.loop_gradient(p_BJN, k, grad_BN, ctx.temperature), None, None


# --- the closed form ---


def _inverse_softplus(total: Tensor) -> Tensor:
    """The x with softplus(x) = ``total`` > 0, without overflow."""
    return total + (-torch.expm1(-total)).log()


def _above(z_BN: Tensor, total: Tensor) -> Tensor:
    """An upper bound ``[B, 1]`` of the L with Σ_i softplus(z_i + L) = ``total`` > 0; max z is 0."""
    tokens = max(z_BN.shape[1], 1)
    # One term is at most the sum; and by Jensen's inequality, so is N times the one at the mean.
    bound_B1 = torch.minimum(
        _inverse_softplus(total / tokens) - z_BN.mean(1, keepdim=True), _inverse_softplus(total)
    )
    # softplus(x) >= ln 2 · exp(x) for x <= 0, that is, for all terms if L <= 0.
    small_B1 = (total / (math.log(2) * z_BN.exp().sum(1, keepdim=True))).log()
    return torch.where(small_B1 <= 0, torch.minimum(bound_B1, small_B1), bound_B1)


def _solve(z_BN: Tensor, total: Tensor) -> Tensor:
    """x = z + L ``[B, N]`` with Σ_i softplus(x_i) = ``total`` > 0, for rows whose largest z is 0.

    The sum is convex and rises with L, so Newton's method from above falls towards the solution
    and never passes it. The number of steps is fixed, so that nothing waits for the device.
    """

    def step(x_BN: Tensor) -> Tensor:
        excess_B1 = softplus(x_BN).sum(1, keepdim=True) - total
        return excess_B1 / torch.sigmoid(x_BN).sum(1, keepdim=True)

    shift_B1 = _above(z_BN, total)
    for _ in range(_NEWTON_STEPS - 1):
        shift_B1 = shift_B1 - step(z_BN + shift_B1)
    # If L is large, it is rounded to more than the small x can bear.
    x_BN = z_BN + shift_B1
    return x_BN - step(x_BN)


class _ClosedForm(torch.autograd.Function):
    """khot of ``relaxed_subset``, with its exact gradient."""

    @staticmethod
    def forward(ctx: Any, keys_BN: Tensor, k: Tensor, temperature: float) -> Tensor:
        kernels = _kernels(keys_BN) if keys_BN.shape[1] <= _LONGEST_FUSED_ROW else None
        if keys_BN.numel() == 0:
            khot_BN, r_BN = keys_BN.clone(), keys_BN
        elif kernels:
            khot_BN, r_BN = kernels.closed_form(keys_BN, k, temperature, _NEWTON_STEPS)
        else:
            # Subtracting the largest key changes only L, and keeps every exponential finite.
            z_BN = (keys_BN - keys_BN.amax(1, keepdim=True)) / temperature
            x_BN = _solve(z_BN, k.clamp_min(1).to(z_BN.dtype) / temperature)
            # For k = 0, L would be infinite; khot and its gradient are 0.
            khot_BN = torch.where(k > 0, temperature * softplus(x_BN), 0.0)
            r_BN = torch.where(k > 0, torch.sigmoid(x_BN), 0.0)
        ctx.fused = kernels is not None
        ctx.save_for_backward(r_BN)
        return khot_BN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor, None, None]:
        # dkhot_i = r_i (ds_i + τ dL), and Σ khot = k fixes τ dL = −Σ r_j ds_j / Σ r.
        (r_BN,) = ctx.saved_tensors
        if ctx.fused:
            return _kernels(r_BN).closed_form_gradient(r_BN, grad_BN), None, None
        sum_B1 = r_BN.sum(1, keepdim=True).clamp_min(torch.finfo(r_BN.dtype).tiny)
        mean_B1 = (r_BN * grad_BN).sum(1, keepdim=True) / sum_B1
        return r_BN * (grad_BN - mean_B1), None, None
