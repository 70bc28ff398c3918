"""The k largest of N scores as a smooth function: the entropic projection onto the capped simplex.

Amos, Koltun & Kolter, "The Limited Multi-Label Projection Layer" (2019): y maximises
<s, y> + τ·H(y) over 0 < y < 1, Σ y = k, with H the sum of binary entropies. The solution is
y_i = σ((s_i + ν)/τ), with one scalar ν per row chosen so that the row sums to k. Pure functions on
tensors.

Shapes: B samples, N tokens, K chosen tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xmodal.fused import fused_kernels
from xmodal.ops import check_count, full_precision, ranks, straight_through

# The width of the bracket below is at most ln k + ln(N − k) plus the gap between the k-th and the
# next score. Normal, exponential, Cauchy and two-cluster scores of any scale needed 6 steps.
_STEPS = 8
_LONGEST_FUSED_ROW = 16384


def capped_simplex(scores_BN: Tensor, k: int | Tensor, temperature: float) -> Tensor:
    """Relaxed membership ``[B, N]`` of the k largest of finite scores, in (0, 1); rows sum to k.

    It increases with the scores; k = 0 and k = N give exactly 0 and 1. O(N) memory per row.
    Computed in float32 (float64 for float64 scores), on a GPU in one kernel. ``k``: see
    ``xmodal.ops.check_count``.
    """
    check_count(scores_BN, k)
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
    scores_BN = full_precision(scores_BN)
    if not isinstance(k, Tensor):
        k = torch.full((), k, dtype=torch.int64, device=scores_BN.device)
    y_BN: Tensor = _Relaxed.apply(scores_BN, k, temperature)
    return y_BN


def top_k(scores_BN: Tensor, k: int | Tensor, temperature: float) -> Tensor:
    """A mask ``[B, N]``, 1 on the k largest of each row; the gradient is ``capped_simplex``'s."""
    return straight_through(capped_simplex(scores_BN, k, temperature), k, scores_BN)


def _solve(scores_BN: Tensor, k: Tensor, temperature: float) -> Tensor:
    """x ``[B, N]`` with Σ σ(x) = k, 0 < k < N.

    The number of steps is fixed, so that nothing waits for the device. Each step is Newton's on the
    log-odds of the mean (linear while the scores lie within one temperature). If that leaves the
    bracket, it is Newton's on the sum; if that leaves the bracket too, it is a bisection.
    """
    total = scores_BN.shape[1]
    around_2 = torch.stack((k - 1, k)).clamp(0, total - 1)
    two_B2 = scores_BN.sort(dim=1, descending=True).values.index_select(1, around_2)
    kth_B1, next_B1 = two_B2[:, :1], two_B2[:, 1:]
    # Sum the smaller of the two sides, which keeps more digits. For k > N/2, these are the tokens
    # left out, whose sigmoids are σ(−x).
    sign = torch.where(2 * k <= total, 1, -1).to(scores_BN.dtype)
    few = torch.minimum(k, total - k).clamp_min(1).to(scores_BN.dtype)
    # Measure ν from the middle between the k-th and the next score, because differences from there
    # are exact where it matters.
    z_BN = (scores_BN - (kth_B1 + next_B1) / 2) * (sign / temperature)
    gap_B1 = (kth_B1 - next_B1) / (2 * temperature)
    # Below: few − 1 terms of at most 1 and N − few + 1 of at most 1/(N − few + 1). Above: few + 1
    # terms of at least few/(few + 1).
    low_B1, high_B1 = -gap_B1 - (total - few).log(), gap_B1 + few.log()
    odds = few.log() - (total - few).log()
    shift_B1 = (low_B1 + high_B1) / 2
    for _ in range(_STEPS):
        y_BN = torch.sigmoid(z_BN + shift_B1)
        sum_B1 = y_BN.sum(1, keepdim=True)
        slope_B1 = (y_BN * (1 - y_BN)).sum(1, keepdim=True)
        above_B1 = sum_B1 > few
        high_B1 = torch.where(above_B1, shift_B1, high_B1)
        low_B1 = torch.where(above_B1, low_B1, shift_B1)
        next_B1 = (low_B1 + high_B1) / 2
        error_B1 = (sum_B1 / (total - sum_B1)).log() - odds
        on_sum_B1 = shift_B1 - (sum_B1 - few) / slope_B1
        on_odds_B1 = shift_B1 - error_B1 * sum_B1 * (1 - sum_B1 / total) / slope_B1
        for newton_B1 in (on_sum_B1, on_odds_B1):
            inside_B1 = (newton_B1 >= low_B1) & (newton_B1 <= high_B1)
            next_B1 = torch.where(inside_B1, newton_B1, next_B1)
        shift_B1 = next_B1
    return sign * (z_BN + shift_B1)


def _slopes(x_BN: Tensor, temperature: float) -> Tensor:
    """r = y (1 − y)/τ at y = σ(x). The product of two sigmoids keeps its digits for y near 1."""
    return torch.sigmoid(x_BN) * torch.sigmoid(-x_BN) / temperature


class _Relaxed(torch.autograd.Function):
    """y of ``capped_simplex``, with its exact gradient."""

    @staticmethod
    def forward(ctx: Any, scores_BN: Tensor, k: Tensor, temperature: float) -> Tensor:
        if scores_BN.numel() == 0:
            ctx.save_for_backward(scores_BN)
            return scores_BN.clone()
        kernels = None
        if scores_BN.dtype == torch.float32 and scores_BN.shape[1] <= _LONGEST_FUSED_ROW:
            kernels = fused_kernels("xmodal_beyond.capped_simplex_kernels", scores_BN)
        if kernels:
            x_BN = kernels.solve(scores_BN, ranks(scores_BN), k, temperature, _STEPS)
        else:
            x_BN = _solve(scores_BN, k, temperature)
        # For k = 0 and k = N, x would be infinite; the gradient is 0.
        none, all_ = k == 0, k == scores_BN.shape[1]
        ctx.save_for_backward(torch.where(none | all_, 0.0, _slopes(x_BN, temperature)))
        return torch.where(none, 0.0, torch.where(all_, 1.0, torch.sigmoid(x_BN)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor, None, None]:
        # The gradient of the scores is (diag(r) − r rᵀ / Σ r) times that of y.
        (r_BN,) = ctx.saved_tensors
        sum_B1 = r_BN.sum(1, keepdim=True).clamp_min(torch.finfo(r_BN.dtype).tiny)
        return r_BN * (grad_BN - (r_BN * grad_BN).sum(1, keepdim=True) / sum_B1), None, None
