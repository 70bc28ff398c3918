"""A trace of a few steps is written where it is said to be, and changes nothing."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

from xmodal import api
from xmodal.batch import Progress
from xmodal.engine.profiling import FOLDER, TABLE, TRACE, StepTrace, span, summary
from xmodal.errors import UsageError
from xmodal.testing.running import assert_same, weights

from ..conftest import TINY


def run(root: Path, profile: int | None) -> api.Outcome:
    return api.run(
        "methods/pare", "tasks/darcy", scale="smoke", overrides=[*TINY, "saving.every_steps=3"],
        root=root, report=False, profile=profile,
    )  # fmt: skip


@pytest.mark.long
def test_a_trace_names_the_parts_of_steps_and_changes_nothing(tmp_path: Path) -> None:
    plain, traced = run(tmp_path / "plain", None), run(tmp_path / "traced", 20)
    assert_same(weights(plain.run), weights(traced.run))
    assert not (plain.run.path / FOLDER).exists()
    assert plain.run.read("manifest.json")["hash"] == traced.run.read("manifest.json")["hash"]
    assert plain.result["test"] == traced.result["test"]
    with gzip.open(traced.run.path / FOLDER / TRACE, "rt") as file:
        events = json.load(file)["traceEvents"]
    ours = [e["name"] for e in events if str(e.get("name")).startswith("xmodal: ")]
    counts = {name.removeprefix("xmodal: "): ours.count(name) for name in set(ours)}
    # The second epoch: three steps of one or two micro-batches, 10 samples, 4 a step, 2 at once.
    micros = 5
    assert counts["forward"] == counts["backward"] == micros
    assert counts["update"] == 3
    assert counts["evaluation"] == 1
    table = (traced.run.path / FOLDER / TABLE).read_text(encoding="utf-8")
    shares = dict(re.findall(r"^  (\w+) +[\d.]+ s +([\d.]+)%$", table, re.MULTILINE))
    assert {"forward", "backward", "update", "data", "evaluation", "saving", "other"} <= set(shares)
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.6)
    assert "aten::" in table
    assert table.startswith("3 steps, and what followed in the epoch, took ")
    said = summary(traced.run.path)
    assert said is not None
    assert table.startswith(said.partition("\noperations: ")[0])
    assert str(traced.run.path / FOLDER / TABLE) in said
    assert str(traced.run.path / FOLDER / TRACE) in said
    assert "aten::" not in said
    assert summary(plain.run.path) is None


@pytest.mark.parametrize(
    ("epochs", "steps", "traced"),
    [
        ([5, 5], 3, (0, 2)),  # the last three steps of the first epoch
        ([2, 2], 20, (1, 0)),  # the second epoch, all of it
        ([1, 1, 1], 20, (2, 0)),
        ([1, 1], 20, None),  # too few for a warm-up
        ([50, 50], 20, (0, 30)),
        ([10], 20, (0, 2)),  # what is left
    ],
)
def test_which_steps_are_traced(
    epochs: list[int],
    steps: int,
    traced: tuple[int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []
    at = [(0, 0)]

    class Nothing:
        def __init__(self, activities: object) -> None:
            happened.append(f"from {at[0]}")

        def start(self) -> None: ...

    monkeypatch.setattr("xmodal.engine.profiling.profile", Nothing)
    watched = StepTrace(steps, torch.device("cpu"), tmp_path)

    def stopped() -> None:
        happened.append("to the end of the epoch")
        watched.done = True

    monkeypatch.setattr(watched, "stop", stopped)
    for epoch, count in enumerate(epochs):
        for step in range(count):
            at[0] = (epoch, step + 1) if step + 1 < count else (epoch, step)
            watched.record(Progress(0, epoch, len(epochs), step, count), False)
        at[0] = (epoch + 1, 0)
        watched.record(Progress(0, epoch, len(epochs), count - 1, count), True)
    expected = [] if traced is None else [f"from {traced}", "to the end of the epoch"]
    assert happened == expected


def test_a_span_is_nothing_without_a_trace() -> None:
    with span("x") as nothing:
        assert nothing is None


def test_a_run_that_ends_before_its_trace_leaves_no_profiler(tmp_path: Path) -> None:
    trace = StepTrace(3, torch.device("cpu"), tmp_path)
    with trace:
        for step in range(7):
            trace.record(Progress(0, 0, 1, step, 10), epoch_over=False)
        assert torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_to_trace_are_refused(steps: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"profile is {steps}"):
        run(tmp_path, steps)
