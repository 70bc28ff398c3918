"""Which epoch is the best, also where the metric is undefined; a score is a number or null."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal import api
from xmodal.engine.evaluate import SplitScore
from xmodal.engine.loop import Snapshot, _is_best
from xmodal.errors import TrainingError, UsageError
from xmodal.report.run import measured, selection
from xmodal.runs import Run
from xmodal.testing.running import StopAt, assert_same, weights

SCORES = st.lists(st.tuples(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1)), max_size=8)


def chosen(scores: list[tuple[float | None, float | None]], lower: bool) -> Snapshot:
    """The snapshot after epochs with these metrics and losses; ``best_steps`` is the best epoch."""
    snapshot = Snapshot(best_steps=-1)
    for epoch, (metric, loss) in enumerate(scores):
        score = SplitScore(metric, loss, loss)
        if _is_best(score, snapshot, lower):
            snapshot.best_metric, snapshot.best_objective = metric, loss
            snapshot.best_steps = epoch
    return snapshot


@pytest.mark.parametrize(
    ("scores", "lower", "best"),
    [
        ([(0.5, 9), (0.3, 9), (0.3, 1)], True, 1),
        ([(0.5, 9), (0.3, 9), (0.3, 1)], False, 0),
        ([(None, 3), (None, 2), (None, 4)], True, 1),
        ([(None, 1), (0.9, 9), (None, 0)], True, 1),
        ([(None, 1), (0.9, 9), (0.8, 10)], True, 2),
        ([(None, None), (None, 5)], True, 1),
        ([(None, None), (0.2, None)], True, 1),
        ([(None, None)], True, -1),
        ([], True, -1),
    ],
)
def test_the_best_epoch(scores: Any, lower: bool, best: int) -> None:
    assert chosen(scores, lower).best_steps == best


@given(SCORES, st.booleans())
def test_metric_and_loss_never_choose_together(scores: Any, lower: bool) -> None:
    """The choice is that of a search over all epochs: in the metrics if there is one."""
    metrics = {epoch: metric for epoch, (metric, _) in enumerate(scores) if metric is not None}
    losses = {epoch: loss for epoch, (_, loss) in enumerate(scores) if loss is not None}
    if metrics:
        right = (min if lower else max)(metrics, key=lambda epoch: metrics[epoch])
    else:
        right = min(losses, key=lambda epoch: losses[epoch], default=-1)
    snapshot = chosen(scores, lower)
    assert snapshot.best_steps == right
    assert snapshot.best_metric == metrics.get(right)


# --- whole runs ---


def table(path: Path, rows: int, seed: int, only: str = "") -> None:
    random = np.random.default_rng(seed)
    x_N3 = random.normal(size=(rows, 3))
    lines = [f"{a:.4f},{b:.4f},{c:.4f},{'pq'[int(a + b > 0)]}" for a, b, c in x_N3]
    kept = [line for line in lines if line.endswith(only)]
    path.write_text("\n".join(["a,b,c,y", *kept]) + "\n")


def run(
    folder: Path,
    observer: Any = None,
    only: tuple[str, str] = ("p", ""),
    settings: Sequence[str] = (),
) -> Run:
    """Four epochs on a table whose validation labels (or those to test) are of one class."""
    table(folder / "train.csv", 60, 0)
    table(folder / "validation.csv", 30, 2, only[0])
    table(folder / "test.csv", 30, 1, only[1])
    names = ("train", "validation", "test")
    overrides = [f"task.{name}={folder / name}.csv" for name in names]
    overrides += ["task.metric=auroc-error", "training.epochs=4", "training.max_steps=null"]
    overrides += ["training.batch={size: 16}", "training.optimizer.lr=3e-2", *settings]
    return api.run(
        "methods/nft",
        "arrays/row",
        overrides=overrides,
        scale="smoke",
        report=False,
        observer=observer,
        root=folder / "runs",
    ).run


@pytest.fixture(scope="module")
def by_loss(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("one-class"))


def strict(file: Path) -> list[Any]:
    """JSON or JSON lines, without the words that are no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{file} holds {word}")

    text = file.read_text()
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_without_a_metric_the_loss_chooses_and_says_so(by_loss: Run) -> None:
    (result,) = strict(by_loss.path / "result.json")
    losses = [line["validation"]["loss"] for line in strict(by_loss.path / "metrics.jsonl")]
    assert len(set(losses)) == 4
    assert result["selected_on"] == "validation loss"
    assert result["validation"]["at"] == [0, losses.index(min(losses))]
    assert result["validation"]["loss"] == min(losses)
    assert result["validation"]["metric"] is None
    assert 0 <= result["test"]["metric"] <= 1
    (note,) = [note for note in result["notes"] if "not a number" in note]
    assert note.startswith("auroc-error is not a number on the validation data")
    assert "Ways out" in note


def test_the_report_says_it_too(by_loss: Run) -> None:
    result = by_loss.read("result.json")
    assert (
        "were chosen by the loss on the validation split, because auroc-error was not a number "
        in selection(result)
    )
    assert dict(measured(result))["Best validation loss"].startswith("0.")


def test_a_resumed_run_chooses_the_same_epoch(by_loss: Run, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path, StopAt(11))
    resumed = run(tmp_path)
    for key in ("validation", "selected_on", "test"):
        assert resumed.read("result.json")[key] == by_loss.read("result.json")[key]
    assert_same(weights(by_loss), weights(resumed))


def test_a_test_split_of_one_class_has_no_score(tmp_path: Path) -> None:
    made = run(tmp_path, only=("", "q"))
    (result,) = strict(made.path / "result.json")
    assert result["test"]["metric"] is None
    assert result["selected_on"] == "validation"
    assert "auroc-error is not a number on the test data: this run has no score" in result["notes"]


def test_neither_metric_nor_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SplitScore(None, None, None)
    monkeypatch.setattr("xmodal.engine.loop.evaluate", lambda *given: nothing)
    with pytest.raises(TrainingError, match="no epoch can be chosen"):
        run(tmp_path)


def test_no_word_for_infinity_reaches_a_file(tmp_path: Path) -> None:
    written = Run(tmp_path)
    written.append_metrics({"train": {"a": math.nan, "b": [math.inf, 1.5], "c": -math.inf}})
    written.write("result.json", {"x": (math.nan, {"y": np.float64("inf")}), "z": 1})
    assert strict(tmp_path / "metrics.jsonl") == [
        {"train": {"a": None, "b": [None, 1.5], "c": None}}
    ]
    assert strict(tmp_path / "result.json") == [{"x": [None, {"y": None}], "z": 1}]


@pytest.mark.parametrize("patterns", ["[]", "['nothing.*']", "['*', '!*']"])
def test_a_stage_that_trains_nothing_is_refused(patterns: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stage 0 has nothing to train: no parameter fits "):
        run(tmp_path, settings=[f"stages.0.train={patterns}"])


@pytest.mark.slow
def test_training_samples_are_scored_once_and_choose_no_epoch(tmp_path: Path) -> None:
    """A last fit has no other samples; scoring them after every epoch costs a third of it."""
    np.savez(
        tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 2
    )
    made = api.run(
        "methods/nft",
        "arrays/row",
        overrides=[
            *("backbone=tiny", "source={use: digits, samples: 32}"),
            *("training.epochs=3", "training.max_steps=2"),
            *(f"task.path={tmp_path / 'x.npz'}", "task.refit=true"),
        ],
        report=False,
        root=tmp_path / "runs",
    ).run
    lines = strict(made.path / "metrics.jsonl")
    assert [line["validation"]["metric"] is None for line in lines] == [True, True, False]
    result = made.read("result.json")
    assert result["validation"]["at"] == [0, 2]
    assert result["validation"]["metric"] == lines[-1]["validation"]["metric"]
    assert result["selected_on"] == "validation"
