"""OTDD (Alvarez-Melis & Fusi, NeurIPS 2020), the distance between labelled sets in ORCA.

Shapes: n source points, m target points, D their width, C source classes, K target classes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from xmodal.batch import Points
from xmodal.interfaces import Settings
from xmodal_orca.distances import annealed, entropic
from xmodal_orca.distances.bures import RIDGE
from xmodal_orca.distances.emd import exact_transport
from xmodal_orca.distances.labels import (
    AnnealedLabels,
    GaussianLabels,
    LabelDistance,
    PointLabels,
    Prepared,
    mean_variance,
)
from xmodal_orca.distances.points import (
    Classes,
    DrawingDistance,
    by_class,
    half_squared,
    matching,
    uniform,
)

Solver = Literal["sinkhorn", "annealed", "exact"]
# Only the value of W is needed, and its error is of second order in the error of the plan. A plan
# twenty times coarser changes W by a relative 6e-5 (10 classes of 250 points against 128, width
# 128).
_INNER = 20


class OTDD(DrawingDistance):
    """Optimal transport with cost ½‖x − x'‖² + ½ W[y, y'], W between the points of two classes.

    ORCA's alignment objective (``otdd-exact``: the defaults; ``otdd-gaussian``:
    ``labels: gaussian``). If the target has one class, W only adds a constant, and ``sinkhorn``
    gives the same gradient in half the time.
    """

    citation = (
        "Alvarez-Melis, Fusi: Geometric Dataset Distances via Optimal Transport, NeurIPS 2020"
    )

    class Config(Settings):
        """Settings of the distance."""

        labels: Literal["exact", "gaussian"] = Field(
            "exact",
            description="Compute W from the classes' points, or from Gaussians with their means "
            "and covariances.",
        )
        inner: Solver = Field(
            "sinkhorn",
            description="The solver for W if 'labels' is exact. sinkhorn: to a tolerance. "
            "annealed: Sinkhorn with one step a scale, as in the released ORCA. exact: without ε.",
        )
        outer: Solver = Field("sinkhorn", description="The solver for the transport itself.")
        reg: float = Field(
            0.1,
            gt=0,
            allow_inf_nan=False,
            description="ε of every Sinkhorn problem, in units of its cost; 0.1 is ORCA's.",
        )
        debias: bool = Field(
            True,
            description="Subtract half of each set's transport to itself from every Sinkhorn "
            "problem, so that equal sets have distance 0.",
        )
        label_gradient: bool = Field(
            False,
            description="Let the gradient also pass through W; the published code does not.",
        )
        min_count: int = Field(
            2,
            ge=1,
            description="Leave out classes with fewer points, unless all classes have fewer.",
        )
        subsample: int | None = Field(
            None, ge=1, description="Use this many source points, drawn once; null uses all."
        )
        tolerance: float = Field(
            entropic.TOLERANCE,
            gt=0,
            le=0.02,
            description="The share of mass that the outer Sinkhorn plan may misplace; for W it may "
            "be twenty times as much.",
        )

        @model_validator(mode="after")
        def _released_gradient(self) -> OTDD.Config:
            if self.label_gradient and self.outer == "annealed":
                raise ValueError("outer 'annealed' has no gradient through labels, as released")
            return self

    config: Config

    def fit(self, source: Points) -> None:
        """Keep the source, the distances between its classes and its transport to itself."""
        with torch.no_grad():
            kept = self.kept(source)
            classes = by_class(kept, self.config.min_count)
            self._labels = self._label_distance(classes)
            self._source = self._labels.prepare(classes)
            self._own = self._to_itself(self._source)

    def __call__(self, target: Points) -> Tensor:
        """The distance to ``target`` ``[m, D]``, with its classes if it has any."""
        x_ND = self._source.classes.x_ND
        z_MD = matching(target.x_ND, x_ND)
        classes = by_class(Points(z_MD, target.classes_N), self.config.min_count)
        with torch.set_grad_enabled(self.config.label_gradient and torch.is_grad_enabled()):
            prepared = self._labels.prepare(classes)
            W_CK = self._labels.between(self._source, prepared)
        z_MD = classes.x_ND
        y_N, y_M = self._source.classes.label_N, classes.label_N
        cost_NM = half_squared(x_ND, z_MD) + 0.5 * W_CK[y_N][:, y_M]
        a_N, b_M = uniform(x_ND), uniform(z_MD)
        if self.config.outer == "exact":
            return exact_transport(cost_NM, a_N, b_M)
        if self.config.outer == "annealed":
            return self._annealed(cost_NM, prepared)
        reg, tolerance = self.config.reg, self.config.tolerance
        value = entropic.transport(cost_NM[None], a_N[None], b_M[None], reg, tolerance).sum()
        return value - 0.5 * self._own - 0.5 * self._to_itself(prepared)

    def _annealed(self, cost_NM: Tensor, target: Prepared) -> Tensor:
        """The released divergence, but for the source's own term, a constant, which converged."""
        x_ND, z_MD = self._source.classes.x_ND, target.classes.x_ND
        # Released points carry their label as a coordinate, those of the target after the source's.
        last = len(self._source.own_C) + len(target.own_C) - 1
        size = math.hypot(annealed.diameter(x_ND, z_MD), last)
        epsilons = annealed.scales(size, self.config.reg)
        value = annealed.transport(cost_NM, epsilons)
        if not self.config.debias:
            return value
        y_M = target.classes.label_N
        with torch.no_grad():
            W_KK = self._labels.within(target)
        own_MM = half_squared(z_MD, z_MD.detach()) + 0.5 * W_KK[y_M][:, y_M]
        return value - 0.5 * self._own - annealed.self_transport(own_MM, epsilons)

    def _label_distance(self, source: Classes) -> LabelDistance:
        if self.config.labels == "gaussian":
            return GaussianLabels(RIDGE * mean_variance(source))
        if self.config.inner == "annealed":
            return AnnealedLabels(self.config.reg, self.config.debias)
        reg = None if self.config.inner == "exact" else self.config.reg
        return PointLabels(reg, self.config.debias, _INNER * self.config.tolerance)

    def _to_itself(self, one: Prepared) -> Tensor:
        """OT_ε of a set with itself; 0 without debiasing."""
        x_ND, y_N = one.classes.x_ND, one.classes.label_N
        if self.config.outer == "exact" or not self.config.debias:
            return x_ND.new_zeros(())
        with torch.set_grad_enabled(self.config.label_gradient and torch.is_grad_enabled()):
            W_CC = self._labels.within(one)

        def rows(block: slice) -> Tensor:
            cost_nN = half_squared(x_ND[block], x_ND) + 0.5 * W_CC[y_N[block]][:, y_N]
            return cost_nN.unsqueeze(0)

        reg, tolerance = self.config.reg, self.config.tolerance
        return entropic.self_transport(rows, uniform(x_ND)[None], reg, tolerance).sum()
