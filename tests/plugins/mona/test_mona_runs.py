"""Whole runs of ``mona`` and ``mona-pare`` at smoke scale: every label kind, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal import api, runs
from xmodal.testing.running import StopAt, assert_same, weights

from ...forms import TIMED

pytestmark = pytest.mark.slow

DROPOUT = "backbone={use: tiny, dropout: 0.2}"
PREPARING = 3
"""Epochs of ``meta-align`` here: one of warm-up, two bi-level."""


def run(root: Path, method: str, task: str, *overrides: str, observer: Any = None) -> api.Outcome:
    given = ["stages.0.epochs=2", "stages.0.source_batch=6", *overrides]
    return api.run(
        f"methods/{method}",
        task,
        scale="smoke",
        overrides=given,
        root=root,
        report=False,
        observer=observer,
    )


def cut_run(mode: str, root: Path, observer: Any = None) -> runs.Run:
    settings = (
        DROPOUT,
        f"stages.0.gradient={mode}",
        "training.batch={size: 4, micro: 2}",
        "saving.every_steps=1",
    )
    return run(root, "mona", "tasks/openml/car", *settings, observer=observer).run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, runs.Run]:
    """A run that nothing stopped, of each way to differentiate."""
    modes = ("exact", "finite-difference")
    return {mode: cut_run(mode, tmp_path_factory.mktemp(mode)) for mode in modes}


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "records"), [("exact", 1), ("exact", 4), ("exact", 8), ("finite-difference", 5)]
)
def test_resume_inside_the_stage_is_bit_equal(
    mode: str, records: int, whole: dict[str, runs.Run], tmp_path: Path
) -> None:
    """In the warm-up, within a bi-level epoch, before the next stage, between bi-level epochs."""
    with pytest.raises(RuntimeError, match="crash"):
        cut_run(mode, tmp_path, StopAt(records))
    resumed = cut_run(mode, tmp_path)
    assert_same(weights(whole[mode]), weights(resumed))
    assert _numbers(whole[mode]) == _numbers(resumed)


def test_the_two_ways_to_differentiate_differ_a_little(whole: dict[str, runs.Run]) -> None:
    """Guards the comparison above: the weights are those of different runs."""
    a, b = (weights(whole[mode]) for mode in ("exact", "finite-difference"))
    assert any(not torch.equal(a[name], b[name]) for name in a if name.startswith("embedder."))


def _numbers(found: runs.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in found.metrics()]


LABELS = {
    "classification": np.arange(40) % 3,
    "multi-label": (np.arange(160).reshape(40, 4) % 3 == 0).astype(np.int64),
    "regression": np.linspace(0, 1, 80, dtype=np.float32).reshape(40, 2),
    "dense": np.linspace(0, 1, 40 * 64, dtype=np.float32).reshape(40, 8, 8),
}


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_every_kind_of_target_label(kind: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "my.npz", x=x, y=LABELS[kind])
    recipe = tmp_path / "task.yaml"
    recipe.write_text(
        f"task: {{use: arrays, path: {tmp_path / 'my.npz'}, kind: {kind}}}\n"
        "backbone: tiny\nsource: digits\n"
    )
    outcome = run(tmp_path / "runs", "mona", str(recipe))
    lines = outcome.run.metrics()
    assert len(lines) == PREPARING + 2
    for line in lines[1:PREPARING]:
        assert {"inner", "align", "uniform", "gradient share"} <= set(line["train"])
        assert line["train"]["gradient share"] > 0


@pytest.mark.parametrize("source", ["digits-on-photos", "digits"])
def test_sources_of_both_kinds(source: str, tmp_path: Path) -> None:
    """Foreground maps have no classes; the user is told what counts as one."""
    outcome = run(
        tmp_path, "mona", "tasks/darcy", f"source={{use: {source}, samples: 12}}", "task.train=8"
    )
    told = [
        note for note in outcome.run.read("result.json")["notes"] if "count as one class" in note
    ]
    assert bool(told) == (source == "digits-on-photos")
    bilevel = outcome.run.metrics()[1]["train"]
    assert bilevel["align"] > 0
    assert bilevel["uniform"] < 0


@pytest.mark.long
def test_then_pare(tmp_path: Path) -> None:
    """The second stage is PaRe's, with its curriculum from the start."""
    settings = ("selector.network=fc", "scheduler={use: linear, unit: share, start: 1, stop: 0}")
    lines = run(tmp_path, "mona-pare", "tasks/openml/car", *settings).run.metrics()
    assert all("k" not in line["train"] for line in lines[:PREPARING])
    assert [line["train"]["k"] for line in lines[PREPARING:]] == [6, 3]
    assert all(line["validation"]["metric"] is None for line in lines[:PREPARING])
    assert all(line["validation"]["metric"] is not None for line in lines[PREPARING:])


@pytest.mark.long
def test_preparing_does_not_depend_on_what_follows(tmp_path: Path) -> None:
    pair = [
        run(tmp_path, m, "tasks/openml/car").run.metrics()[:PREPARING]
        for m in ("mona", "mona-pare")
    ]
    assert pair[0][0]["train"] == pair[1][0]["train"]
    assert pair[0][-1]["train"] == pair[1][-1]["train"]
