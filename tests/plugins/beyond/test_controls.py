"""Random labels and nested brackets before fine-tuning: what they are, learning, resuming."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal import api, runs
from xmodal.engine.observe import Silent
from xmodal.testing.running import StopAt, assert_same, weights
from xmodal_beyond.bridge import random_labels
from xmodal_beyond.warm_up import dyck

from ...forms import TIMED

EPOCHS = 3
METHODS = ("bridge-random-labels", "scratch-procedural")


# --- k-Dyck ---


def nested(sequence: Any, kinds: int) -> list[int]:
    """The brackets still open after each one. Raises AssertionError where nesting is wrong."""
    stack, depths = [], []
    for symbol in sequence:
        if symbol < kinds:
            stack.append(symbol)
        else:
            assert stack.pop() == symbol - kinds
        depths.append(len(stack))
    return depths


@pytest.mark.parametrize(("length", "kinds"), [(2, 1), (10, 3), (64, 64), (197, 5)])
def test_brackets_are_nested_and_closed(length: int, kinds: int) -> None:
    made = dyck(50, length, kinds, seed=1)
    assert made.shape == (50, length)
    assert made.min() >= 0
    assert made.max() < 2 * kinds
    for sequence in made:
        # Of an odd length the last bracket, which closes, is cut off.
        assert nested(sequence, kinds)[-1] == length % 2


def test_every_short_sequence_occurs_and_no_other() -> None:
    """Two kinds, four brackets: 2 shapes of 4 namings each, which a search over all finds too."""
    possible = set()
    for word in itertools.product(range(4), repeat=4):
        try:
            if nested(word, 2)[-1] == 0:
                possible.add(word)
        except (AssertionError, IndexError):
            continue
    made = dyck(4000, 4, 2, seed=0)
    seen = {tuple(int(s) for s in sequence) for sequence in made}
    assert len(possible) == 8
    assert seen == possible
    # The second bracket opens with probability 1/2.
    assert np.mean(made[:, 1] < 2) == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)


def test_sequences_depend_on_the_seed_alone() -> None:
    assert (dyck(4, 12, 3, seed=5) == dyck(4, 12, 3, seed=5)).all()
    assert (dyck(4, 12, 3, seed=5) != dyck(4, 12, 3, seed=6)).any()


# --- random labels ---


def test_random_labels_are_uniform_and_fixed() -> None:
    label = random_labels(5000, 10, seed=3)
    assert torch.equal(label, random_labels(5000, 10, seed=3))
    assert not torch.equal(label, random_labels(5000, 10, seed=4))
    share = torch.bincount(label, minlength=10) / 5000
    assert (share - 0.1).abs().max() < 4 * (0.09 / 5000) ** 0.5


# --- whole runs ---


def run(
    root: Path, method: str, *more: str, task: str = "darcy", observer: Silent | None = None
) -> runs.Run:
    overrides = [
        f"training.epochs={EPOCHS}",
        "training.max_steps=null",
        "training.batch={size: 4, micro: 3}",
        "saving.every_steps=1",
        *(["task.train=10"] if task == "darcy" else []),
        *more,
    ]
    return api.run(
        f"methods/{method}",
        f"tasks/{task}",
        scale="smoke",
        overrides=overrides,
        root=root,
        report=False,
        observer=observer,
    ).run


def metrics(run_: runs.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in run_.metrics()]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("records", [2, 6, 13])
def test_a_run_stopped_anywhere_ends_the_same(method: str, records: int, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", method)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", method, observer=StopAt(records))
    resumed = run(tmp_path / "cut", method)
    assert_same(weights(whole), weights(resumed))
    assert metrics(whole) == metrics(resumed)
    # Sequences come in whole batches, samples do not.
    per_epoch = {"bridge-random-labels": 10, "scratch-procedural": 12}[method]
    assert whole.read("result.json")["encoded_samples"] == EPOCHS * (per_epoch + 10)


@pytest.mark.long
def test_a_body_learns_random_labels_by_heart(tmp_path: Path) -> None:
    more = ("stages.0.epochs=60", "stages.1.epochs=1", "stages.0.optimizer={lr: 3e-3}")
    done = run(tmp_path, "bridge-random-labels", *more)
    loss = [line["train"]["random labels"] for line in done.metrics() if line["stage"] == 0]
    assert loss[0] > 1.8  # log 10 = 2.3 is knowing nothing
    assert loss[-1] < 0.5


@pytest.mark.long
def test_a_body_learns_to_close_brackets(tmp_path: Path) -> None:
    """Eight symbols of two kinds, without which nothing is known: log 4 = 1.39 nats."""
    more = (
        "stages.0.epochs=3",
        "stages.1.epochs=1",
        "stages.0.steps=150",
        "stages.0.kinds=2",
        "stages.0.share=0.2",
        "stages.0.optimizer={lr: 3e-3}",
        "stages.0.batch={size: 16}",
    )
    done = run(tmp_path, "scratch-procedural", *more, task="openml/wdbc")
    loss = [line["train"]["brackets"] for line in done.metrics() if line["stage"] == 0]
    assert loss[-1] < 0.85 * 1.386
    # The embedder of the target took no part.
    assert done.read("result.json")["encoded_samples"] > 3 * 150 * 16
