"""The error of each sample: which predictions are the worst, and which are typical.

Shapes: N samples, K outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.facts import Target


def sample_errors(prediction: Tensor, y: Tensor, target: Target) -> Tensor:
    """How wrong each prediction is, ``[N]``, float64; infinite where it is not a number.

    Classes: minus the logarithm of the true class's probability. Several labels: the mean of the
    same over the known labels. Numbers: the mean absolute error, each output in units of its
    deviation over these samples. Fields: the Euclidean norm of the error over that of the truth.
    """
    prediction, count = prediction.double(), len(y)
    if target.kind == "classification":
        error_N = torch.nn.functional.cross_entropy(prediction, y.long(), reduction="none")
    else:
        truth_NK = y.double().reshape(count, -1)
        said_NK = prediction.reshape(count, -1)
        known_NK = ~truth_NK.isnan()
        truth_NK = torch.where(known_NK, truth_NK, 0.0)
        if target.kind == "multi-label":
            wrong_NK = torch.nn.functional.binary_cross_entropy_with_logits(
                said_NK, truth_NK, reduction="none"
            )
            error_N = _mean(wrong_NK, known_NK)
        elif target.kind == "dense":
            # Squares of 1e200 are infinite.
            size = truth_NK.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
            off_N = torch.where(known_NK, (said_NK - truth_NK) / size, 0.0).norm(dim=1)
            truth_N = (truth_NK / size).norm(dim=1)
            error_N = off_N / torch.where(truth_N > 0, truth_N, 1.0)
        else:
            scale_K = truth_NK.std(dim=0, correction=0)
            scale_K = torch.where(scale_K > 0, scale_K, 1.0)
            error_N = _mean((said_NK - truth_NK).abs() / scale_K, known_NK)
    return torch.where(error_N.isnan(), torch.inf, error_N)


def _mean(value_NK: Tensor, known_NK: Tensor) -> Tensor:
    """The mean over what is known of each sample; 0 if nothing is."""
    return torch.where(known_NK, value_NK, 0.0).sum(1) / known_NK.sum(1).clamp_min(1)


def worst_and_typical(error_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The places of the ``count`` worst samples, worst first, and of those about the median."""
    order_N = torch.argsort(error_N, stable=True)
    middle = max(0, (len(order_N) - count) // 2)
    return order_N.flip(0)[:count], order_N[middle : middle + count]
