"""A verdict in words: how a score stands against cheap answers to the same test samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from xmodal.assess.cheap import class_name, most_frequent
from xmodal.assess.resample import LEAST_UNITS, Resamples, ScoreInterval
from xmodal.interfaces import Metric
from xmodal.text import number

Outcome = Literal["better", "open", "equal", "behind", "worse", "undefined"]
CLOSE = 1e-9
MANY = 0.9
"""From this share of predictions of one class on, the sentence says so."""
_PHRASES: Mapping[Outcome, str] = {
    "worse": "clearly worse than",
    "behind": "no better than",
    "equal": "no better than",
    "open": "not clearly better than",
    "better": "clearly better than",
}
"""What is worst for the model comes first."""


@dataclass(frozen=True)
class Against:
    """One cheap answer (``words``), its score, and how the model stands against it.

    ``better`` and ``worse`` are beyond doubt on these samples (95 %); ``open`` is better and
    ``behind`` worse, but that may be chance; ``equal``: the scores are the same number.
    ``difference``: the model's score less the answer's, over the same draws.
    """

    words: str
    metric: float | None
    outcome: Outcome
    difference: ScoreInterval | None = None


@dataclass(frozen=True)
class Judgement:
    """The score of a model with its interval, the cheap answers, and one sentence about them."""

    metric: float | None
    interval: ScoreInterval | None
    against: tuple[Against, ...]
    sentence: str


def judge(
    metric: Metric,
    prediction: Tensor,
    y: Tensor,
    answers: Mapping[str, Tensor],
    groups_N: Tensor | None = None,
    seed: int = 0,
    classes: Sequence[str] = (),
    name: str = "score",
    exact: float | None = None,
    known: Sequence[Against] = (),
) -> Judgement:
    """Judge predictions ``[N, ...]`` against ``answers``: predictions by what made them, in words.

    Predictions and labels are on the CPU, as ``Metric.update`` gets them; ``metric`` is used and
    reset. ``name`` is that of the metric. ``exact``: the score of all samples, if it is known.
    ``known``: how they stand against other answers.
    """
    samples = Resamples(metric, y, groups_N, seed)
    found = samples.score(prediction) if exact is None else exact
    score = found if math.isfinite(found) else None
    interval = samples.interval(prediction) if score is not None else None
    stands = (stand(samples, prediction, words, other, score) for words, other in answers.items())
    against = (*known, *stands)
    metric.reset()
    metric.group(None)
    said = sentence(name, score, interval, against) + _sameness(prediction, y, classes)
    if samples.units < LEAST_UNITS:
        said += f". {number(samples.units)} test {samples.over} are too few to be sure"
    return Judgement(score, interval, against, said)


def stand(
    samples: Resamples, prediction: Tensor, words: str, other: Tensor, score: float | None
) -> Against:
    """How predictions of ``score`` stand against others (``words``) for the same samples."""
    theirs = samples.score(other)
    known = theirs if math.isfinite(theirs) else None
    if score is None or known is None:
        return Against(words, known, "undefined")
    interval, sign = samples.difference(prediction, other)
    if samples.metric.better == "higher":
        sign = -sign
    gap = known - score if samples.metric.better == "higher" else score - known
    outcome: Outcome = "open"
    if abs(gap) <= CLOSE * max(abs(score), abs(known)):
        outcome = "equal"
    elif gap * sign > 0:  # what is beyond doubt is also what people see
        outcome = "better" if sign < 0 else "worse"
    elif gap > 0:
        outcome = "behind"
    return Against(words, known, outcome, interval)


def sentence(
    name: str, score: float | None, interval: ScoreInterval | None, against: Sequence[Against]
) -> str:
    """The verdict: ``Clearly better than always guessing N (error-rate 0.21 [...] against 0.64)``.

    ``name`` is that of the metric. What is worst for the model comes first.
    """
    if score is None:
        return f"No score: {name} is not a number on these test samples"
    value = f"{name} {number(score, 3)}{ends(interval)}"
    rated = sorted((one for one in against if one.outcome in _PHRASES), key=_rank)
    if not rated:
        return value[0].upper() + value[1:]
    said = f"{_phrase(rated[0])} ({value} against {number(rated[0].metric, 3)})"
    said += "".join(f"; {_phrase(one)} ({number(one.metric, 3)})" for one in rated[1:])
    return said[0].upper() + said[1:]


def ends(interval: Any) -> str:
    """`` [0.17, 0.26]``, with a space in front; empty without an interval."""
    if interval is None:
        return ""
    return f" [{number(interval.low, 3)}, {number(interval.high, 3)}]"


def _phrase(one: Against) -> str:
    return f"{_PHRASES[one.outcome]} {one.words}"


def _rank(one: Against) -> int:
    return list(_PHRASES).index(one.outcome)


def _sameness(prediction: Tensor, y: Tensor, classes: Sequence[str]) -> str:
    """`` 44 of 45 predictions are N``, if nearly all are and not nearly all labels are."""
    if y.is_floating_point() or prediction.ndim != 2 or prediction.shape[1] < 2:
        return ""
    most, count = most_frequent(prediction)
    labelled = int((y == most).sum())
    if count < MANY * len(y) or labelled >= count or bool(prediction.isnan().any()):
        return ""
    what = "all" if count == len(y) else f"{number(count)} of"
    return f": {what} {number(len(y))} predictions are {class_name(most, classes)}"
