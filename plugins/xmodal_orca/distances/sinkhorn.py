"""The Sinkhorn divergence between two point sets.

Shapes: n source points, m target points, D their width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from xmodal.batch import Points
from xmodal.interfaces import Settings
from xmodal_orca.distances import entropic
from xmodal_orca.distances.points import (
    DrawingDistance,
    half_squared,
    matching,
    uniform,
)


class Sinkhorn(DrawingDistance):
    """Sinkhorn divergence with cost ½‖x − x'‖²; the gradient of ORCA's OTDD, at a fraction of it.

    OT_ε(a, b) − ½ OT_ε(a, a) − ½ OT_ε(b, b) (Feydy et al., AISTATS 2019, Eq. 3). Classes are
    ignored. OTDD with one target class, as in ORCA, differs only by a constant.
    """

    citation = (
        "Feydy et al.: Interpolating between Optimal Transport and MMD using Sinkhorn "
        "Divergences, AISTATS 2019"
    )

    class Config(Settings):
        """Settings of the distance."""

        reg: float = Field(
            0.1,
            gt=0,
            allow_inf_nan=False,
            description="ε in units of the cost ½‖x − x'‖²; 0.1 is ORCA's.",
        )
        debias: bool = Field(
            True,
            description="Subtract half of each set's transport to itself, so that equal sets have "
            "distance 0.",
        )
        subsample: int | None = Field(
            None, ge=1, description="Use this many source points, drawn once; null uses all."
        )
        tolerance: float = Field(
            entropic.TOLERANCE,
            gt=0,
            lt=1,
            description="The share of mass that the transport plan may misplace.",
        )

    config: Config

    def fit(self, source: Points) -> None:
        """Keep the source and its transport to itself."""
        kept = self.kept(source)
        self._x_ND = kept.x_ND
        with torch.no_grad():
            self._own = self._to_itself(self._x_ND) if self.config.debias else None

    def __call__(self, target: Points) -> Tensor:
        """The divergence from ``target`` ``[m, D]``."""
        z_MD = matching(target.x_ND, self._x_ND)
        cost_NM = half_squared(self._x_ND, z_MD)
        weights = uniform(self._x_ND)[None], uniform(z_MD)[None]
        reg, tolerance = self.config.reg, self.config.tolerance
        value: Tensor = entropic.transport(cost_NM[None], *weights, reg, tolerance).sum()
        if self._own is None:
            return value
        return value - 0.5 * self._own - 0.5 * self._to_itself(z_MD)

    def _to_itself(self, x_ND: Tensor) -> Tensor:
        reg, tolerance = self.config.reg, self.config.tolerance
        return entropic.self_transport(
            lambda rows: half_squared(x_ND[rows], x_ND)[None], uniform(x_ND)[None], reg, tolerance
        ).sum()
