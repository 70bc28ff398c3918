"""Exact optimal transport between two point sets.

Shapes: n source points, m target points, D their width.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from xmodal.batch import Points
from xmodal.interfaces import Settings
from xmodal_orca.distances.points import (
    DrawingDistance,
    half_squared,
    matching,
    uniform,
)

_PIVOTS = 10_000_000  # POT's default of 100,000 is too small for several thousand points


def exact_transport(cost_NM: Tensor, a_N: Tensor, b_M: Tensor) -> Tensor:
    """min_P <P, C> over plans with marginals a and b, by POT's network simplex on the CPU.

    Differentiable in the costs; the gradient is the optimal plan.
    """
    import ot

    value: Tensor = ot.emd2(a_N, b_M, cost_NM, numItermax=_PIVOTS, check_marginals=False)
    return value


class EMD(DrawingDistance):
    """Exact optimal transport with cost ½‖x − x'‖²: half the squared 2-Wasserstein distance.

    This is the limit of ``sinkhorn`` without regularisation. Classes are ignored.
    """

    citation = "Flamary et al.: POT: Python Optimal Transport, JMLR 2021"

    class Config(Settings):
        """Settings of the distance."""

        subsample: int | None = Field(
            None, ge=1, description="Use this many source points, drawn once; null uses all."
        )

    config: Config

    def fit(self, source: Points) -> None:
        """Keep the source."""
        self._x_ND = self.kept(source).x_ND

    def __call__(self, target: Points) -> Tensor:
        """The cost of the best transport to ``target`` ``[m, D]``."""
        z_MD = matching(target.x_ND, self._x_ND)
        cost_NM = half_squared(self._x_ND, z_MD)
        return exact_transport(cost_NM, uniform(self._x_ND), uniform(z_MD))
