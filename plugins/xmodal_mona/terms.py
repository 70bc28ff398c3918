"""Alignment and uniformity of features on the unit sphere (Wang & Isola, ICML 2020, section 4).

Together they measure how well an encoder still separates the source labels: samples with the same
label should lie close together, and all samples should be spread over the sphere.

Shapes: B samples, F features, P = B (B - 1) / 2 unordered pairs of different samples,
in the order of ``torch.pdist``: (0, 1), (0, 2), ..., (1, 2), ...
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def unit_features(x_BND: Tensor) -> Tensor:
    """The mean token of every sample, scaled to length 1: ``[B, F]``, at least float32."""
    wide = torch.promote_types(x_BND.dtype, torch.float32)
    return functional.normalize(x_BND.to(wide).mean(dim=1), dim=1)


def positive_pairs(y: Tensor) -> Tensor:
    """Which pairs belong together, bool ``[P]``.

    For classes (int64 ``[B]``), the pairs of samples with the same class. For numeric labels
    ``[B, ...]``, the pairs in which either sample's label is the nearest to the other's in the
    batch, by Euclidean distance; all ties count.
    """
    size = len(y)
    first_P, second_P = torch.triu_indices(size, size, 1, device=y.device)
    if not y.is_floating_point():
        return y[first_P] == y[second_P]
    distance_P = torch.pdist(y.flatten(1).nan_to_num().float())
    distance_BB = distance_P.new_full((size, size), torch.inf)
    distance_BB[first_P, second_P] = distance_P
    distance_BB[second_P, first_P] = distance_P
    nearest_B = distance_BB.amin(dim=1)
    return (distance_P == nearest_B[first_P]) | (distance_P == nearest_B[second_P])


def alignment(z_BF: Tensor, positive_P: Tensor, exponent: float = 2.0) -> Tensor:
    """L_align = mean over positive pairs of ||z_i - z_j||^a; 0 without positive pairs."""
    distance_P = torch.pdist(z_BF)
    if not bool(positive_P.any()):
        return distance_P.sum() * 0.0
    return distance_P[positive_P].pow(exponent).mean()


def uniformity(z_BF: Tensor, temperature: float = 2.0) -> Tensor:
    """L_uniform = log of the mean over all pairs of exp(-t ||z_i - z_j||^2); 0 for one sample."""
    if len(z_BF) < 2:
        return z_BF.sum() * 0.0
    exponent_P = -temperature * torch.pdist(z_BF).pow(2)
    return torch.logsumexp(exponent_P, dim=0) - torch.log(
        exponent_P.new_tensor(float(len(exponent_P)))
    )
