"""Labels of rivals in standard units, so that the unit of a task changes no result.

Libraries compare losses with fixed numbers: XGBoost makes no split that gains less than 1e-6,
scikit-learn's trees none of a node whose variance is below 2e-16.
"""

from __future__ import annotations

import torch
from torch import Tensor


def units(y_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[K]`` of the known labels, float32; 1 where none vary."""
    y_NK = y_NK.double()
    known_NK = ~y_NK.isnan()
    count_K = known_NK.sum(0).clamp(min=1)
    mean_K = y_NK.nan_to_num(0.0).sum(0) / count_K
    off_NK = (y_NK - mean_K).nan_to_num(0.0)
    scale_K = off_NK.square().sum(0).div(count_K).sqrt()
    mean_K, scale_K = mean_K.float(), scale_K.float()
    return mean_K, torch.where(scale_K > 0, scale_K, 1.0)
