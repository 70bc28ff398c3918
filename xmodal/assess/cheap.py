"""The cheapest answer: the same one for every sample, learned from the training labels alone.

Shapes: n training samples, N test samples, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xmodal.assess.resample import Resamples
from xmodal.data import Moments
from xmodal.facts import Target
from xmodal.interfaces import Metric
from xmodal.text import number, shown

LEAST_SHARE = 1e-6
"""The least frequency of a class in log-odds: one that no training sample has."""


@dataclass(frozen=True)
class ConstantAnswer:
    """``output``: the answer for one sample, ``[K, *shape]``, in the form of a model's outputs.

    ``words``: what it does, such as ``always guessing N``. ``counts_K`` are the training samples of
    each class (or with each label), where there are classes.
    """

    output: Tensor
    words: str
    counts_K: tuple[int, ...] = ()

    def predictions(self, count: int) -> Tensor:
        """The answer for ``count`` samples ``[count, K, *shape]``; takes the memory of one."""
        return self.output.expand(count, *self.output.shape)


def constant_answer(
    labels: Iterable[Tensor],
    target: Target,
    classes: Sequence[str] = (),
    odds: bool = False,
    columns: Sequence[str] = (),
    metric: Metric | None = None,
) -> ConstantAnswer:
    """The best constant answer to batches of training labels, in the unit of the user.

    Classes and 0/1 labels: the log(-odds) of their frequencies; of 0/1 fields where ``odds`` says
    that the model predicts log-odds. Numbers: the mean of each output, at each place of a field,
    or their median, if ``metric`` prefers it on the training labels. NaN is left out. ``columns``
    are the names of the numbers.
    """
    if target.kind == "classification":
        return _most_frequent_class(labels, target.size, classes)
    shape = (target.size, *target.shape)
    moments, kept = Moments(math.prod(shape)), []
    for y in labels:
        moments.add(y.double().reshape(len(y), -1).numpy())
        if target.kind == "regression":
            kept.append(y.double().reshape(len(y), -1))
    mean = torch.from_numpy(moments.mean_C).reshape(shape)
    known_C = moments.count_C > 0
    zero_or_one = bool(np.isin([moments.low_C[known_C], moments.high_C[known_C]], (0, 1)).all())
    if target.kind == "multi-label" or (odds and zero_or_one):
        share = mean.clamp(LEAST_SHARE, 1 - LEAST_SHARE)
        if target.kind == "dense":
            return ConstantAnswer(share.logit(), "always guessing each place's frequency")
        counts = np.rint(moments.mean_C * moments.count_C).astype(int).tolist()
        return ConstantAnswer(
            share.logit(), "always guessing each label's frequency", tuple(counts)
        )
    if target.kind == "dense":
        return ConstantAnswer(mean, "always answering the mean field")
    return _number(mean, torch.cat(kept), columns, metric)


def _most_frequent_class(
    labels: Iterable[Tensor], size: int, classes: Sequence[str]
) -> ConstantAnswer:
    counts = torch.zeros(size, dtype=torch.int64)
    for y in labels:
        counts += torch.bincount(y.flatten().long(), minlength=size)
    share_K = (counts.double() / counts.sum().clamp_min(1)).clamp_min(LEAST_SHARE)
    name = class_name(int(counts.argmax()), classes)
    return ConstantAnswer(share_K.log(), f"always guessing {name}", tuple(counts.tolist()))


def _number(
    mean_K: Tensor, y_nK: Tensor, columns: Sequence[str], metric: Metric | None
) -> ConstantAnswer:
    """The mean of numbers, or the median, which is the best constant for absolute errors."""
    answer, what = mean_K, "mean"
    if metric is not None:
        median_K = y_nK.nanquantile(0.5, dim=0)  # not ``nanmedian``: that is the lower middle
        sign = -1 if metric.better == "higher" else 1
        mean_score, median_score = (
            sign * Resamples(metric, y_nK).score(one.expand(y_nK.shape))
            for one in (mean_K, median_K)
        )
        if median_score < mean_score:
            answer, what = median_K, "median"
    if len(mean_K) > 1:
        return ConstantAnswer(answer, f"always answering the {what}s")
    of = f" of {shown(columns[0])}" if columns else ""
    said = f"always answering the {what}{of}, {number(float(answer))}"
    return ConstantAnswer(answer, said)


def class_name(label: int, classes: Sequence[str]) -> str:
    """The name of a class as a message shows it; its number if the task has no names."""
    return shown(classes[label]) if label < len(classes) else f"class {label}"


def most_frequent(prediction: Tensor) -> tuple[int, int]:
    """The class that most outputs ``[N, K]`` decide for, and how many do."""
    counts = np.bincount(prediction.argmax(1).numpy(), minlength=prediction.shape[1])
    most = int(counts.argmax())
    return most, int(counts[most])
