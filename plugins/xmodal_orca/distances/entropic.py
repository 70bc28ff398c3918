"""Entropic optimal transport OT_ε between weighted points: batched solvers on the dual.

    OT_ε(a, b) = min_P <P, C> + ε KL(P | a ⊗ b) = max_{f,g} <a, f> + <b, g>  (at the optimum)

Sources: Feydy et al. (AISTATS 2019) for the symmetric problem, Schmitzer (SISC 2019) for ε-scaling
with an absorbed kernel. POT has the same algorithm, but is slower: on 5000 x 128 points of width
128 with ε = 0.1, its ``sinkhorn_epsilon_scaling`` took 17 CPU seconds, its default entropic solver
took 3.4, and its ``sinkhorn_stabilized`` divided by zero. This module takes 0.3 to reach a marginal
error of 1e-4.

Shapes: L independent problems with N and M points; padding has weight 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# The accuracy of the potentials: the L1 error of the plan's column sums, which sum to 1.
TOLERANCE = 1e-3
# ε-scaling shrinks ε by this factor per level, starting from the spread of the costs; each level
# starts from the potentials of the level before.
_ANNEALING = 0.25
_INNER, _ROUND, _ROUNDS = 20, 100, 20
_CHECK_EVERY = 5
_SYMMETRIC_STEPS = 200
# Cells of the cost matrix in memory at one time in the symmetric problem: 16 MB of float32.
_CELLS = 2**22


def transport(
    cost_LNM: Tensor, a_LN: Tensor, b_LM: Tensor, epsilon: float, tolerance: float = TOLERANCE
) -> Tensor:
    """OT_ε ``[L]``, differentiable in the costs.

    The gradient is the plan (envelope theorem). The potentials are computed without a graph; one
    last half-step makes the plan's column sums exact and carries the gradient.
    """
    with torch.no_grad():
        f_LN = _solve(cost_LNM.detach(), a_LN, b_LM, epsilon, tolerance)
    g_LM = _soft_minimum(cost_LNM.transpose(1, 2), f_LN, a_LN.log(), epsilon)
    return (a_LN * f_LN).sum(1) + (b_LM * g_LM).sum(1)


def self_transport(
    rows: Callable[[slice], Tensor], a_LN: Tensor, epsilon: float, tolerance: float = TOLERANCE
) -> Tensor:
    """OT_ε of points with themselves ``[L]``; ``rows`` gives some rows of the costs ``[L, n, N]``.

    Differentiable in the costs, like ``transport``. Without a gradient, memory is bounded for
    every N.
    """
    log_LN = a_LN.log()
    step = max(1, _CELLS // a_LN.numel())
    blocks = [slice(i, i + step) for i in range(0, a_LN.shape[1], step)]

    def half_step(p_LN: Tensor) -> Tensor:
        return torch.cat([_soft_minimum(rows(b), p_LN, log_LN, epsilon) for b in blocks], dim=1)

    with torch.no_grad():
        p_LN = torch.zeros_like(a_LN)
        for _ in range(_SYMMETRIC_STEPS):
            # Averaging the old and new potentials converges fast here; alternating would not.
            change_LN = 0.5 * (half_step(p_LN) - p_LN)
            p_LN = p_LN + change_LN
            if float((a_LN * change_LN.abs()).sum(1).max()) < 0.5 * tolerance * epsilon:
                break
    return (a_LN * (p_LN + half_step(p_LN))).sum(1)


def _soft_minimum(cost_LNM: Tensor, g_LM: Tensor, log_b_LM: Tensor, epsilon: float) -> Tensor:
    """−ε log Σ_j b_j exp((g_j − C_ij)/ε), the best f for g, ``[L, N]``."""
    h_L1M = (log_b_LM + g_LM / epsilon).unsqueeze(1)
    return -epsilon * torch.logsumexp(h_L1M - cost_LNM / epsilon, dim=2)


def _solve(
    cost_LNM: Tensor, a_LN: Tensor, b_LM: Tensor, epsilon: float, tolerance: float
) -> Tensor:
    """The potential f ``[L, N]``."""
    log_b_LM = b_LM.log()
    g_LM = torch.zeros_like(b_LM)
    level = float(cost_LNM.max() - cost_LNM.min()) * _ANNEALING
    while level > 2 * epsilon:
        v_LM, _ = _scale(cost_LNM, a_LN, b_LM, g_LM, level, _INNER, 10 * tolerance)
        g_LM = g_LM + level * v_LM.log()
        level *= _ANNEALING
    for _ in range(_ROUNDS):
        v_LM, error = _scale(cost_LNM, a_LN, b_LM, g_LM, epsilon, _ROUND, tolerance)
        g_LM = g_LM + epsilon * v_LM.log()
        if error < tolerance:
            break
    return _soft_minimum(cost_LNM, g_LM, log_b_LM, epsilon)


def _scale(
    cost_LNM: Tensor,
    a_LN: Tensor,
    b_LM: Tensor,
    g_LM: Tensor,
    epsilon: float,
    steps: int,
    tolerance: float,
) -> tuple[Tensor, float]:
    """Sinkhorn's scalings v ``[L, M]`` of the kernel at potential g, and the error of the plan.

    With g absorbed into the kernel, exponentials are computed once, and a step is two
    matrix-vector products: 40 times cheaper than a step on the potentials.
    """
    tiny = 1e-30  # an underflowing kernel column rises by 69 ε per round, instead of to infinity
    log_b_LM = b_LM.log()
    f_LN = _soft_minimum(cost_LNM, g_LM, log_b_LM, epsilon)
    h_L1M = (g_LM + epsilon * log_b_LM).unsqueeze(1)
    kernel_LNM = (f_LN.unsqueeze(2) + h_L1M).sub_(cost_LNM).div_(epsilon).exp_()
    u_LN, v_LM = torch.ones_like(a_LN), torch.ones_like(b_LM)
    real_LM, error = b_LM > 0, float("inf")
    for step in range(steps):
        sums_LM = torch.bmm((a_LN * u_LN).unsqueeze(1), kernel_LNM).squeeze(1)
        if step % _CHECK_EVERY == 0:
            error = float((sums_LM * v_LM - b_LM).abs().sum(1).max())
            if error < tolerance:
                break
        v_LM = torch.where(real_LM, b_LM / sums_LM.clamp_min(tiny), 1.0)
        # A row vector times the transposed kernel is eight times faster on CPUs than the kernel
        # times a column vector.
        row_sums_LN = torch.bmm(v_LM.unsqueeze(1), kernel_LNM.transpose(1, 2)).squeeze(1)
        u_LN = row_sums_LN.clamp_min(tiny).reciprocal()
    return v_LM, error
