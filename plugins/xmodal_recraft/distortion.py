"""Feature-label distortion: entropies of the source head's predictions for target samples.

Y^t is the class of a target sample and Y^s the source head's prediction for it. H(Y^s | Y^t) is
small when the samples of a target class look like one source class.

Shapes: B samples, Q questions with K answers each (one question of K classes, or Q yes/no labels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# As in the released code; for smaller values, the logarithm's gradient would dominate all others.
TINY = 1e-10


def answers(prediction: Tensor, kind: str) -> Tensor:
    """Probabilities ``[B, Q, K]`` of the source labels from the source head's logits.

    For ``classification`` there is one question; otherwise each logit answers a yes/no question.
    """
    if kind == "classification":
        return prediction.float().softmax(dim=1)[:, None]
    logits_BQ = prediction.float().flatten(1)
    return torch.stack([torch.sigmoid(-logits_BQ), torch.sigmoid(logits_BQ)], dim=2)


def entropy(p_QK: Tensor) -> Tensor:
    """The entropy H in nats, averaged over the questions."""
    h: Tensor = torch.special.entr(p_QK.clamp_min(TINY)).sum(-1).mean(-1)
    return h


def conditional_entropy(parts: Sequence[Tensor]) -> Tensor:
    """H(Y^s | Y^t) = Σ_c w_c H(mean_{x in c} p(x)) of ``[B_c, Q, K]`` with w_c = B_c / B."""
    total = sum(len(part) for part in parts)
    terms = [len(part) / total * entropy(part.mean(0)) for part in parts]
    return torch.stack(terms).sum()


def marginal_entropy(parts: Sequence[Tensor]) -> Tensor:
    """H(Y^s) of all samples together; at least ``conditional_entropy``, by concavity."""
    return entropy(torch.cat(list(parts)).mean(0))
