"""Scikit-learn models wrapped in torch modules, so that checkpoints can hold them.

``LinearModel`` keeps its coefficients as buffers and predicts in torch. ``BoostedTrees`` keeps its
training data instead; after loading, it grows the same trees again when it first needs them.

Shapes: B and n samples, F columns, P numbers per sample, R directions, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xmodal.interfaces import FittedBuffers

LEAST_LOG_ODDS = -13.8  # log 1e-6: the logit of a label that no training sample has
MOST_CATEGORIES = 255  # the most categories a tree can split by; more are ordered by their code
Array = NDArray[np.float64]
Kind = Literal["classification", "multi-label", "regression", "dense"]


class LinearModel(FittedBuffers):
    """``(x - shift) / scale @ basis @ weight + bias``; a missing number becomes the training mean.

    The basis holds the first principal directions of the standardised training samples. If it
    holds all of them, a ridge penalty on its coefficients equals a ridge penalty on the numbers,
    but the cost grows with the number of samples instead of the number of columns.
    """

    names = ("shift_P", "scale_P", "basis_PR", "weight_RK", "bias_K")
    shift_P: Tensor
    scale_P: Tensor
    basis_PR: Tensor
    weight_RK: Tensor
    bias_K: Tensor

    def forward(self, x_BP: Tensor) -> Tensor:
        """Predict ``[B, K]``."""
        z_BR = torch.nan_to_num((x_BP - self.shift_P) / self.scale_P) @ self.basis_PR
        return z_BR @ self.weight_RK + self.bias_K

    def fit(
        self,
        x_NP: Array,
        solve: Callable[[Array], tuple[Array, Array]],
        rank: int,
        own_scales: bool,
        seed: int,
    ) -> None:
        """Fit the basis, then the weights ``[K, R]`` and biases ``[K]`` by ``solve``."""
        self.take(*solve(self.directions(x_NP, rank, own_scales, seed)))

    def directions(self, x_NP: Array, rank: int, own_scales: bool, seed: int) -> Array:
        """Fit the basis; returns the samples in it, ``[n, R]``.

        ``own_scales`` gives each number its own scale; otherwise all numbers share one.
        """
        from sklearn.decomposition import PCA

        count_P = (~np.isnan(x_NP)).sum(0).clip(1)
        shift_P = np.nansum(x_NP, 0) / count_P
        x_NP = np.nan_to_num(x_NP - shift_P)
        scale_P = np.atleast_1d(np.sqrt(np.mean(x_NP**2, axis=0 if own_scales else None)))
        # The mean of equal numbers is off by rounding (1e-13 of it): that is no scale.
        size_P = np.abs(shift_P if own_scales else shift_P.max(keepdims=True, initial=0.0))
        scale_P[scale_P <= 1e-10 * size_P] = 1.0
        x_NP /= scale_P
        basis_PR = PCA(min(rank, *x_NP.shape), random_state=seed).fit(x_NP).components_.T
        self._keep(shift_P=shift_P, scale_P=scale_P, basis_PR=basis_PR)
        return np.asarray(x_NP @ basis_PR)

    def take(self, weight_KR: Array, bias_K: Array) -> None:
        """Predict by these weights and biases."""
        self._keep(weight_RK=weight_KR.T, bias_K=bias_K)

    def _keep(self, **values: Array) -> None:
        for name, value in values.items():
            setattr(self, name, torch.from_numpy(np.ascontiguousarray(value)).float())


def ridge(
    z_NR: Array, y_NK: Array, penalties: tuple[float, ...], weight_N: Array | None = None
) -> tuple[Array, Array]:
    """Weights ``[K, R]`` and biases ``[K]`` by ridge regression; the mean replaces unknown labels.

    The penalty is the one with the smallest leave-one-out error. ``weight_N``: how much each sample
    counts.
    """
    from sklearn.linear_model import RidgeCV

    missing_NK = np.isnan(y_NK)
    if missing_NK.any():
        mean_K = np.where(missing_NK, 0.0, y_NK).sum(0) / (~missing_NK).sum(0).clip(1)
        y_NK = np.where(missing_NK, mean_K, y_NK)
    model = RidgeCV(list(penalties)).fit(z_NR, y_NK, sample_weight=weight_N)
    return np.atleast_2d(model.coef_), np.broadcast_to(model.intercept_, y_NK.shape[1:]).copy()


def logistic(
    z_NR: Array,
    y: NDArray[Any],
    outputs: int,
    settings: dict[str, Any],
    weight_N: Array | None = None,
) -> tuple[Array, Array]:
    """Weights ``[K, R]`` and biases ``[K]`` by multinomial logistic regression on classes ``[n]``.

    Labels ``[n, K]`` get one binary model each, of the samples whose label is known (not below 0).
    """
    from sklearn.linear_model import LogisticRegression

    weight_KR = np.zeros((outputs, z_NR.shape[1]))
    bias_K = np.full(outputs, LEAST_LOG_ODDS)
    if y.ndim == 2:
        for k, y_N in enumerate(y.T):
            known_N = y_N >= 0
            seen = np.unique(y_N[known_N])
            if len(seen) < 2:
                bias_K[k] = -LEAST_LOG_ODDS if seen.any() else LEAST_LOG_ODDS
                continue
            weight_M = None if weight_N is None else weight_N[known_N]
            model = LogisticRegression(**settings).fit(z_NR[known_N], y_N[known_N], weight_M)
            weight_KR[k], bias_K[k] = model.coef_[0], model.intercept_[0]
        return weight_KR, bias_K
    seen = np.unique(y)
    bias_K[seen] = 0.0
    if len(seen) > 1:
        model = LogisticRegression(**settings).fit(z_NR, y, weight_N)
        # For two classes, scikit-learn keeps only the log-odds of the second; the first has 0.
        own = seen[1:] if len(seen) == 2 else seen
        weight_KR[own], bias_K[own] = model.coef_, model.intercept_
    return weight_KR, bias_K


class BoostedTrees(FittedBuffers):
    """Histogram gradient boosting: one model for all classes, or one per number or label."""

    names = ("train_x_NF", "train_y")
    optional = ("train_weight_N",)
    train_x_NF: Tensor
    train_y: Tensor
    train_weight_N: Tensor | None

    def __init__(
        self, kind: Kind, outputs: int, levels: tuple[int, ...], settings: dict[str, Any]
    ) -> None:
        super().__init__()
        self.kind = kind
        self.outputs = outputs
        self.settings = dict(settings)
        by_category = [0 < count <= MOST_CATEGORIES for count in levels]
        if any(by_category):
            self.settings["categorical_features"] = by_category
        self.trees: list[Any] = []

    def fit(self, x_NF: Tensor, y: Tensor, weight_N: Tensor | None = None) -> None:
        """Keep the training data and grow the trees."""
        self.train_x_NF, self.train_y, self.train_weight_N = x_NF.float(), y, weight_N
        self.grow()

    def grow(self) -> None:
        """Fit one model per output; a constant output needs none."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        rows, y = self.train_x_NF.cpu().numpy(), self.train_y.cpu().numpy()
        weight_N = None if self.train_weight_N is None else self.train_weight_N.cpu().numpy()
        numbers = self.kind == "regression"
        family = HistGradientBoostingRegressor if numbers else HistGradientBoostingClassifier
        self.trees = [
            family(**self.settings).fit(rows, y_N, weight_N) if len(np.unique(y_N)) > 1 else y_N[0]
            for y_N in ([y] if y.ndim == 1 else y.T)
        ]

    def loaded(self) -> None:
        """Grow other trees when they are needed."""
        self.trees = []

    def forward(self, x_BF: Tensor) -> Tensor:
        """Predict ``[B, K]``: log-probabilities of classes, log-odds of labels, or numbers."""
        if not self.trees:
            self.grow()
        rows = x_BF.detach().float().cpu().numpy()
        y_BK = np.concatenate([self._predict(model, rows) for model in self.trees], axis=1)
        return torch.from_numpy(y_BK).to(x_BF.device, torch.float32)

    def _predict(self, model: Any, rows: NDArray[np.float32]) -> Array:
        fitted = hasattr(model, "predict")
        if self.kind == "regression":
            return np.asarray(model.predict(rows) if fitted else [model] * len(rows))[:, None]
        if self.kind == "multi-label":
            constant = -LEAST_LOG_ODDS if not fitted and model else LEAST_LOG_ODDS
            logit_B = model.decision_function(rows) if fitted else [constant] * len(rows)
            return np.asarray(logit_B)[:, None]
        log_p_BK = np.full((len(rows), self.outputs), LEAST_LOG_ODDS)
        seen = model.classes_.astype(int) if fitted else [int(model)]
        p_BK = model.predict_proba(rows) if fitted else np.ones((len(rows), 1))
        log_p_BK[:, seen] = np.log(p_BK.clip(np.exp(LEAST_LOG_ODDS)))
        return log_p_BK
