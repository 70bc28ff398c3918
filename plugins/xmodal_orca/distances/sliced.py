"""The sliced Wasserstein distance between two point sets: the mean over random lines.

Shapes: n source points, m target points, D their width, R lines.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from xmodal.batch import Points
from xmodal.interfaces import Settings
from xmodal_orca.distances.points import DrawingDistance, fixed, matching


class Sliced(DrawingDistance):
    """Squared sliced 2-Wasserstein distance over fixed random lines (Bonneel et al., 2015).

    Exact transport of the projections on each line. Classes are ignored.
    """

    citation = "Flamary et al.: POT: Python Optimal Transport, JMLR 2021"

    class Config(Settings):
        """Settings of the distance."""

        projections: int = Field(128, ge=1, description="Number of random lines, drawn once.")

    config: Config

    def fit(self, source: Points) -> None:
        """Draw the lines and sort the source along them."""
        x_ND = fixed(source).x_ND
        generator = torch.Generator().manual_seed(self._seed)
        shape = (x_ND.shape[1], self.config.projections)
        lines_DR = torch.randn(shape, generator=generator, dtype=torch.float64)
        lines_DR = lines_DR / lines_DR.norm(dim=0, keepdim=True)
        self._lines_DR = lines_DR.to(x_ND.device, x_ND.dtype)
        self._centre_1D = x_ND[:1]  # a common shift of both sets would only cost digits
        self._sorted_NR = ((x_ND - self._centre_1D) @ self._lines_DR).sort(dim=0).values

    def __call__(self, target: Points) -> Tensor:
        """The squared distance to ``target`` ``[m, D]``."""
        import ot

        z_MD = matching(target.x_ND, self._lines_DR.T)
        sorted_MR = ((z_MD - self._centre_1D) @ self._lines_DR).sort(dim=0).values
        # POT's sliced distance would sort both sets again, and its root has no gradient at 0.
        squared_R: Tensor = ot.wasserstein_1d(self._sorted_NR, sorted_MR, p=2, require_sort=False)
        return squared_R.mean()
