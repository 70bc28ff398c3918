"""The area under the ROC curve of all pixels, against scikit-learn on the whole split."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from xmodal.testing.tiny import tiny_context, tiny_facts
from xmodal_basics.metrics import BalancedError
from xmodal_basics.pixel_auroc import PixelAUROCError

RNG = np.random.default_rng(0)


def split(maps: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with many ties, and rare positives; a tenth of the pixels is ignored."""
    y = (RNG.random((maps, 1, 16, 12)) < 0.04).astype(np.float32)
    logits = np.round(RNG.normal(size=y.shape) + 1.5 * y - 1, 1).astype(np.float32)
    y[RNG.random(y.shape) < 0.1] = np.nan
    y[3] = 0  # a map without any cosmic ray
    return torch.from_numpy(logits), torch.from_numpy(y)


def scored(logits: torch.Tensor, y: torch.Tensor, batch: int, **settings: bool) -> float:
    metric = PixelAUROCError(PixelAUROCError.Config(**settings), tiny_context())
    for p_B, y_B in zip(logits.split(batch), y.split(batch), strict=True):
        metric.update(p_B, y_B)
    return metric.compute()


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_equals_scikit_learn_on_the_whole_split(batch: int) -> None:
    logits, y = split()
    known = ~y.isnan()
    expected = 1 - roc_auc_score(y[known].numpy(), logits[known].numpy())
    assert scored(logits, y, batch) == pytest.approx(expected, abs=1e-12)
    # The mean over batches is another number.
    if batch == 4:
        parts = [
            1 - roc_auc_score(b[~b.isnan()].numpy(), a[~b.isnan()].numpy())
            for a, b in zip(logits.split(4), y.split(4), strict=True)
            if b.nan_to_num(0).any()
        ]
        assert abs(np.mean(parts) - expected) > 1e-3


@pytest.mark.parametrize("batch", [1, 9])
def test_released_is_the_score_of_the_mask(batch: int) -> None:
    """As the released code: logits and labels times (1 - ignore), then roc_auc of logit > 0."""
    logits, y = split()
    ignore = y.isnan().float()
    masked, labels = logits * (1 - ignore), y.nan_to_num(0)
    expected = 1 - roc_auc_score(labels.flatten().numpy(), (masked > 0).flatten().numpy())
    assert scored(logits, y, batch, released=True) == pytest.approx(expected, abs=1e-12)
    balanced = BalancedError(
        BalancedError.Config(ignored_as_negative=True), tiny_context(tiny_facts_dense())
    )
    balanced.update(logits, y)
    assert balanced.compute() == pytest.approx(expected, abs=1e-12)


def tiny_facts_dense():  # type: ignore[no-untyped-def]
    from xmodal.interfaces import Target

    return tiny_facts("grid", Target("dense", 1, (16, 12)))


def test_undefined_scores() -> None:
    logits, y = split()
    assert math.isnan(scored(logits, torch.zeros_like(y), 9))
    assert math.isnan(scored(logits, torch.full_like(y, torch.nan), 9))
    logits[0, 0, 0, 0], y[0, 0, 0, 0] = torch.nan, 0
    assert math.isnan(scored(logits, y, 9))
    with pytest.raises(ValueError, match=r"a label is 0\.5"):
        scored(logits, torch.full_like(y, 0.5), 9)


def test_the_smallest_error_is_one_pair() -> None:
    y = torch.tensor([1.0, 1, 0, 0, 0, torch.nan]).view(1, 1, 2, 3)
    logits = torch.tensor([3.0, 1, 2, -1, -2, 9]).view(1, 1, 2, 3)
    metric = PixelAUROCError(PixelAUROCError.Config(), tiny_context())
    metric.update(logits, y)
    assert metric.compute() == pytest.approx(1 / 6)
    assert metric.smallest() == pytest.approx(1 / 6)
