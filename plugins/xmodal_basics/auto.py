"""The ``auto`` predictor: picks the predictor that fits the labels, with its defaults."""

from __future__ import annotations

from torch import Tensor

from xmodal.batch import Tokens
from xmodal.interfaces import Context, Predictor, Settings
from xmodal_basics.predictors import Dense, Pooled, wanted


class AutoPredictor(Predictor):
    """``dense`` for labels on a grid or along a sequence, ``pooled`` for everything else."""

    def __init__(self, config: Settings, context: Context) -> None:
        super().__init__(config, context)
        dense = wanted(context).kind == "dense"
        self.part: Predictor = (
            Dense(Dense.Config(), context) if dense else Pooled(Pooled.Config(), context)
        )

    def forward(self, features: Tokens) -> Tensor:
        """Predict ``[B, K]`` or ``[B, K, *shape]``."""
        prediction: Tensor = self.part(features)
        return prediction
