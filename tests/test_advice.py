"""Advice: when it is given, when not, and that every code has its section in the documentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xmodal.advice import CODES, Evidence, advise, of_a_search
from xmodal.recipe.recipe import Recipe


def lines(metric: list[float | None], validated: Any = None, trained: Any = None) -> Any:
    epochs = range(len(metric))
    validated, trained = (known or [1.0] * len(metric) for known in (validated, trained))
    return [
        {
            "stage": 0,
            "epoch": e,
            "train": {"loss": trained[e]},
            "validation": {"metric": metric[e], "loss": validated[e]},
        }
        for e in epochs
    ]


def codes(**changes: Any) -> list[str]:
    given = {"lines": (), "metric": "error-rate", "better": "lower", "score": 0.1, "steps": 500}
    return [one.code for one in advise(Evidence(**{**given, **changes}))]


def test_only_what_took_steps_can_have_learned_nothing() -> None:
    behind = {"words": "always guessing N", "outcome": "worse"}
    assert codes(against=[behind]) == ["nothing-learned"]
    assert codes(against=[behind], steps=0) == []
    (one,) = advise(Evidence((), "m", "lower", 0.1, against=[behind], steps=500))
    assert "always guessing N is better" in one.text


def test_nothing_to_say_about_a_good_run() -> None:
    good = {"words": "always guessing N", "outcome": "better"}
    assert codes(lines=lines([0.5, 0.3, 0.2, 0.2, 0.2]), against=[good], counts=[10, 99]) == []


def test_a_metric_that_still_falls_names_the_override() -> None:
    falling = lines([0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3])
    found = Evidence(falling, "error-rate", "lower", 0.3, steps=500, length=("stages.x.epochs", 8))
    (one,) = advise(found)
    assert one.code == "still-falling"
    assert "0.4000 to 0.3000 in the last 2 epochs of 8" in one.text
    assert one.text.endswith("train longer, stages.x.epochs=16")
    (one,) = advise(replace(found, budget=40))  # which may have cut eight epochs out of more
    assert one.text.endswith("train longer, stages.x.epochs=16 budget=160")
    rising = lines([0.2, 0.3, 0.4, 0.5])
    assert codes(lines=rising, better="higher") == ["still-falling"]
    assert codes(lines=rising) == []  # an error that rises
    assert codes(lines=lines([0.5, 0.4, 0.301, 0.3])) == []  # by less than 1 %
    assert codes(lines=lines([0.5, 0.4, 0.3])) == []  # three epochs are no trend
    earlier = lines([0.9] * 8)
    stage = [{**line, "stage": 1} for line in lines([0.5, 0.5, 0.5, 0.5])]
    assert codes(lines=[*earlier, *stage]) == []  # of the last stage alone


def test_losses_that_part_are_overfitting() -> None:
    metric = [0.3, 0.2, 0.2, 0.2, 0.2]
    parted = lines(metric, [1.0, 0.8, 0.9, 1.0, 1.1], [1.0, 0.8, 0.5, 0.3, 0.2])
    found = Evidence(parted, "error-rate", "lower", 0.3, steps=500, budget=40)
    (one,) = advise(replace(found, length=("stages.finetune.steps", 500)))
    assert one.code == "overfit"
    assert one.text.endswith(" or stages.finetune.steps=200")
    assert "+37.5 %" in one.text
    assert "−75.0 %" in one.text
    # Nothing is learned any more, or validation has hardly changed.
    assert codes(lines=lines(metric, [1.0, 0.8, 0.9, 1.0, 1.1], [0.2] * 5)) == []
    assert codes(lines=lines(metric, [1.0, 0.8, 0.8, 0.8, 0.85], [1.0, 0.8, 0.5, 0.3, 0.2])) == []


@pytest.mark.parametrize(
    ("outcome", "said"),
    [("better", []), ("open", [])]
    + [(o, ["nothing-learned"]) for o in ("equal", "behind", "worse")],
)
def test_nothing_is_learned_where_a_constant_is_as_good(outcome: str, said: list[str]) -> None:
    assert codes(against=[{"words": "always guessing N", "outcome": outcome}]) == said


def test_the_rest_by_hand() -> None:
    assert codes(score=None) == ["metric-undefined"]
    assert codes(steps=4) == ["smoke-scale"]
    worse = {"words": "w", "outcome": "worse"}
    assert codes(steps=4, against=[worse]) == ["smoke-scale"]  # four steps could not learn
    assert codes(steps=4, encodes=False) == []  # a baseline is fitted in one
    assert codes(seen=3, tested=45, straddling=1) == ["seen-in-training", "groups-straddle"]
    assert codes(counts=[9, 10, 3], classes=["a", "b", "c"]) == ["few-per-class"]
    (one,) = advise(Evidence((), "m", "lower", 0.1, counts=[9, 10, 3], classes=["a", "b", "<c>"]))
    assert one.text.startswith("2 classes have fewer than 10 training samples (<c>: 3)")


def test_codes_are_muted_and_known() -> None:
    assert codes(score=None, counts=[1], ignored=["few-per-class"]) == ["metric-undefined"]
    with pytest.raises(ValueError, match="still-falling"):
        Recipe.__pydantic_validator__.validate_assignment(
            Recipe.model_construct(), "ignore", ("still-faling",)
        )


def test_a_search_that_was_cut_short_or_ended_at_an_edge() -> None:
    rates = [3e-4, 1e-4, 1e-3]
    assert of_a_search([], 3e-4, rates, 60) == []
    assert of_a_search([], None, rates, 60) == []
    late, edge = of_a_search(["pare, 200 steps"], 1e-3, rates, 60)
    assert (late.code, edge.code) == ("time-limit", "rate-at-edge")
    assert "--time 120s" in late.text
    assert "greatest" in edge.text
    assert of_a_search([], 1e-4, [1e-4], 60) == []  # nothing was searched


def test_every_code_has_a_section() -> None:
    page = (Path(__file__).parents[1] / "docs" / "advice.md").read_text(encoding="utf-8")
    heads = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert heads == list(CODES)
