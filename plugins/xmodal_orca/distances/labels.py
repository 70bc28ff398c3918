"""Distances between classes: the W of OTDD (Alvarez-Melis & Fusi, NeurIPS 2020, section 4).

Shapes: C and K classes of two sets, S and T points of their largest classes (padded), P pairs of
classes, D the width of points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal_orca.distances import annealed, entropic
from xmodal_orca.distances.bures import Gaussian, bures_squared, moments, ridged, root
from xmodal_orca.distances.emd import exact_transport
from xmodal_orca.distances.points import Classes, half_squared

_CELLS = 2**22  # cells of cost matrices in memory at one time


@dataclass(frozen=True)
class Prepared:
    """Classes, with the values that depend only on one set.

    ``own_C`` is subtracted from W once for each set, so that equal classes have distance 0.
    ``diagonal_C`` is W[y, y] within the set.
    """

    classes: Classes
    own_C: Tensor
    diagonal_C: Tensor
    gaussian: Gaussian | None = None
    root_CDD: Tensor | None = None


class LabelDistance(ABC):
    """A distance between classes."""

    @abstractmethod
    def prepare(self, classes: Classes) -> Prepared:
        """Compute once the values that depend only on one set."""

    @abstractmethod
    def pairs(self, one: Prepared, other: Prepared, i_P: Tensor, j_P: Tensor) -> Tensor:
        """Distances ``[P]`` between classes i of one set and j of the other, before ``own_C``."""

    def between(self, one: Prepared, other: Prepared) -> Tensor:
        """W ``[C, K]``, differentiable in the points of ``other``."""
        shape = len(one.own_C), len(other.own_C)
        grid_CK = torch.ones(shape, dtype=torch.bool, device=one.own_C.device)
        W_P = self._in_chunks(one, other, *grid_CK.nonzero(as_tuple=True))
        return W_P.view(shape) - one.own_C.unsqueeze(1) - other.own_C.unsqueeze(0)

    def within(self, one: Prepared) -> Tensor:
        """W ``[C, C]`` of a set with itself; every pair is computed once."""
        count = len(one.own_C)
        i_P, j_P = torch.triu_indices(count, count, 1, device=one.own_C.device)
        W_CC = torch.diag(one.diagonal_C)
        if len(i_P) == 0:
            return W_CC
        W_P = self._in_chunks(one, one, i_P, j_P) - one.own_C[i_P] - one.own_C[j_P]
        both = torch.cat([i_P, j_P]), torch.cat([j_P, i_P])
        return W_CC.index_put(both, torch.cat([W_P, W_P]))

    def _in_chunks(self, one: Prepared, other: Prepared, i_P: Tensor, j_P: Tensor) -> Tensor:
        cells = one.classes.x_CSD.shape[1] * other.classes.x_CSD.shape[1]
        step = max(1, _CELLS // cells)
        chunks = zip(torch.split(i_P, step), torch.split(j_P, step), strict=True)
        return torch.cat([self.pairs(one, other, i, j) for i, j in chunks])


class PointLabels(LabelDistance):
    """Optimal transport between the classes' points with cost ‖x − x'‖² (no ½).

    Exact if ``reg`` is None, otherwise entropic; with ``debias``, the Sinkhorn divergence.
    """

    def __init__(self, reg: float | None, debias: bool, tolerance: float) -> None:
        self._reg, self._debias, self._tolerance = reg, debias, tolerance

    def prepare(self, classes: Classes) -> Prepared:
        """The transport of every class to itself."""
        zero_C = torch.zeros_like(classes.weight_CS[:, 0])
        if self._reg is None:
            return Prepared(classes, zero_C, zero_C)
        own_C = torch.cat([self._to_itself(*_trimmed(classes, c)) for c in range(len(zero_C))])
        if self._debias:
            return Prepared(classes, own_C, zero_C)
        return Prepared(classes, zero_C, 2 * own_C)

    def pairs(self, one: Prepared, other: Prepared, i_P: Tensor, j_P: Tensor) -> Tensor:
        """Transport cost ``[P]``."""
        x_PSD, a_PS = _trimmed(one.classes, i_P)
        z_PTD, b_PT = _trimmed(other.classes, j_P)
        cost_PST = half_squared(x_PSD, z_PTD)
        if self._reg is None:
            parts = zip(cost_PST, a_PS, b_PT, strict=True)
            return torch.stack([2 * _exact(*part) for part in parts])
        # ‖x − x'‖² with ε is twice ½‖x − x'‖² with ½ε.
        return 2 * entropic.transport(cost_PST, a_PS, b_PT, self._reg / 2, self._tolerance)

    def _to_itself(self, x_1SD: Tensor, a_1S: Tensor) -> Tensor:
        def rows(block: slice) -> Tensor:
            return half_squared(x_1SD[:, block], x_1SD)

        assert self._reg is not None
        return entropic.self_transport(rows, a_1S, self._reg / 2, self._tolerance)


class AnnealedLabels(LabelDistance):
    """The Sinkhorn divergence with cost ‖x − x'‖² (no ½), with one step a scale as released.

    The scales depend on both classes of a pair, so every pair has own terms of its own.
    """

    def __init__(self, reg: float, debias: bool) -> None:
        self._reg, self._debias = reg, debias

    def prepare(self, classes: Classes) -> Prepared:
        """Nothing depends on one set alone; W[y, y] is 0, or that of the pair without debiasing."""
        zero_C = torch.zeros_like(classes.weight_CS[:, 0])
        if self._debias:
            return Prepared(classes, zero_C, zero_C)
        count = range(len(zero_C))
        sets = [_trimmed(classes, c)[0][0] for c in count]
        return Prepared(classes, zero_C, torch.stack([self._between(x, x) for x in sets]))

    def pairs(self, one: Prepared, other: Prepared, i_P: Tensor, j_P: Tensor) -> Tensor:
        """The divergence ``[P]``."""
        found = [
            self._between(_trimmed(one.classes, i)[0][0], _trimmed(other.classes, j)[0][0])
            for i, j in zip(i_P, j_P, strict=True)
        ]
        return torch.stack(found)

    def _between(self, x_SD: Tensor, z_TD: Tensor) -> Tensor:
        epsilons = annealed.scales(annealed.diameter(x_SD, z_TD), self._reg)
        value = annealed.transport(2 * half_squared(x_SD, z_TD), epsilons)
        if not self._debias:
            return value
        for set_ in (x_SD, z_TD):
            own = 2 * half_squared(set_, set_.detach())
            value = value - annealed.self_transport(own, epsilons)
        return value


class GaussianLabels(LabelDistance):
    """Squared Bures-Wasserstein distance between the classes' Gaussians.

    ``ridge`` (a scalar, the same for both sets) is added to every variance.
    """

    def __init__(self, ridge: Tensor) -> None:
        self._ridge = ridge

    def prepare(self, classes: Classes) -> Prepared:
        """The mean, covariance and root of the covariance of every class."""
        gaussian = ridged(moments(classes.x_CSD, classes.weight_CS), self._ridge)
        zero_C = torch.zeros_like(classes.weight_CS[:, 0])
        with torch.no_grad():
            root_CDD = root(gaussian.covariance)
        return Prepared(classes, zero_C, zero_C, gaussian, root_CDD)

    def pairs(self, one: Prepared, other: Prepared, i_P: Tensor, j_P: Tensor) -> Tensor:
        """W₂² ``[P]``."""
        W_P = _bures(one, other, i_P, j_P)
        if one.classes.x_CSD.requires_grad:
            # The root has no gradient: the first argument gets its gradient from swapped pairs.
            turned_P = _bures(other, one, j_P, i_P)
            W_P = W_P + (turned_P - turned_P.detach())
        return W_P.to(one.own_C.dtype)


def _bures(one: Prepared, other: Prepared, i_P: Tensor, j_P: Tensor) -> Tensor:
    """Differentiable in ``other`` alone."""
    assert one.gaussian is not None
    assert one.root_CDD is not None
    assert other.gaussian is not None
    fixed = Gaussian(one.gaussian.mean.detach(), one.gaussian.covariance.detach())
    return bures_squared(fixed.at(i_P), other.gaussian.at(j_P), one.root_CDD[i_P])


def mean_variance(classes: Classes) -> Tensor:
    """The mean variance of a coordinate within a class, in float64; 1 if no class varies."""
    covariance_CDD = moments(classes.x_CSD, classes.weight_CS).covariance
    mean = covariance_CDD.diagonal(dim1=-2, dim2=-1).mean()
    return torch.where(mean > 0, mean, torch.ones_like(mean))


def _trimmed(classes: Classes, index: Tensor | int) -> tuple[Tensor, Tensor]:
    """Points ``[P, S, D]`` and weights of some classes, with as little padding as possible."""
    index_P = torch.as_tensor(index, device=classes.x_CSD.device).reshape(-1)
    weight_PS = classes.weight_CS[index_P]
    size = int((weight_PS > 0).sum(1).max())
    return classes.x_CSD[index_P, :size], weight_PS[:, :size]


def _exact(cost_ST: Tensor, a_S: Tensor, b_T: Tensor) -> Tensor:
    """Exact transport, ignoring the padding."""
    rows, columns = int((a_S > 0).sum()), int((b_T > 0).sum())
    return exact_transport(cost_ST[:rows, :columns], a_S[:rows], b_T[:columns])
