"""The projection onto the capped simplex as a Triton kernel: one program per row.

The mathematics is that of ``xmodal_beyond.capped_simplex``, in float32. Every sum has a fixed
order, so equal input gives equal output. Nothing waits for the host: k is read on the device.

Shapes: B samples (programs), N tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xmodal.fused import launch_by_rows


def solve(scores_BN: Tensor, ranks_BN: Tensor, k: Tensor, temperature: float, steps: int) -> Tensor:
    """x ``[B, N]`` with Σ σ(x) = k, 0 < k < N; ``ranks_BN`` are the ranks of the scores."""
    scores_BN = scores_BN.contiguous()
    x_BN = torch.empty_like(scores_BN)
    launch_by_rows(_solve, scores_BN, ranks_BN, k, x_BN, temperature=temperature, STEPS=steps)
    return x_BN


def try_out(device: torch.device) -> None:
    """Compile and launch the kernel."""
    scores_BN = torch.zeros(1, 2, device=device)
    ranks_BN = torch.arange(2, device=device)[None]
    k = torch.ones((), dtype=torch.int64, device=device)
    solve(scores_BN, ranks_BN, k, 1.0, 2)


@triton.jit
def _solve(
    scores_ptr, ranks_ptr, k_ptr, x_ptr, tokens, temperature,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, BLOCK)
    inside = at < tokens
    at += tl.program_id(0).to(tl.int64) * tokens
    scores = tl.load(scores_ptr + at, mask=inside, other=0.0)
    ranks = tl.load(ranks_ptr + at, mask=inside, other=-1)
    k = tl.minimum(tl.maximum(tl.load(k_ptr), 1), tokens - 1)
    kth = tl.max(tl.where(ranks == k - 1, scores, -float("inf")), 0)
    following = tl.max(tl.where(ranks == k, scores, -float("inf")), 0)
    # The smaller of the two sides, as in the plain form.
    sign = tl.where(2 * k <= tokens, 1.0, -1.0)
    few = tl.minimum(k, tokens - k).to(tl.float32)
    many = tokens - few
    z = (scores - (kth + following) / 2) * (sign / temperature)
    # Places beyond the row hold -inf: their sigmoid is 0.
    z = tl.where(inside, z, -float("inf"))
    gap = (kth - following) / (2 * temperature)
    low = -gap - tl.log(many)
    high = gap + tl.log(few)
    odds = tl.log(few) - tl.log(many)
    shift = (low + high) / 2
    for _ in range(STEPS):
        e = tl.exp(-tl.abs(z + shift))
        y = tl.where(z + shift < 0, e, 1.0) / (1 + e)
        total = tl.sum(y, 0)
        slope = tl.sum(y * (1 - y), 0)
        low = tl.where(total > few, low, shift)
        high = tl.where(total > few, shift, high)
        on_sum = shift - (total - few) / slope
        on_odds = (
            shift - (tl.log(total / (tokens - total)) - odds) * total * (1 - total / tokens) / slope
        )
        # Comparisons with what is not a number are false.
        shift = (low + high) / 2
        shift = tl.where((on_sum >= low) & (on_sum <= high), on_sum, shift)
        shift = tl.where((on_odds >= low) & (on_odds <= high), on_odds, shift)
    tl.store(x_ptr + at, sign * (z + shift), mask=inside)
