"""Scores of groups against scikit-learn on the means of the groups."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from xmodal.errors import DataError
from xmodal.interfaces import BackboneFacts, Context, Facts, Metric, Target, TaskFacts
from xmodal_basics.grouped import GroupedAveragePrecisionError, GroupedErrorRate, GroupedRMSE
from xmodal_basics.metrics import AveragePrecisionError, RootMeanSquaredError


def metric(kind: type[Any], target: Target) -> Any:
    facts = Facts(TaskFacts("toy", (1, 4, 4), target, {}), BackboneFacts("stub", "any", 4, 4))
    context = Context(facts, torch.Generator(), store=SimpleNamespace())  # type: ignore[arg-type]
    return kind(kind.Config(), context)


def scored(one: Metric, p_NK: Tensor, y_N: Tensor, groups_N: Tensor | None) -> float:
    one.reset()
    one.group(groups_N)
    for index in torch.arange(len(p_NK)).split(7):
        one.update(p_NK[index], y_N[index])
    first = one.compute()
    assert one.compute() == first
    return first


@pytest.fixture
def clips() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of chunks, labels of chunks, and the clip of each chunk, in any order."""
    rng = np.random.default_rng(0)
    clip_N = rng.permutation(np.repeat([40, 7, 93, 12, 5, 60, 61, 80], [3, 1, 9, 4, 2, 5, 6, 1]))
    names, place_N = np.unique(clip_N, return_inverse=True)
    label_G = rng.integers(0, 2, (len(names), 5)).astype(np.float32)
    label_G[0] = 1
    label_G[1] = 0
    logit_N = rng.normal(size=(len(clip_N), 5)) + label_G[place_N]
    return torch.tensor(logit_N), torch.tensor(label_G[place_N]), torch.tensor(clip_N)


def test_mean_average_precision_over_clips(clips: tuple[Tensor, Tensor, Tensor]) -> None:
    logit, label, clip = (part.numpy() for part in clips)
    means = np.stack([logit[clip == name].mean(0) for name in np.unique(clip)])
    labels = np.stack([label[clip == name][0] for name in np.unique(clip)])
    wanted = average_precision_score(labels, 1 / (1 + np.exp(-means)), average="macro")
    one = metric(GroupedAveragePrecisionError, Target("multi-label", 5))
    assert scored(one, *clips) == pytest.approx(1 - wanted, abs=1e-12)
    # Of single chunks, it is another number.
    alone = metric(AveragePrecisionError, Target("multi-label", 5))
    assert scored(one, clips[0], clips[1], None) == scored(alone, clips[0], clips[1], None)
    assert abs(scored(alone, clips[0], clips[1], None) - (1 - wanted)) > 0.01


def test_error_rate_over_groups() -> None:
    p_NK = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 5.0]])
    y_N, clip_N = torch.tensor([0, 0, 1, 0]), torch.tensor([3, 3, 9, 4])
    one = metric(GroupedErrorRate, Target("classification", 2))
    assert scored(one, p_NK, y_N, clip_N) == pytest.approx(1 / 3)
    assert one.smallest() == pytest.approx(1 / 3)
    assert scored(one, p_NK, y_N, None) == pytest.approx(1 / 2)
    assert scored(one, p_NK, y_N, clip_N) == pytest.approx(1 / 3)


def test_rmse_over_groups() -> None:
    """Labels of -1 are labels like others; the mean of the predictions of a group is scored."""
    p_NK = torch.tensor([[1.0], [5.0], [-2.0], [0.0]])
    y_NK, clip_N = torch.tensor([[2.0], [2.0], [-1.0], [-1.0]]), torch.tensor([3, 3, 9, 9])
    one = metric(GroupedRMSE, Target("regression", 1))
    # Means 3 and -1 against 2 and -1.
    assert scored(one, p_NK, y_NK, clip_N) == pytest.approx(0.5**0.5)
    single = metric(RootMeanSquaredError, Target("regression", 1))
    assert scored(one, p_NK, y_NK, None) == scored(single, p_NK, y_NK, None)
    with pytest.raises(DataError, match="different labels"):
        scored(one, p_NK, torch.tensor([[2.0], [2.0], [-1.0], [4.0]]), clip_N)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_group_with_two_labels(batch: int) -> None:
    one = metric(GroupedErrorRate, Target("classification", 2))
    one.group(torch.tensor([1, 1]))
    *first, last = torch.tensor([0, 1]).split(batch)
    for y in first:
        one.update(torch.zeros(len(y), 2), y)
    with pytest.raises(DataError, match="samples of one group have different labels"):
        one.update(torch.zeros(len(last), 2), last)


def test_samples_without_a_group() -> None:
    one = metric(GroupedErrorRate, Target("classification", 2))
    one.group(torch.tensor([1, 1]))
    one.update(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="1 samples, but 2 have a group"):
        one.compute()
    with pytest.raises(RuntimeError, match="3 samples, but 2 have a group"):
        one.update(torch.zeros(2, 2), torch.tensor([0, 0]))
