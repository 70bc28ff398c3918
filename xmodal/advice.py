"""Advice: what the numbers of a run suggest to do next, each under a code that stays.

``ignore:`` in a recipe mutes codes; ``docs/advice.md`` has a section for each. Everything here is a
function of plain values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from xmodal.text import number, percent, plural, shown

Code = Literal[
    "still-falling",
    "nothing-learned",
    "overfit",
    "few-per-class",
    "metric-undefined",
    "time-limit",
    "smoke-scale",
    "rate-at-edge",
    "seen-in-training",
    "groups-straddle",
]
CODES: tuple[str, ...] = get_args(Code)

FEW = 10
"""Training samples of a class, below which little can be learned of it."""
FEW_STEPS = 20
"""Below so many steps of the optimizer nothing about a method can be said."""
LEAST_EPOCHS = 4
"""Of fewer epochs, a trend is none."""
FALLEN, RISEN = 0.01, 0.1
"""The least fall of an error that is still falling; the least rise and fall of losses apart."""


@dataclass(frozen=True)
class Advice:
    """One piece of advice: its code, and a sentence with what was seen and what to do."""

    code: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """What a run knows of itself.

    lines: those of ``metrics.jsonl``.
    metric, better, score: of the test split; None: undefined.
    against: the cheap answers as in ``result.json``: ``words`` and ``outcome``.
    counts, classes: training samples of each class, and its name.
    steps: of the optimizer; ``encodes``: whether there is an encoder to train.
    seen, tested: test samples that equal a training sample, of how many.
    straddling: groups that are in both the training and the test split.
    length: the setting that says how long the last stage trains, and its value.
    budget: that of the recipe, which may have cut it.
    """

    lines: Sequence[Mapping[str, Any]]
    metric: str
    better: str
    score: float | None
    against: Sequence[Mapping[str, Any]] = ()
    counts: Sequence[int] = ()
    classes: Sequence[str] = ()
    steps: int = 0
    encodes: bool = True
    seen: int = 0
    tested: int = 0
    straddling: int = 0
    length: tuple[str, int] = ("training.epochs", 1)
    budget: float | None = None
    ignored: Sequence[str] = field(default_factory=tuple)


def advise(evidence: Evidence) -> list[Advice]:
    """All advice that is not ignored; what is worst comes first."""
    return muted(_all(evidence), evidence.ignored)


def muted(found: Iterator[Advice] | Sequence[Advice], ignored: Sequence[str]) -> list[Advice]:
    """Advice without those codes."""
    return [one for one in found if one.code not in ignored]


def _all(seen: Evidence) -> Iterator[Advice]:
    yield from _leaks(seen)
    if seen.score is None:
        yield Advice(
            "metric-undefined",
            f"{seen.metric} is not a number on the test samples, so this run has no score: test "
            "samples of every class, labels that vary, or another task.metric are needed",
        )
    short = seen.encodes and 0 < seen.steps < FEW_STEPS
    if short:
        yield Advice(
            "smoke-scale",
            f"{plural(seen.steps, 'optimizer step')} show that the parts fit together, and nothing "
            "about how good the method is: use --scale cpu or --scale paper",
        )
    if not short:
        yield from _learning(seen)
    yield from _classes(seen)


def _leaks(seen: Evidence) -> Iterator[Advice]:
    if seen.seen:
        yield Advice(
            "seen-in-training",
            f"{number(seen.seen)} of {number(seen.tested)} test samples equal a training sample, "
            "so the score is too good: remove duplicates before splitting",
        )
    if seen.straddling:
        what = "a group is" if seen.straddling == 1 else f"{number(seen.straddling)} groups are"
        yield Advice(
            "groups-straddle",
            f"{what} in both the training and the test samples, so the score says little about new "
            "groups: split by group (task.group)",
        )


def _learning(seen: Evidence) -> Iterator[Advice]:
    worst = next((one for one in seen.against if one["outcome"] in _NOTHING), None)
    if worst is not None and seen.steps:
        word = "better" if worst["outcome"] == "worse" else "as good"
        yield Advice(
            "nothing-learned",
            f"nothing was learned: {worst['words']} is {word}. Look at samples and their labels, "
            "train longer, or try another learning rate",
        )
    lines = _last_stage(seen.lines)
    if len(lines) < LEAST_EPOCHS:
        return
    falling = _still_falling(seen, lines)
    if falling is not None:
        yield falling
        return
    overfit = _overfit(seen, lines)
    if overfit is not None and worst is None:
        yield overfit


_NOTHING = ("equal", "behind", "worse")


def _last_stage(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["stage"] == lines[-1]["stage"]] if lines else []


def _still_falling(seen: Evidence, lines: Sequence[Mapping[str, Any]]) -> Advice | None:
    """The best epoch is the last one, and the last quarter of them brought more than 1 %."""
    found = [line["validation"]["metric"] for line in lines]
    if any(value is None for value in found):
        return None
    sign = -1 if seen.better == "higher" else 1
    error = [sign * float(value) for value in found]
    tail = max(1, len(error) // 4)
    before, last = min(error[:-tail]), error[-1]
    if last > min(error) or before - last <= FALLEN * max(abs(before), abs(last)):
        return None
    word = "rising" if seen.better == "higher" else "falling"
    ends = f"{number(sign * before)} to {number(sign * last)}"
    return Advice(
        "still-falling",
        f"{seen.metric} on validation was still {word} at the end ({ends} in the last "
        f"{plural(tail, 'epoch')} of {len(error)}): train longer, {longer(seen, 2.0)}",
    )


def longer(seen: Evidence, times: float) -> str:
    """What to type to train so many times as long: ``stages.finetune.epochs=12``."""
    key, value = seen.length
    text = f"{key}={max(1, round(times * value))}"
    # A budget would take away again what is more than it allows.
    return (
        text if seen.budget is None or times <= 1 else f"{text} budget={2 * times * seen.budget:g}"
    )


def _overfit(seen: Evidence, lines: Sequence[Mapping[str, Any]]) -> Advice | None:
    """Since its least value, the validation loss rose by a tenth while the training loss fell."""
    validated = [line["validation"].get("loss") for line in lines]
    trained = [line["train"].get("loss") for line in lines]
    if any(value is None for value in (*validated, *trained)):
        return None
    least = min(range(len(validated)), key=validated.__getitem__)
    rose = _change(validated[least], validated[-1])
    fell = _change(trained[least], trained[-1])
    if rose < math.log1p(RISEN) or fell > -math.log1p(RISEN):
        return None
    return Advice(
        "overfit",
        f"the model learns its training samples by heart: since epoch {least + 1} of {len(lines)} "
        f"the training loss changed by {percent(fell)}, that on validation by {percent(rose)}. "
        f"More samples, augmentation, fewer trained parameters, or "
        + longer(seen, (least + 1) / len(lines)),
    )


def _change(first: float, last: float) -> float:
    """The logarithm of a ratio of losses; 0 where it has none."""
    return math.log(last / first) if first > 0 and last > 0 else 0.0


def _classes(seen: Evidence) -> Iterator[Advice]:
    few = [k for k, count in enumerate(seen.counts) if count < FEW]
    if not few:
        return
    least = min(few, key=lambda k: seen.counts[k])
    name = shown(seen.classes[least]) if least < len(seen.classes) else f"class {least}"
    what = "1 class has" if len(few) == 1 else f"{number(len(few))} classes have"
    yield Advice(
        "few-per-class",
        f"{what} fewer than {FEW} training samples ({name}: {number(seen.counts[least])}): collect "
        "more of them, join them, or leave them out",
    )


# --- of a search ---


def of_a_search(
    late: Sequence[str], rate: float | None, rates: Sequence[float], seconds: float | None
) -> list[Advice]:
    """Advice about a search: ``late``: what there was no time for; ``rates``: what was searched.

    ``rate``: the learning rate of the chosen trial, None if it has none.
    """
    found = []
    if late and seconds is not None:
        found.append(
            Advice(
                "time-limit",
                f"there was no time for {plural(len(late), 'trial')} ({shown(late[0])}, ...): "
                f"continue with --time {math.ceil(2 * seconds)}s",
            )
        )
    if rate is not None and len(rates) > 1 and rate in (min(rates), max(rates)):
        end = "least" if rate == min(rates) else "greatest"
        found.append(
            Advice(
                "rate-at-edge",
                f"the best learning rate, {rate:g}, is the {end} of those searched "
                f"({min(rates):g} to {max(rates):g}): a better one may lie beyond",
            )
        )
    return found
