"""The Sinkhorn divergence as the released ORCA code computes it: one step a scale, none checked.

ε falls by ``SCALING``² a scale from the squared diameter of both sets to its last value. At every
scale all potentials take one averaged step, and a last step, which carries the gradient, ends it.
This is the default of the library that the released code calls (Feydy et al., AISTATS 2019;
Feydy's thesis, 2020, section 3.3). Where costs are large beside ε, it stops far from the optimum.

Shapes: n source points, m target points, D their width; both sets have equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SCALING = 0.5
"""The factor of the blur √ε from scale to scale."""


def diameter(x_ND: Tensor, z_MD: Tensor) -> float:
    """The diagonal of the box around both sets."""
    both = torch.cat([x_ND, z_MD]).detach()
    return float((both.amax(0) - both.amin(0)).norm())


def scales(diameter: float, epsilon: float) -> list[float]:
    """Every ε of the annealing, from diameter² to ``epsilon``."""
    if diameter == 0:
        return [epsilon]
    found, blur = [diameter**2], diameter
    while blur > math.sqrt(epsilon):
        found.append(blur**2)
        blur *= SCALING
    return [*found, epsilon]


def transport(cost_NM: Tensor, epsilons: list[float]) -> Tensor:
    """<a, f> + <b, g>, differentiable in the costs as functions of the second set alone."""
    fixed_NM = cost_NM.detach()
    with torch.no_grad():
        f_N, g_M = _annealed(
            lambda f_N, g_M, epsilon: (
                _soft_minimum(fixed_NM, g_M, epsilon),
                _soft_minimum(fixed_NM.T, f_N, epsilon),
            ),
            (cost_NM.new_zeros(len(cost_NM)), cost_NM.new_zeros(cost_NM.shape[1])),
            epsilons,
        )
        last_N = _soft_minimum(fixed_NM, g_M, epsilons[-1])
    return last_N.mean() + _soft_minimum(cost_NM.T, f_N, epsilons[-1]).mean()


def self_transport(cost_MM: Tensor, epsilons: list[float]) -> Tensor:
    """<b, q> of a set with itself: half of its transport. Differentiable in the rows of the costs.

    So the costs must have no gradient through the set of their columns.
    """
    fixed_MM = cost_MM.detach()
    with torch.no_grad():
        (q_M,) = _annealed(
            lambda q_M, epsilon: (_soft_minimum(fixed_MM, q_M, epsilon),),
            (cost_MM.new_zeros(len(cost_MM)),),
            epsilons,
        )
    return _soft_minimum(cost_MM, q_M, epsilons[-1]).mean()


def _annealed(
    step: Callable[..., tuple[Tensor, ...]], start: tuple[Tensor, ...], epsilons: list[float]
) -> tuple[Tensor, ...]:
    """The potentials after a first step from ``start`` and an averaged step at every ε."""
    potentials = step(*start, epsilons[0])
    for epsilon in epsilons:
        new = step(*potentials, epsilon)
        potentials = tuple((p + n) / 2 for p, n in zip(potentials, new, strict=True))
    return potentials


def _soft_minimum(cost_NM: Tensor, g_M: Tensor, epsilon: float) -> Tensor:
    """−ε log mean_j exp((g_j − C_ij)/ε), ``[N]``."""
    h_M = g_M / epsilon - math.log(len(g_M))
    return -epsilon * torch.logsumexp(h_M - cost_NM / epsilon, dim=1)
