"""The relaxed draw as Triton kernels: one program per row, the whole row in registers.

The mathematics is that of ``xmodal_pare.draw``, in float32. Every sum has a fixed order, so equal
input gives equal output. Nothing waits for the host: k is read on the device.

Shapes: B samples (programs), N tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xmodal.fused import launch_by_rows


def closed_form(
    keys_BN: Tensor, k: Tensor, temperature: float, steps: int
) -> tuple[Tensor, Tensor]:
    """khot and its slopes r ``[B, N]`` by ``steps`` steps of Newton's method."""
    keys_BN = keys_BN.contiguous()
    khot_BN, r_BN = torch.empty_like(keys_BN), torch.empty_like(keys_BN)
    launch_by_rows(_closed_form, keys_BN, k, khot_BN, r_BN, temperature=temperature, STEPS=steps)
    return khot_BN, r_BN


def closed_form_gradient(r_BN: Tensor, grad_BN: Tensor) -> Tensor:
    """The gradient of the keys from that of khot."""
    out_BN = torch.empty_like(r_BN)
    launch_by_rows(_closed_form_gradient, r_BN, grad_BN.contiguous(), out_BN)
    return out_BN


def loop(keys_BN: Tensor, k: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """khot ``[B, N]`` and the softmaxes ``[B, N, N]`` of the k steps; later ones are not set."""
    keys_BN = keys_BN.contiguous()
    khot_BN, tokens = torch.empty_like(keys_BN), keys_BN.shape[1]
    p_BJN = keys_BN.new_empty(keys_BN.shape[0], tokens, tokens)
    tiny = torch.finfo(torch.float32).tiny
    launch_by_rows(_loop, keys_BN, k, khot_BN, p_BJN, temperature=temperature, TINY=tiny)
    return khot_BN, p_BJN


def loop_gradient(p_BJN: Tensor, k: Tensor, grad_BN: Tensor, temperature: float) -> Tensor:
    """The gradient of the keys from that of khot."""
    grad_BN = grad_BN.contiguous()
    out_BN = torch.empty_like(grad_BN)
    launch_by_rows(_loop_gradient, grad_BN, k, p_BJN, out_BN, temperature=temperature)
    return out_BN


def try_out(device: torch.device) -> None:
    """Compile and launch the smallest kernel."""
    row_BN = torch.ones(1, 2, device=device)
    closed_form_gradient(row_BN, row_BN)


@triton.jit
def _softplus(x):
    e = tl.exp(-tl.abs(x))
    # log(1 + e): what the sum 1 + e loses of a small e is put back by the quotient.
    rounded = 1 + e
    lost = rounded == 1
    log1p = tl.where(lost, e, tl.log(rounded) * (e / tl.where(lost, 1.0, rounded - 1)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit
def _inverse_softplus(total):
    """The x with softplus(x) = total > 0."""
    # Only used for a bound, so that the lost digits of a small total do not matter.
    return tl.where(total < 1e-3, tl.log(total), total + tl.log(1 - tl.exp(-total)))


@triton.jit
def _closed_form(
    keys_ptr, k_ptr, khot_ptr, r_ptr, tokens, temperature, STEPS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.arange(0, BLOCK)
    inside = at < tokens
    at += tl.program_id(0).to(tl.int64) * tokens
    # Places beyond the row hold -inf: softplus and sigmoid are 0 there.
    keys = tl.load(keys_ptr + at, mask=inside, other=-float("inf"))
    k = tl.load(k_ptr)
    total = tl.maximum(k, 1).to(tl.float32) / temperature
    z = (keys - tl.max(keys, 0)) / temperature
    mean = tl.sum(tl.where(inside, z, 0.0), 0) / tokens
    shift = tl.minimum(_inverse_softplus(total / tokens) - mean, _inverse_softplus(total))
    small = tl.log(total / (0.6931471805599453 * tl.sum(tl.exp(z), 0)))
    shift = tl.where(small <= 0, tl.minimum(shift, small), shift)
    for _ in range(STEPS - 1):
        x = z + shift
        shift -= (tl.sum(_softplus(x), 0) - total) / tl.sum(_sigmoid(x), 0)
    x = z + shift
    x -= (tl.sum(_softplus(x), 0) - total) / tl.sum(_sigmoid(x), 0)
    tl.store(khot_ptr + at, tl.where(k > 0, temperature * _softplus(x), 0.0), mask=inside)
    tl.store(r_ptr + at, tl.where(k > 0, _sigmoid(x), 0.0), mask=inside)


@triton.jit
def _closed_form_gradient(r_ptr, grad_ptr, out_ptr, tokens, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < tokens
    at += tl.program_id(0).to(tl.int64) * tokens
    r = tl.load(r_ptr + at, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    total = tl.sum(r, 0)
    mean = tl.sum(r * grad, 0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + at, r * (grad - mean), mask=inside)


@triton.jit
def _loop(
    keys_ptr, k_ptr, khot_ptr, p_ptr, tokens, temperature, TINY: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.arange(0, BLOCK)
    inside = at < tokens
    row = tl.program_id(0).to(tl.int64) * tokens
    alpha = tl.load(keys_ptr + row + at, mask=inside, other=-float("inf"))
    khot = tl.zeros([BLOCK], dtype=tl.float32)
    for step in range(tl.load(k_ptr)):
        e = tl.exp((alpha - tl.max(alpha, 0)) / temperature)
        p = e / tl.sum(e, 0)
        khot += p
        alpha += tl.log(tl.maximum(1 - p, TINY))
        tl.store(p_ptr + (row + step) * tokens + at, p, mask=inside)
    tl.store(khot_ptr + row + at, khot, mask=inside)


@triton.jit
def _loop_gradient(grad_ptr, k_ptr, p_ptr, out_ptr, tokens, temperature, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < tokens
    row = tl.program_id(0).to(tl.int64) * tokens
    grad = tl.load(grad_ptr + row + at, mask=inside, other=0.0)
    d_alpha = tl.zeros([BLOCK], dtype=tl.float32)
    k = tl.load(k_ptr)
    for back in range(k):
        p = tl.load(p_ptr + (row + k - 1 - back) * tokens + at, mask=inside, other=0.0)
        d_p = grad - tl.where(p < 1, d_alpha / tl.where(p < 1, 1 - p, 1.0), 0.0)
        d_alpha += p * (d_p - tl.sum(p * d_p, 0)) / temperature
    tl.store(out_ptr + row + at, d_alpha, mask=inside)
