"""Whole runs that align first: every kind of label, resumed anywhere, in bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal import api, runs
from xmodal.data.store import Store
from xmodal.engine.dry_run import describe
from xmodal.engine.observe import Silent
from xmodal.engine.plan import compose_plan
from xmodal.plugins import registry
from xmodal.testing.running import StopAt, assert_same, weights

from ...conftest import TINY
from ...forms import TIMED

pytestmark = pytest.mark.slow

COMMON = [o for o in TINY if not o.startswith("selector")]
EPOCHS = 4
SAVING = "saving.every_steps=1"


def run(
    root: Path,
    *more: str,
    method: str = "orca",
    observer: Silent | None = None,
    align: int = EPOCHS,
) -> runs.Run:
    overrides = [*COMMON, f"stages.0.epochs={align}", *more]
    return api.run(
        f"methods/{method}",
        "tasks/darcy",
        scale="smoke",
        overrides=overrides,
        root=root,
        report=False,
        observer=observer,
    ).run


def metrics(run_: runs.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in run_.metrics()]


def losses(run_: runs.Run, stage: int = 0) -> list[float]:
    return [line["train"]["loss"] for line in run_.metrics() if line["stage"] == stage]


DRAWN = ("stages.0.samples=2", "stages.0.classes=3", SAVING)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run that nothing stopped."""
    return run(tmp_path_factory.mktemp("whole"), *DRAWN)


# An alignment epoch gives two records (its step and its end), a fine-tuning epoch four here.
@pytest.mark.long
@pytest.mark.parametrize("records", [1, 2, 5, 6, 8, 10])
def test_a_run_stopped_while_it_aligns_ends_the_same(
    records: int, whole: runs.Run, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", *DRAWN, observer=StopAt(records))
    (broken,) = (tmp_path / "cut").glob("*/*")
    resumed = run(tmp_path / "cut", *DRAWN)
    assert resumed.path == broken
    assert_same(weights(whole), weights(resumed))
    assert metrics(whole) == metrics(resumed)
    assert whole.read("result.json")["test"] == resumed.read("result.json")["test"]


@pytest.mark.long
@pytest.mark.parametrize("distance", ["otdd", "sliced"])
@pytest.mark.parametrize("method", ["orca", "orca-pare"])
def test_resuming_with_distances_that_have_a_state_or_draw(
    distance: str, method: str, tmp_path: Path
) -> None:
    choices = (f"stages.0.distance={distance}", SAVING)
    whole = run(tmp_path / "whole", *choices, method=method)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", *choices, method=method, observer=StopAt(5))
    assert metrics(whole) == metrics(run(tmp_path / "cut", *choices, method=method))


def test_another_draw_is_another_run(tmp_path: Path) -> None:
    """Guards the tests above: what they compare does vary."""
    one = losses(run(tmp_path, "stages.0.samples=2"))
    assert one != losses(run(tmp_path, "stages.0.samples=2", "seed=1"))
    assert len(set(one)) == EPOCHS


@pytest.mark.long
@pytest.mark.parametrize("method", ["orca", "orca-published", "orca-pare"])
def test_the_recipes_lower_the_distance_and_fine_tune(method: str, tmp_path: Path) -> None:
    done = run(tmp_path, method=method, align=60)
    aligned = losses(done)
    assert len(aligned) == 60
    assert aligned[-1] < 0.9 * aligned[0]
    lines = [line for line in done.metrics() if line["stage"] == 1]
    assert len(lines) == 3
    result = done.read("result.json")
    assert np.isfinite(result["test"]["metric"])
    passes = 2 if method == "orca-pare" else 1
    assert 0 < result["encoded_samples"] <= passes * 10 * 3


def write_npz(folder: Path, kind: str) -> Path:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 2, 12, 12)).astype(np.float32)
    shapes = {"regression": (40, 2), "multi-label": (40, 3), "dense": (40, 12, 12)}
    if kind == "classification":
        y = np.arange(40) % 3
    else:
        y = generator.normal(size=shapes[kind]).astype(np.float32)
        y = (y > 0).astype(np.float32) if kind == "multi-label" else y
    path = folder / f"{kind}.npz"
    np.savez(path, x=x, y=y)
    return path


@pytest.mark.parametrize("kind", ["classification", "regression", "multi-label", "dense"])
@pytest.mark.parametrize("source", ["digits", "digits-on-photos"])
def test_every_kind_of_label_with_and_without_source_classes(
    kind: str, source: str, tmp_path: Path
) -> None:
    task = f"task={{use: arrays, path: {write_npz(tmp_path, kind)}, kind: {kind}}}"
    done = api.run(
        "methods/orca",
        scale="smoke",
        overrides=[task, f"source={{use: {source}, samples: 16}}", "stages.0.epochs=3"],
        root=tmp_path,
        report=False,
    ).run
    assert len(losses(done)) == 3
    assert min(losses(done)) > 0
    assert np.isfinite(done.read("result.json")["test"]["metric"])


def test_settings_of_the_task_reach_the_stage_but_not_its_epochs() -> None:
    found = registry()
    overrides = ["training.optimizer={use: sgd, lr: 0.5}", "training.epochs=7"]
    made = compose_plan(["methods/orca", "tasks/darcy"], found, Store(), overrides, "cpu")
    align, finetune = (stage.config for stage in made.recipe.stages)
    assert (align.optimizer.use, align.optimizer.lr, align.epochs) == ("sgd", 0.5, 60)
    assert finetune.epochs == 7


def test_a_dry_run_shows_what_trains() -> None:
    made = compose_plan(["methods/orca", "tasks/darcy"], registry(), Store(), COMMON, "smoke")
    sections = describe(made, Store(), lambda line: None)
    assert sections["parameters"]["trains in stage 0"].startswith("embedder")
    assert "backbone" not in sections["parameters"]["trains in stage 0"]
    assert sections["data"]["source"] == "16 samples"


def test_half_precision_changes_nothing_in_the_alignment(tmp_path: Path) -> None:
    """Nothing in it goes through the encoder; and one process can make runs of both precisions."""
    lines = []
    for precision in ("fp32", "bf16"):
        given = ["task.train=16", "training.batch.size=4", "stages.0.epochs=5"]
        done = api.run(
            "methods/orca",
            "tasks/darcy",
            scale="smoke",
            overrides=[*given, f"precision={precision}"],
            root=tmp_path / precision,
            report=False,
        )
        lines.append(done.run.metrics())
    assert len(lines[0]) == len(lines[1]) == 7
    for number, (full, half) in enumerate(zip(*lines, strict=True)):
        a, b = full["train"]["loss"], half["train"]["loss"]
        if number < 5:
            assert a == b
        else:
            assert a != b
            assert b == pytest.approx(a, rel=0.05)
