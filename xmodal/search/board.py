"""The leaderboard of a search, and its verdict in words: whether a transformer earned its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from xmodal.assess import Against, ScoreInterval, stand
from xmodal.assess.judge import ends
from xmodal.search.mixture import Mixture
from xmodal.search.pooled import Pool
from xmodal.search.trials import Trial
from xmodal.text import number, plural

WITH_INTERVAL = 12
"""Lines that get an interval, besides the best cheap and the best fine-tuned answer."""


@dataclass(frozen=True)
class Line:
    """A line of the leaderboard. ``score``: on the validation samples; None if it has no number.

    ``interval``: its 95 % interval, None where it cannot be told. ``seconds``: that all its runs
    took. ``size``: bytes of the model. ``latency``: seconds to predict a sample, in batches.
    ``directories``: its runs.
    """

    name: str
    cheap: bool
    rung: int | None
    score: float | None
    interval: ScoreInterval | None
    seconds: float
    size: int
    latency: float | None
    directories: tuple[str, ...]

    def plain(self) -> Mapping[str, Any]:
        """The line as plain values."""
        return asdict(self)


def line(trial: Trial, interval: ScoreInterval | None = None) -> Line:
    """The line of a trial."""
    return Line(
        trial.name,
        trial.answer.cheap,
        trial.rung,
        trial.score(),
        interval,
        trial.seconds(),
        trial.size(),
        trial.latency(),
        tuple(str(part.directory) for part in trial.parts),
    )


def mixture_line(mixture: Mixture, interval: ScoreInterval | None) -> Line:
    """The line of an ensemble; its score is cross-fitted."""
    members = [trial for trial, _ in mixture.members]
    waits = [trial.latency() for trial in members]
    return Line(
        mixture.name,
        mixture.cheap,
        None,
        mixture.score,
        interval,
        sum(trial.seconds() for trial in members),
        sum(trial.size() for trial in members),
        None if None in waits else sum(wait for wait in waits if wait is not None),
        tuple(str(part.directory) for trial in members for part in trial.parts),
    )


def leaderboard(pool: Pool, found: Sequence[Trial], mixture: Mixture | None) -> tuple[Line, ...]:
    """The lines of all trials that can be chosen (``found``, best first) and of the ensemble."""
    notable = [*found[:WITH_INTERVAL], *_firsts(found)]
    known = {trial.key: pool.interval(trial) for trial in notable}
    lines = [line(trial, known.get(trial.key)) for trial in found]
    if mixture is None:
        return tuple(lines)
    return (mixture_line(mixture, pool.samples.interval(mixture.prediction)), *lines)


def _firsts(found: Sequence[Trial]) -> list[Trial]:
    cheap = next((trial for trial in found if trial.answer.cheap), None)
    tuned = next((trial for trial in found if not trial.answer.cheap), None)
    return [trial for trial in (cheap, tuned) if trial is not None]


@dataclass(frozen=True)
class SearchVerdict:
    """The verdict on the validation samples: ``words``, and what they rest on.

    ``lead``: how the best answer with a transformer stands against the best cheap one, which may be
    an ensemble; None if there is only one of them, or if predictions were not kept.
    """

    words: str
    lead: Against | None


def verdict(
    pool: Pool, found: Sequence[Trial], mixture: Mixture | None, name: str, tried: int
) -> SearchVerdict:
    """The verdict about trials, best first; ``name`` is that of the metric.

    ``tried``: how many trials with a transformer have begun, those on lower rungs included.
    """
    cheap = next((trial for trial in found if trial.answer.cheap), None)
    tuned = next((trial for trial in found if not trial.answer.cheap), None)
    if tuned is None and cheap is not None:
        why = (
            f"{plural(tried, 'fine-tuned transformer')} began, but none was trained to the end"
            if tried
            else "no transformer was tried"
        )
        best = mixture.name if mixture is not None else cheap.name
        return SearchVerdict(f"A cheap answer wins: {best}; {why}.", None)
    if cheap is None:
        return SearchVerdict(f"Chosen: {found[0].name}; no cheap answer could be fitted.", None)
    assert tuned is not None
    first = mixture if mixture is not None else found[0]
    only_cheap = first.cheap if isinstance(first, Mixture) else first.answer.cheap
    lead = _lead(pool, tuned, first) if only_cheap else _lead(pool, first, cheap)
    if only_cheap:
        return SearchVerdict(_cheap_wins(first, tuned, lead, name), lead)
    return SearchVerdict(_tuned_wins(first, cheap, lead, name), lead)


def _lead(pool: Pool, one: Trial | Mixture, other: Trial | Mixture) -> Against | None:
    own, theirs = _prediction(pool, one), _prediction(pool, other)
    if own is None or theirs is None:
        return None
    return stand(pool.samples, own, other.name, theirs, _score(one))


def _prediction(pool: Pool, one: Trial | Mixture) -> Tensor | None:
    if isinstance(one, Mixture):
        return one.prediction
    found = pool.of(one)
    return None if found is None else found.prediction


def _score(one: Trial | Mixture) -> float | None:
    return one.score if isinstance(one, Mixture) else one.score()


def _cheap_wins(first: Trial | Mixture, tuned: Trial, lead: Against | None, name: str) -> str:
    scores = f"{name} {number(_score(tuned), 3)} against {number(_score(first), 3)}"
    how = ""
    if lead is not None and lead.outcome == "worse":
        how = f", clearly{_difference(lead)}"
    elif lead is not None and lead.outcome in ("behind", "open", "equal"):
        how = f"; the difference is inside chance{_difference(lead)}"
    return (
        f"The transformer has not earned its place: a cheap answer wins, {first.name}. The best "
        f"fine-tuned one, {tuned.name}, is not better on the validation samples ({scores}){how}."
    )


def _tuned_wins(first: Trial | Mixture, cheap: Trial, lead: Against | None, name: str) -> str:
    scores = f"{name} {number(_score(first), 3)} against {number(cheap.score(), 3)}"
    best = f"{first.name} is better than the best cheap answer, {cheap.name}, on the validation"
    if lead is not None and lead.outcome == "better":
        start = (
            "A transformer is part of the best answer; whether it made the difference is open"
            if isinstance(first, Mixture)  # one of cheap answers alone might do as well
            else "The transformer earned its place"
        )
        return f"{start}: {best} samples ({scores}), beyond chance{_difference(lead)}."
    told = "the difference is inside chance" if lead is not None else "how surely is not known"
    return (
        f"It is open whether the transformer earned its place: {best} samples ({scores}), but "
        f"{told}{_difference(lead)}."
    )


def _difference(lead: Against | None) -> str:
    if lead is None or lead.difference is None:
        return ""
    return f" (95 %:{ends(lead.difference)})"
