"""The mean Euclidean distance between the points of two sets.

Shapes: n source points, m target points, D their width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.batch import Points
from xmodal.interfaces import Distance, Settings
from xmodal_orca.distances.points import fixed, matching


class L2(Distance):
    """Mean Euclidean distance over all pairs of a source and a target point.

    ORCA's code has this objective as ``l2``, averaged over random pairs. It pulls all target
    points towards the centre of the source and is not 0 for equal sets.
    """

    citation = (
        "Shen, Li, Dery, Staten, Khodak, Neubig, Talwalkar: Cross-Modal Fine-Tuning: Align "
        "then Refine (ORCA), ICML 2023"
    )

    class Config(Settings):
        """No settings."""

    config: Config

    def fit(self, source: Points) -> None:
        """Keep the source."""
        self._x_ND = fixed(source).x_ND

    def __call__(self, target: Points) -> Tensor:
        """The mean distance to ``target`` ``[m, D]``."""
        centre_1D = self._x_ND[:1]  # far from 0, squares leave no digits for differences
        z_MD = matching(target.x_ND, self._x_ND)
        return torch.cdist(self._x_ND - centre_1D, z_MD - centre_1D).mean()
