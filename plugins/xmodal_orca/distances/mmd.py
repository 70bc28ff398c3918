"""The maximum mean discrepancy between two point sets, with the kernels of ORCA's code.

Shapes: n source points, m target points, D their width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from xmodal.batch import Points
from xmodal.interfaces import Settings
from xmodal_orca.distances.points import DrawingDistance, half_squared, matching

KERNELS = 5
_CELLS = 2**22  # kernel values in memory at one time while computing the source's own term


class MMD(DrawingDistance):
    """Squared maximum mean discrepancy under five Gaussian kernels of doubling width.

    mean k(x, x') + mean k(z, z') − 2 mean k(x, z) over all pairs (Gretton et al., JMLR 2012, Eq. 5)
    with k = Σ_i exp(−‖x − x'‖² / (w 2^i)), i = −2 .. 2 (Long et al., ICML 2015). The width w is a
    mean squared distance without gradient.
    """

    class Config(Settings):
        """Settings of the distance."""

        bandwidth: Literal["pooled", "source"] = Field(
            "pooled",
            description="The width of the middle kernel is a mean squared distance: over both sets "
            "and recomputed in every call, as published; or over the source only, computed once.",
        )
        subsample: int | None = Field(
            1000,
            ge=1,
            description="Use this many source points, drawn once; null uses all.",
        )

    config: Config

    def fit(self, source: Points) -> None:
        """Keep the source, and its own term if the kernel width is already known."""
        self._x_ND = self.kept(source).x_ND
        self._width: Tensor | None = None
        if self.config.bandwidth == "source":
            self._width = mean_squared_distance(self._x_ND)
            self._own = own_term(self._x_ND, self._width)

    def __call__(self, target: Points) -> Tensor:
        """The squared discrepancy of ``target`` ``[m, D]``."""
        x_ND, z_MD = self._x_ND, matching(target.x_ND, self._x_ND)
        if self._width is None:
            width = mean_squared_distance(torch.cat([x_ND, z_MD.detach()]))
            own = own_term(x_ND, width)
        else:
            width, own = self._width, self._own
        within, across = mean_kernel(z_MD, z_MD, width), mean_kernel(x_ND, z_MD, width)
        return own + within - 2 * across


def mean_squared_distance(x_ND: Tensor) -> Tensor:
    """The mean of ‖x − x'‖² over all pairs of different points; 1 where all are equal."""
    count = x_ND.shape[0]
    # Σ_ij ‖x_i − x_j‖² = 2 n Σ_i ‖x_i − mean‖².
    spread = (x_ND - x_ND.mean(0)).square().sum()
    mean = 2 * spread / max(count - 1, 1)
    return torch.where(mean > 0, mean, torch.ones_like(mean))


def mean_kernel(x_ND: Tensor, z_MD: Tensor, width: Tensor) -> Tensor:
    """The mean of the kernel over all pairs."""
    widest = 2.0 ** (KERNELS // 2) * width
    k_NM = torch.exp(-2 * half_squared(x_ND, z_MD) / widest)
    total = k_NM.mean()
    for _ in range(KERNELS - 1):
        k_NM = k_NM.square()  # halving the width squares the kernel
        total = total + k_NM.mean()
    return total


@torch.no_grad()
def own_term(x_ND: Tensor, width: Tensor) -> Tensor:
    """The mean of the kernel over all pairs of source points, computed in blocks of rows."""
    count = x_ND.shape[0]
    blocks = torch.split(x_ND, max(1, _CELLS // count))
    return torch.stack([mean_kernel(b, x_ND, width) * (len(b) / count) for b in blocks]).sum()
