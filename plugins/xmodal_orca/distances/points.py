"""Operations on points shared by all distances: precision, subsamples, squared distances, classes.

Shapes: n source points, m target points, D their width, C classes, S points of the largest class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xmodal.batch import Points
from xmodal.interfaces import Context, Distance


@dataclass(frozen=True)
class Classes:
    """Points sorted into their classes, padded to the largest.

    ``label_N`` is the class (0 .. C-1) of every kept point. ``x_CSD`` holds the points of each
    class, padded with zeros. ``weight_CS`` is 0 for padding, and each of its rows sums to 1.
    """

    x_ND: Tensor
    label_N: Tensor
    x_CSD: Tensor
    weight_CS: Tensor


def precise(x_ND: Tensor) -> Tensor:
    """Points in float32, or in float64 if they already are."""
    if x_ND.dim() != 2 or x_ND.shape[0] == 0:
        raise ValueError(f"a distance needs points of shape [n, D], not {list(x_ND.shape)}")
    return x_ND if x_ND.dtype == torch.float64 else x_ND.float()


def fixed(source: Points) -> Points:
    """The source in the precision for computing, detached from the graph."""
    return Points(precise(source.x_ND.detach()), source.classes_N)


def matching(x_MD: Tensor, source_ND: Tensor) -> Tensor:
    """Target points in the precision for computing. Raises ValueError if the widths differ."""
    if x_MD.shape[-1] != source_ND.shape[1]:
        raise ValueError(
            f"the target's points are {x_MD.shape[-1]} wide, the source's {source_ND.shape[1]}"
        )
    return precise(x_MD).to(source_ND.dtype)


def subsample(source: Points, count: int | None, seed: int) -> Points:
    """At most ``count`` points, drawn without replacement; all points if ``count`` is None."""
    total = len(source.x_ND)
    if count is None or count >= total:
        return source
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    kept = order[:count].sort().values.to(source.x_ND.device)
    classes = source.classes_N
    return Points(source.x_ND[kept], None if classes is None else classes.to(kept.device)[kept])


class DrawingDistance(Distance):
    """A distance that draws something of its own once, when it is fitted."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        # Drawn now, so that a resumed run, which restores the stream's state only after this, draws
        # the same.
        self._seed = int(torch.randint(2**62, (), generator=context.generator))

    def kept(self, source: Points) -> Points:
        """The source points to use: at most ``subsample`` of them."""
        return subsample(fixed(source), self.config.subsample, self._seed)


def half_squared(x_ND: Tensor, z_MD: Tensor) -> Tensor:
    """½‖x − z‖² of all pairs ``[..., N, M]``, by one matrix product.

    Around the first point, because squares of far points leave no digits for their difference.
    """
    centre_1D = x_ND[..., :1, :].detach()
    x_ND, z_MD = x_ND - centre_1D, z_MD - centre_1D
    norms_N1 = x_ND.square().sum(-1, keepdim=True)
    norms_1M = z_MD.square().sum(-1).unsqueeze(-2)
    return (0.5 * (norms_N1 + norms_1M) - x_ND @ z_MD.transpose(-1, -2)).clamp_min(0)


def uniform(x_ND: Tensor) -> Tensor:
    """Equal weights for all points, which sum to 1."""
    count = x_ND.shape[0]
    return x_ND.new_full((count,), 1 / count)


def by_class(points: Points, least: int) -> Classes:
    """Sort points into classes; points without classes form a single class.

    Classes with fewer than ``least`` points are left out, unless no point would remain.
    """
    x_ND, classes_N = points.x_ND, points.classes_N
    if classes_N is None:
        classes_N = torch.zeros(len(x_ND), dtype=torch.int64, device=x_ND.device)
    if classes_N.shape != x_ND.shape[:1]:
        raise ValueError(f"{len(x_ND)} points have classes of shape {list(classes_N.shape)}")
    _, label_N, counts_C = torch.unique(
        classes_N.to(x_ND.device), return_inverse=True, return_counts=True
    )
    large_C = counts_C >= least
    if large_C.any() and not large_C.all():
        kept_N = large_C[label_N]
        return by_class(Points(x_ND[kept_N], label_N[kept_N]), least)
    sizes = counts_C.tolist()
    order_N = torch.argsort(label_N, stable=True)
    parts = list(torch.split(x_ND[order_N], sizes))
    weights = [uniform(part) for part in parts]
    return Classes(
        x_ND, label_N, pad_sequence(parts, batch_first=True), pad_sequence(weights, True)
    )
