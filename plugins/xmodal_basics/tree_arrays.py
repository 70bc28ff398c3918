"""A forest as arrays, so that checkpoints can hold it, predicted as scikit-learn predicts it.

Shapes: B samples, F numbers per sample, T trees, M nodes of all trees together, U different leaves,
K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from xmodal.interfaces import FittedBuffers


class TreeArrays(FittedBuffers):
    """The nodes of all trees end to end. A prediction is the mean of the leaves that are reached.

    A leaf is its own child, and ``leaf_M`` is its row in ``value_UK``: most leaves of a classifier
    say the same few things. A missing number goes to the side that scikit-learn learned for it.
    """

    names: ClassVar[tuple[str, ...]] = (
        "root_T", "left_M", "right_M", "feature_M", "threshold_M", "missing_left_M", "leaf_M",
        "value_UK",
    )  # fmt: skip
    root_T: Tensor
    left_M: Tensor
    right_M: Tensor
    feature_M: Tensor
    threshold_M: Tensor
    missing_left_M: Tensor
    leaf_M: Tensor
    value_UK: Tensor

    def keep(self, trees: Sequence[Any], scale_K: Any = 1.0, shift_K: Any = 0.0) -> None:
        """Copy the trees of a fitted scikit-learn forest; leaves become ``scale * value + shift``.

        A value is a share of each class, or a number for each output.
        """
        parts = [tree.tree_ for tree in trees]
        size_T = np.array([part.node_count for part in parts])
        root_T = np.cumsum(size_T) - size_T

        def joined(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in parts])

        start_M = np.repeat(root_T, size_T)
        own_M = np.arange(len(start_M))
        left_M, right_M, feature_M = (
            joined(name) for name in ("children_left", "children_right", "feature")
        )
        is_leaf_M = left_M < 0
        # Of one output with K classes, or of K outputs with one number each.
        value_MK = np.concatenate([part.value.reshape(part.node_count, -1) for part in parts])
        value_UK, leaf_L = np.unique(value_MK[is_leaf_M], axis=0, return_inverse=True)
        leaf_M = np.zeros(len(own_M), dtype=np.int64)
        leaf_M[is_leaf_M] = leaf_L.ravel()
        arrays = {
            "root_T": root_T.astype(np.int32),
            "left_M": np.where(is_leaf_M, own_M, left_M + start_M).astype(np.int32),
            "right_M": np.where(is_leaf_M, own_M, right_M + start_M).astype(np.int32),
            "feature_M": np.where(is_leaf_M, 0, feature_M).astype(np.int32),
            "threshold_M": joined("threshold"),
            "missing_left_M": joined("missing_go_to_left").astype(bool),
            "leaf_M": leaf_M.astype(np.int32),
            "value_UK": value_UK * scale_K + shift_K,
        }
        for name, array in arrays.items():
            setattr(self, name, torch.from_numpy(np.ascontiguousarray(array)))

    def forward(self, x_BF: Tensor) -> Tensor:
        """The mean over the trees, float64 ``[B, K]``; numbers are compared in float32."""
        # One tree after another: memory stays that of a batch, and sums do not depend on it.
        x_BF = x_BF.float()
        sum_BK = self.value_UK.new_zeros(len(x_BF), self.value_UK.shape[1])
        rows_B = torch.arange(len(x_BF), device=x_BF.device)
        for root in self.root_T.tolist():
            node_B = torch.full_like(rows_B, root)
            while True:
                x_B = x_BF[rows_B, self.feature_M[node_B].long()]
                goes_left_B = torch.where(
                    x_B.isnan(), self.missing_left_M[node_B], x_B <= self.threshold_M[node_B]
                )
                next_B = torch.where(goes_left_B, self.left_M[node_B], self.right_M[node_B]).long()
                if torch.equal(next_B, node_B):
                    break
                node_B = next_B
            sum_BK += self.value_UK[self.leaf_M[node_B].long()]
        return sum_BK / len(self.root_T)
